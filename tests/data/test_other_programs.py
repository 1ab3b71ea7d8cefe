"""Files as other programs write them: values kept beside X, older layouts, missing labels, unreadable parts."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import h5py
import made
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from txeval.cli import main
from txeval.data import Roles, open_screen
from txeval.data.describe import describe
from txeval.errors import InputError


def warnings_of(path: Path, roles: Roles = made.ROLES) -> str:
    with open_screen(path, roles) as screen:
        return "\n".join(screen.report["warnings"])


# Counts in raw


@pytest.fixture(scope="module")
def with_raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[ad.AnnData, Path]:
    """All genes as counts in raw, five of them as z-scores in X."""
    full = made.adata()
    full.X = sp.csr_matrix(full.X)
    full.var["symbol"] = [f"S{j}" for j in range(full.n_vars)]
    some = full[:, 2:7].copy()
    some.X = np.random.default_rng(0).normal(size=some.shape).astype(np.float32)
    some.raw = full
    path = tmp_path_factory.mktemp("raw") / "s.h5ad"
    some.write_h5ad(path)
    return full, path


def test_counts_in_raw_are_a_layer_with_genes_of_their_own(with_raw: tuple[ad.AnnData, Path], tmp_path: Path) -> None:
    full, path = with_raw
    zarr = path.with_suffix(".zarr")
    ad.read_h5ad(path).write_zarr(zarr)
    alone = tmp_path / "alone.h5ad"
    full.write_h5ad(alone)
    for file in (path, zarr):
        with open_screen(file, made.ROLES, layer="raw") as screen, open_screen(alone, made.ROLES) as expected:
            assert (screen.where, screen.scale) == ("raw/X", "counts")
            assert screen.genes.tolist() == expected.genes.tolist()
            np.testing.assert_array_equal(screen.matrix("layer:raw"), expected.matrix())
            assert screen.samples.target_genes.tolist() == expected.samples.target_genes.tolist()
            with open_screen(file, made.ROLES) as other:
                assert other.fingerprint != screen.fingerprint
                assert len(other.genes) == 5
                assert other.layers_of_counts() == ["raw"]
        symbols = Roles("perturbation", ("control",), batch="batch", gene_symbol="symbol")
        with open_screen(file, symbols, layer="raw") as screen:
            assert screen.genes.tolist() == full.var["symbol"].tolist()


def test_counts_in_raw_are_proposed(with_raw: tuple[ad.AnnData, Path]) -> None:
    about = describe(with_raw[1])
    assert about.proposals["layer"].value == "raw"
    assert about.shape == (60, 12)
    assert "--layer raw" in warnings_of(with_raw[1])


def test_a_part_of_a_screen_keeps_raw(with_raw: tuple[ad.AnnData, Path], tmp_path: Path) -> None:
    roles = ["--perturbation", "perturbation", "--control", "control", "--batch", "batch"]
    assert main(["data", "subset", str(with_raw[1]), *roles, "-n", "30", "--out", str(tmp_path / "part.h5ad")]) == 0
    part = ad.read_h5ad(tmp_path / "part.h5ad")
    np.testing.assert_array_equal(part.raw.to_adata().to_df(), with_raw[0].to_df().loc[part.obs_names])


# Older layouts


def test_obsm_of_the_first_layout_has_a_field_for_each_embedding(tmp_path: Path) -> None:
    a = made.adata()
    path = tmp_path / "old.h5ad"
    with h5py.File(path, "w") as file:
        file["X"] = a.X
        for frame, names in (("obs", a.obs_names), ("var", a.var_names)):
            table = np.zeros(len(names), dtype=[("index", "S20"), ("perturbation", "S20"), ("batch", "S20")])
            table["index"] = names.to_numpy().astype("S")
            if frame == "obs":
                for name in ("perturbation", "batch"):
                    table[name] = a.obs[name].to_numpy().astype("S")
            file[frame] = table
        fields = np.zeros(a.n_obs, dtype=[("X_pca", "f4", (3,)), ("score", "f8")])
        fields["X_pca"], fields["score"] = a.obsm["X_pca"], a.obs["depth"]
        file["obsm"] = fields
    with open_screen(path, made.ROLES) as screen:
        assert screen.obsm_keys() == ["X_pca", "score"]
        np.testing.assert_array_equal(screen.read_obsm("X_pca"), a.obsm["X_pca"])
        np.testing.assert_allclose(screen.read_obsm("score"), a.obs[["depth"]], rtol=1e-6)
        with pytest.raises(InputError, match="'X_pca'"):
            screen.read_obsm("X_pcb")


@pytest.mark.parametrize("ordered", [True, False])
def test_tables_without_an_encoding_are_read(tmp_path: Path, ordered: bool) -> None:
    a = made.adata()
    path = tmp_path / "s.h5ad"
    with h5py.File(path, "w") as file:
        file["X"] = a.X
        for frame, names in (("obs", a.obs_names), ("var", a.var_names)):
            group = file.create_group(frame)
            group["index"] = np.array(names.tolist(), dtype="S")
            group.attrs["_index"] = "index"
        lists = file["obs"].create_group("__categories")
        for name in ("perturbation", "batch"):
            file["obs"][name] = a.obs[name].cat.codes.to_numpy()
            lists[name] = np.array(a.obs[name].cat.categories.tolist(), dtype="S")
        file["obs"]["depth"] = a.obs["depth"].to_numpy()
        if ordered:
            order = np.array(["batch", "perturbation", "depth"], dtype=h5py.string_dtype())
            file["obs"].attrs["column-order"] = order
    with open_screen(path, made.ROLES) as screen:
        samples = screen.samples
        assert samples.perturbations[samples.perturbation].tolist() == a.obs["perturbation"].tolist()
        assert samples.batches[samples.batch].tolist() == a.obs["batch"].tolist()
        assert screen.genes.tolist() == a.var_names.tolist()


# What cannot be read


def test_text_of_another_encoding_is_named(tmp_path: Path) -> None:
    path = made.write(made.adata(), tmp_path / "s.h5ad")
    with h5py.File(path, "r+") as file:
        del file["obs/_index"]
        names = np.array([f"cell\u00e9{i}".encode("latin-1") for i in range(60)], dtype=object)
        file["obs"].create_dataset("_index", data=names, dtype=h5py.string_dtype())
        file["obs/_index"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    with pytest.raises(InputError, match="not UTF-8") as why:
        open_screen(path, made.ROLES)
    assert "UTF-8" in why.value.remedy and "download" not in why.value.remedy


def test_one_column_that_nobody_asked_for_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its encoding is newer than the anndata that is installed."""
    path = made.write(made.adata(), tmp_path / "s.h5ad")
    with h5py.File(path, "r+") as file:
        file["obs/depth"].attrs["encoding-type"] = "quaternion"
        file["obs/depth"].attrs["encoding-version"] = "9.9"
    said = "obs['depth'] (its encoding is 'quaternion' '9.9', which anndata"
    assert any(said in finding.text for finding in describe(path).findings)
    roles = ["--perturbation", "perturbation", "--control", "control", "--batch", "batch"]
    out = tmp_path / "out.h5ad"
    assert main(["data", "subset", str(path), *roles, "-n", "30", "--out", str(out)]) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    assert list(ad.read_h5ad(out).obs) == ["perturbation", "batch", "is_control", "lane"]
    assert main(["data", "prepare", str(path), "--out", str(out), "--overwrite"]) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    assert "depth" not in ad.read_h5ad(out).obs
    with pytest.raises(InputError, match="quaternion") as why:
        open_screen(path, Roles("perturbation", ("control",), batch="depth"))
    assert "anndata" in why.value.remedy


