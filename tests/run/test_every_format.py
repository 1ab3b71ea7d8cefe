"""A real screen gives the same scores whatever format it is in, described and run from nothing but its file."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from txeval.data.describe import describe
from txeval.data.proposal import render
from txeval.run import NullProgress, execute, load_config, make_plan


def cells(data_dir: Path) -> ad.AnnData:
    """Some cells of Norman et al. with their counts, and the labels that a file of one's own would have."""
    whole = ad.read_h5ad(data_dir / "norman2019_k562_crispra_500hvg.h5ad")
    part = whole[np.arange(0, whole.n_obs, 4)]
    obs = part.obs[["perturbation", "gem_group"]].astype(str)
    var = pd.DataFrame(index=pd.Index(part.var_names.astype(str), name=None))
    return ad.AnnData(sp.csr_matrix(part.layers["counts"]), obs=obs, var=var)


def as_h5ad(a: ad.AnnData, folder: Path) -> tuple[Path, Path | None]:
    a.write_h5ad(folder / "screen.h5ad")
    return folder / "screen.h5ad", None


def as_loom(a: ad.AnnData, folder: Path) -> tuple[Path, Path | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a.copy().write_loom(folder / "screen.loom")
    return folder / "screen.loom", None


def as_gct(a: ad.AnnData, folder: Path) -> tuple[Path, Path | None]:
    n, g = a.shape
    lines = [
        ["#1.3"],
        [str(g), str(n), "0", "2"],
        ["id", *a.obs_names],
        *([name, *a.obs[name]] for name in a.obs),
        *([gene, *map(str, row)] for gene, row in zip(a.var_names, a.X.toarray().T.tolist(), strict=True)),
    ]
    (folder / "screen.gct.gz").write_bytes(gzip.compress("\n".join(map("\t".join, lines)).encode()))
    return folder / "screen.gct.gz", None


def as_gctx(a: ad.AnnData, folder: Path) -> tuple[Path, Path | None]:
    with h5py.File(folder / "screen.gctx", "w") as file:
        file.attrs["version"] = "GCTX1.0"
        file["0/DATA/0/matrix"] = a.X.toarray()
        file["0/META/ROW/id"] = a.var_names.astype(str).to_numpy().astype("S")
        for name, values in {"id": a.obs_names, **{name: a.obs[name] for name in a.obs}}.items():
            file[f"0/META/COL/{name}"] = np.asarray(values, dtype=str).astype("S")
    return folder / "screen.gctx", None


def labels(a: ad.AnnData, folder: Path) -> Path:
    a.obs.to_csv(folder / "labels.csv", index_label="cell")
    return folder / "labels.csv"


def as_10x(a: ad.AnnData, folder: Path) -> tuple[Path, Path | None]:
    x = sp.csr_matrix(a.X)
    with h5py.File(folder / "filtered.h5", "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = x.data.astype(np.int32), x.indices, x.indptr
        group["shape"] = np.array(x.shape[::-1])
        group["barcodes"] = a.obs_names.to_numpy().astype("S")
        group["features/id"] = group["features/name"] = a.var_names.to_numpy().astype("S")
        group["features/feature_type"] = np.array([b"Gene Expression"] * x.shape[1])
    return folder / "filtered.h5", labels(a, folder)


def as_mtx(a: ad.AnnData, folder: Path) -> tuple[Path, Path | None]:
    place = folder / "filtered"
    place.mkdir()
    scipy.io.mmwrite(place / "matrix.mtx", sp.coo_matrix(a.X.T), field="integer")
    (place / "barcodes.tsv").write_text("\n".join(a.obs_names) + "\n")
    (place / "genes.tsv").write_text("".join(f"{name}\t{name}\n" for name in a.var_names))
    return place, labels(a, folder)


WRITERS: Any = (as_loom, as_gct, as_gctx, as_10x, as_mtx)


def scores(path: Path, table: Path | None, folder: Path, relations: Path) -> pd.DataFrame:
    about = describe(path, labels=table)
    assert (about.value("perturbation"), about.value("control"), about.value("batch"), about.scale) == (
        *("perturbation", ["control"], "gem_group", "counts"),
    )
    (folder / "run.yaml").write_text(render(about))
    change = {"post_processing": ["centering"], "seeds": 1, "relations": relations}
    config = load_config(
        folder / "run.yaml",
        {**change, "embeddings": ["pca@components=10"], "tasks": ["consistency", "knn"], "out": folder / "out"},
    )
    outcome = execute(make_plan(config), progress=NullProgress())
    assert outcome.n_errors == 0
    keys = ["model", "task", "metric", "subset", "post_processing", "seed"]
    return outcome.scores.set_index(keys)[["value", "n_samples", "reason"]].sort_index()


@pytest.fixture(scope="module")
def expected(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("h5ad")
    found = scores(*as_h5ad(cells(data_dir), folder), folder, data_dir / "relationships")
    assert found["value"].notna().sum() > 10
    return found


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_scores_do_not_depend_on_the_format(write: Any, data_dir: Path, tmp_path: Path, expected: pd.DataFrame) -> None:
    path, table = write(cells(data_dir), tmp_path)
    pd.testing.assert_frame_equal(scores(path, table, tmp_path, data_dir / "relationships"), expected, check_exact=True)