# Labels


@pytest.mark.parametrize("text", ["NA", "n/a", "nan", "None", "null", "-666", "-2147483648", "<NA>"])
@pytest.mark.parametrize("role", ["perturbation", "batch", "cell_line"])
def test_texts_that_mean_missing_are_no_labels(tmp_path: Path, text: str, role: str) -> None:
    a = made.adata()
    a.obs["cell_line"] = "K562"
    values = a.obs[role].astype(object).to_numpy().copy()
    values[:6] = text
    a.obs[role] = values
    with open_screen(
        made.write(a, tmp_path / "s.h5ad"), Roles("perturbation", ("control",), batch="batch", cell_line="cell_line")
    ) as screen:
        words = " ".join(screen.report["warnings"])
        assert f"stand for a missing {role.replace('_', ' ')}: {text!r} (6)" in words
        labels = {"perturbation": screen.samples.perturbations, "batch": screen.samples.batches}
        assert text not in labels.get(role, screen.samples.cell_lines)
        assert len(screen.kept) == (60 if role == "cell_line" else 54)


def test_numbers_that_mean_missing_are_no_labels(tmp_path: Path) -> None:
    a = made.adata()
    a.obs["lane"] = np.where(np.arange(60) < 6, np.iinfo(np.int32).min, np.arange(60) % 3).astype(np.int32)
    path = made.write(a, tmp_path / "s.h5ad")
    with open_screen(path, Roles("perturbation", ("control",), batch="lane")) as screen:
        assert screen.samples.batches.tolist() == ["0", "1", "2"]


def test_a_text_that_the_user_names_is_a_label(tmp_path: Path) -> None:
    a = made.adata()
    a.obs["perturbation"] = pd.Categorical(np.resize(["none", "G1", "G2"], 60))
    del a.obs["is_control"]
    path = made.write(a, tmp_path / "s.h5ad")
    assert "'none'" in str(describe(path).proposals["control"])
    with open_screen(path, Roles("perturbation", ("none",), batch="batch")) as screen:
        assert int(screen.samples.is_control.sum()) == 20
        assert "missing" not in " ".join(screen.report["warnings"])


def test_long_labels_take_the_memory_of_their_text(tmp_path: Path) -> None:
    """One label of 5,000 characters among short ones."""
    a = made.adata(n=300)
    values = a.obs["perturbation"].astype(object).to_numpy().copy()
    values[7] = "x" * 5000
    a.obs["perturbation"] = values
    with open_screen(made.write(a, tmp_path / "s.h5ad"), made.ROLES) as screen:
        names = screen.samples.perturbations
        assert names[screen.samples.perturbation].nbytes == 8 * 300
        assert sum(map(len, names)) < 5100
