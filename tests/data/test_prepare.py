"""Putting screens together block by block: against anndata, after kill -9, in bounded memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from txeval.data import prepare, writing
from txeval.data.prepare import Prepared, Recipe, prepare_screen
from txeval.errors import InputError

GIB = 2**30


def screen(n: int, genes: list[str], *, seed: int = 0, layout: str = "csr", dtype=np.float32, start: int = 0):
    rng = np.random.default_rng(seed)
    counts = (rng.poisson(0.4, (n, len(genes))) * rng.integers(1, 400, (n, len(genes)))).astype(dtype)
    obs = pd.DataFrame(
        {
            "gene_name": pd.Categorical(rng.choice(["non-targeting", "A", "B", f"only{seed}"], n)),
            "is_control": rng.random(n) < 0.3,
            "batch": rng.integers(0, 3, n),
            "score": rng.normal(size=n),
        },
        index=[f"cell{start + i}" for i in range(n)],
    )
    var = pd.DataFrame({"length": np.arange(len(genes)), "kind": "protein"}, index=genes)
    X = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[layout](counts)
    return anndata.AnnData(X, obs=obs, var=var)


def write(adata: anndata.AnnData, path: Path) -> Path:
    with anndata.settings.override(zarr_write_format=3), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (adata.write_h5ad if path.suffix == ".h5ad" else adata.write_zarr)(path)
    return path


def read(path: Path) -> anndata.AnnData:
    return anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dense(matrix) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


GENES = [f"G{i}" for i in range(50)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Many blocks and chunks, though the files are small."""
    monkeypatch.setattr(writing, "_CHUNK", {"h5ad": 512, "zarr": 1024})
    monkeypatch.setattr(writing, "_SEGMENT_BYTES", 2000)
    monkeypatch.setattr(prepare, "_MOST_ELEMENTS", 37 * len(GENES))
    monkeypatch.setattr(prepare, "_LEAST_ELEMENTS", 5 * len(GENES))


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("stored", ["csr", "csc", "dense"])
def test_parts_come_one_after_the_other(tmp_path, stored, layout, suffix):
    """The same as anndata's own concatenation, whatever the layout on either side."""
    made = [screen(n, GENES, seed=i, layout=stored, start=1000 * i) for i, n in enumerate((120, 1, 75))]
    suffixes = (".h5ad", ".zarr", ".h5ad")
    parts = [write(one, tmp_path / f"part{i}{suffixes[i]}") for i, one in enumerate(made)]
    done = prepare_screen(parts, tmp_path / "new" / f"all{suffix}", Recipe(layout=layout))
    found, oracle = read(done.path), anndata.concat(made, merge="same")
    np.testing.assert_array_equal(dense(found.X), dense(oracle.X))
    assert sp.issparse(found.X) == (layout == "csr")
    assert found.X.dtype == done.dtype == "uint16"
    assert found.obs_names.equals(oracle.obs_names)
    assert found.var_names.equals(oracle.var_names)
    for name in oracle.obs:
        assert found.obs[name].tolist() == oracle.obs[name].tolist(), name
    assert set(found.obs["gene_name"].cat.categories) == set(oracle.obs["gene_name"])
    assert found.obs["is_control"].dtype == bool
    assert found.var["length"].tolist() == list(range(50))
    assert done.shape == (196, 50)
    assert [part["kept"] for part in done.report["parts"]] == [120, 1, 75]
    assert names_in(tmp_path / "new") == [f"all{suffix}"]


@pytest.mark.parametrize("stored", ["csr", "dense"])
@pytest.mark.parametrize("join", ["outer", "inner"])
def test_genes_are_aligned(tmp_path, join, stored):
    """Other genes in another order; the same as anndata's join."""
    made = [screen(30, GENES[:40], seed=1, layout=stored), screen(20, GENES[:9:-1], seed=2, layout=stored, start=100)]
    parts = [write(one, tmp_path / f"{i}.h5ad") for i, one in enumerate(made)]
    done = prepare_screen(parts, tmp_path / "all.h5ad", Recipe(join=join))
    found, oracle = read(done.path), anndata.concat(made, join=join, fill_value=0)
    assert set(found.var_names) == set(oracle.var_names)
    np.testing.assert_array_equal(dense(found[:, oracle.var_names].X), dense(oracle.X))
    notes = " ".join(done.report["notes"])
    assert ("0.h5ad: 10 genes that it does not have are 0" in notes) == (join == "outer")
    assert ("30 of 50 genes are in all parts" in notes) == (join == "inner")


def test_genes_of_ones_own(tmp_path):
    path = write(screen(30, GENES), tmp_path / "a.h5ad")
    done = prepare_screen([path], tmp_path / "b.h5ad", Recipe(genes=("G7", "G3", "NEW")))
    found, oracle = read(done.path), read(path)
    assert found.var_names.tolist() == ["G7", "G3", "NEW"]
    np.testing.assert_array_equal(dense(found.X)[:, :2], dense(oracle[:, ["G7", "G3"]].X))
    assert dense(found.X)[:, 2].sum() == 0
    assert done.report["genes_not_found"] == ["NEW"]


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_genes_of_one_name_stay_apart(tmp_path):
    names = ["A", "B", "A", "C"]
    first, second = screen(9, names, seed=1), screen(8, ["A", "A", "B", "C"], seed=2, start=50)
    parts = [write(one, tmp_path / f"{i}.h5ad") for i, one in enumerate((first, second))]
    done = prepare_screen(parts, tmp_path / "all.h5ad")
    found = read(done.path)
    assert found.var_names.tolist() == names
    np.testing.assert_array_equal(dense(found.X)[9:], dense(second.X)[:, [0, 2, 1, 3]])
    assert any("1 genes have the name of another gene" in note for note in done.report["notes"])


def test_what_is_left_out_is_counted(tmp_path):
    made = screen(200, GENES, seed=3)
    path = write(made, tmp_path / "a.h5ad")
    totals = dense(made.X).sum(axis=1)
    threshold = float(np.median(totals))
    recipe = Recipe(min_counts=threshold, keep={"gene_name": ("A", "B", "non-targeting")}, leave_out={"batch": ("1",)})
    done = prepare_screen([path], tmp_path / "b.h5ad", recipe)
    named = (made.obs["gene_name"] != "only3") & (made.obs["batch"] != 1)
    kept = made[(totals > threshold) & named.to_numpy()]
    found = read(done.path)
    assert found.obs_names.equals(kept.obs_names)
    np.testing.assert_array_equal(dense(found.X), dense(kept.X))
    assert done.report["left_out"] == {
        "gene_name is not A or B or non-targeting": int((made.obs["gene_name"] == "only3").sum()),
        "batch is 1": int(((made.obs["gene_name"] != "only3") & (made.obs["batch"] == 1)).sum()),
        f"total count not above {threshold:g}": int((named & (totals <= threshold)).sum()),
    }
    assert sum(done.report["left_out"].values()) == 200 - len(kept)


def test_the_filter_is_for_counts(tmp_path):
    made = screen(40, GENES)
    made.X = sp.csr_matrix(np.log1p(dense(made.X)))
    done = prepare_screen([write(made, tmp_path / "a.h5ad")], tmp_path / "b.h5ad", Recipe(min_counts=1e6))
    assert done.shape[0] == 40
    assert done.dtype == "float32"
    assert any("was not applied" in note for note in done.report["notes"])
    np.testing.assert_array_equal(dense(read(done.path).X), dense(made.X))


def test_columns_that_one_part_has(tmp_path):
    first, second = screen(10, GENES), screen(10, GENES, seed=1, start=20)
    del second.obs["score"]
    second.obs["batch"] = "x" + second.obs["batch"].astype(str)
    parts = [write(one, tmp_path / f"{i}.h5ad") for i, one in enumerate((first, second))]
    done = prepare_screen(parts, tmp_path / "all.h5ad")
    found = read(done.path)
    assert found.obs["score"].isna().tolist() == [False] * 10 + [True] * 10
    assert found.obs["batch"].tolist() == [str(v) for v in first.obs["batch"]] + second.obs["batch"].tolist()
    assert any("no obs column 'score'" in note for note in done.report["notes"])


def test_values_that_are_not_finite(tmp_path):
    made = screen(30, GENES)
    made.X.data[77] = np.nan
    path = write(made, tmp_path / "a.h5ad")
    row = int(np.searchsorted(made.X.indptr, 77, side="right")) - 1
    with pytest.raises(InputError, match=f"holds nan for sample 'cell{row}' \\(row {row}\\) and gene") as caught:
        prepare_screen([path], tmp_path / "b.h5ad")
    assert "--missing 0" in caught.value.remedy
    done = prepare_screen([path], tmp_path / "b.h5ad", Recipe(missing=0.0))
    assert done.report["left_out"] == {"values that are not finite, replaced by 0": 1}
    np.testing.assert_array_equal(dense(read(done.path).X), np.nan_to_num(dense(made.X)))


def test_done_once(tmp_path):
    path = write(screen(30, GENES), tmp_path / "a.h5ad")
    first = prepare_screen([path], tmp_path / "b.h5ad")
    before = (tmp_path / "b.h5ad").stat()
    again = prepare_screen([path], tmp_path / "b.h5ad")
    assert again.reused and not first.reused
    assert (again.shape, again.report) == (first.shape, first.report)
    assert (tmp_path / "b.h5ad").stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(InputError, match="is there already"):
        prepare_screen([path], tmp_path / "b.h5ad", Recipe(layout="dense"))
    assert not prepare_screen([path], tmp_path / "b.h5ad", Recipe(layout="dense"), overwrite=True).reused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": []}, "no file to prepare"),
        ({"parts": ["nowhere.h5ad"]}, "no such file"),
        ({"out": "b.csv"}, r"\.h5ad or \.zarr"),
        ({"out": "a.h5ad", "overwrite": True}, "is one of the parts"),
        ({"out": "file/b.h5ad"}, "cannot write"),
        ({"max_memory": 2**20}, "give 512 MiB or more"),
        ({"recipe": Recipe(layer="count")}, "no layer called 'count'"),
        ({"recipe": Recipe(keep={"gene_nam": ("A",)})}, "did you mean 'gene_name'"),
        ({"recipe": Recipe(keep={"gene_name": ("a",)})}, "no label called 'a'"),
        ({"recipe": Recipe(min_counts=1e9)}, "no sample is left of 30: 30 left out: total count not above"),
        ({"recipe": Recipe(genes=("X", "Y"))}, "none of the 2 genes asked for"),
        ({"recipe": Recipe(genes=("G1", "G1"))}, "names 'G1' several times"),
        ({"recipe": Recipe(genes=())}, "the list of genes is empty"),
        ({"recipe": Recipe(join="left")}, "no join called 'left'"),
        ({"recipe": Recipe(gene_names="symbol")}, "no var column called 'symbol'"),
        ({"parts": ["a.h5ad", "z.h5ad"]}, "different scales"),
        ({"parts": ["a.h5ad", "fewer.h5ad"], "recipe": Recipe(join="same")}, "has not the genes of"),
        ({"parts": ["z.h5ad", "zfewer.h5ad"]}, "0 does not mean 'not expressed'"),
        ({"parts": ["a.h5ad", "other.h5ad"], "recipe": Recipe(join="inner")}, "no gene in common"),
        ({"parts": ["cut.h5ad"]}, "cannot be opened as HDF5"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    write(screen(30, GENES), Path("a.h5ad"))
    write(screen(30, GENES[:20]), Path("fewer.h5ad"))
    write(screen(30, ["X1", "X2"]), Path("other.h5ad"))
    for name, genes in (("z.h5ad", GENES), ("zfewer.h5ad", GENES[:20])):
        scores = screen(30, genes)
        scores.X = np.random.default_rng(0).normal(size=scores.shape).astype(np.float32)
        write(scores, Path(name))
    Path("cut.h5ad").write_bytes(Path("a.h5ad").read_bytes()[:5000])
    Path("file").touch()
    there = set(names_in(Path()))
    settings = {"parts": ["a.h5ad"], "out": "b.h5ad"} | change
    with pytest.raises(InputError, match=message):
        prepare_screen(
            settings["parts"],
            settings["out"],
            settings.get("recipe"),
            max_memory=settings.get("max_memory", GIB),
            overwrite=settings.get("overwrite", False),
        )
    assert {name for name in names_in(Path()) if not name.startswith(".")} == there


def killed(parts: list[Path], out: Path, recipe: Recipe, after: int) -> None:
    """Prepare in another process, which kills itself after so many blocks."""

    def run() -> None:
        seen = []

        def progress(done, total, text):
            seen.append(done)
            if len(seen) > after:
                os.kill(os.getpid(), signal.SIGKILL)

        prepare_screen(parts, out, recipe, checkpoint_seconds=0.0, threads=1, progress=progress)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not out.exists()


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_killed_and_run_again(tmp_path, suffix):
    """It goes on, and the file is byte for byte that of a run that was not killed."""
    made = [screen(n, GENES, seed=i, layout="csc", start=1000 * i) for i, n in enumerate((200, 150))]
    parts = [write(one, tmp_path / f"part{i}.h5ad") for i, one in enumerate(made)]
    recipe = Recipe(min_counts=2000, leave_out={"gene_name": ("B",)})
    out = tmp_path / "one" / f"all{suffix}"
    for after in (3, 4, 5):
        killed(parts, out, recipe, after)
    done = prepare_screen(parts, out, recipe, threads=1)
    straight = prepare_screen(parts, tmp_path / "two" / f"all{suffix}", recipe, threads=1)
    assert done.resumed > 150
    assert straight.resumed == 0
    assert done.report == straight.report
    assert done.report["left_out"]["total count not above 2000"] > 10
    if suffix == ".h5ad":
        assert out.read_bytes() == straight.path.read_bytes()
    else:
        one, two = (
            {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()}
            for store in (out, straight.path)
        )
        assert one == two
    assert names_in(out.parent) == [out.name]


def test_killed_and_the_file_has_changed(tmp_path):
    path = write(screen(300, GENES), tmp_path / "a.h5ad")
    killed([path], tmp_path / "b.h5ad", Recipe(), 4)
    write(screen(300, GENES, seed=9), path)
    done = prepare_screen([path], tmp_path / "b.h5ad")
    assert done.resumed == 0
    assert any("remains of an earlier attempt" in note for note in done.report["notes"])
    np.testing.assert_array_equal(dense(read(done.path).X), dense(read(path).X))


def test_ctrl_c_keeps_what_is_written(tmp_path):
    path = write(screen(300, GENES), tmp_path / "a.h5ad")

    def stop(done, total, text):
        if done > 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_screen([path], tmp_path / "b.h5ad", progress=stop)
    assert prepare_screen([path], tmp_path / "b.h5ad").resumed > 100


def test_full_disk_in_the_middle(tmp_path, monkeypatch):
    path = write(screen(300, GENES), tmp_path / "a.h5ad")
    append, seen = writing._Segments.append, []

    def full(self, packed):
        seen.append(packed)
        if len(seen) > 12:
            raise OSError(28, "No space left on device")
        append(self, packed)

    with monkeypatch.context() as patch:
        patch.setattr(writing._Segments, "append", full)
        with pytest.raises(InputError, match="No space left on device") as caught:
            prepare_screen([path], tmp_path / "b.h5ad", checkpoint_seconds=0.0, threads=1)
    assert "make room" in caught.value.remedy
    assert not (tmp_path / "b.h5ad").exists()
    done = prepare_screen([path], tmp_path / "b.h5ad")
    assert done.resumed > 0
    np.testing.assert_array_equal(dense(read(done.path).X), dense(read(path).X))


def test_pieces_too_large_to_unpack(tmp_path, monkeypatch):
    path = write(screen(300, GENES, layout="dense"), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        values = file["X"][...]
        attributes = dict(file["X"].attrs)
        del file["X"]
        made = file.create_dataset("X", data=values, chunks=values.shape, compression="gzip")
        made.attrs.update(attributes)
    monkeypatch.setattr(prepare, "LEAST_MEMORY", 1)
    with pytest.raises(InputError, match="packed in pieces of"):
        prepare_screen([path], tmp_path / "b.h5ad", max_memory=100_000)


SCRIPT = """
import json, sys
import numpy as np
from txeval.data.prepare import Recipe, prepare_screen
done = prepare_screen(sys.argv[2:], sys.argv[1], Recipe(), max_memory=512 * 2**20)
peak = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps([done.shape, peak[0] if peak else done.peak_bytes]))
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Four times as many dense rows, 320 MB unpacked: the peak stays under what is allowed, and all but the same."""
    rng = np.random.default_rng(0)
    g, block = 2000, rng.poisson(0.2, (5000, 2000)).astype(np.float32)
    path = tmp_path / "part.h5ad"
    anndata.AnnData(block, obs=pd.DataFrame({"gene_name": ["A", "B"] * 2500}, index=map(str, range(5000)))).write_h5ad(
        path
    )
    peaks = []
    for count in (2, 8):
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / f"{count}.h5ad"), *[str(path)] * count],
            capture_output=True,
            text=True,
            check=True,
        )
        shape, peak = json.loads(ran.stdout.splitlines()[-1])
        assert shape == [5000 * count, g]
        peaks.append(peak)
    assert peaks[1] < 512 * 2**20
    assert peaks[1] - peaks[0] < 60 * 2**20


def test_what_is_told(tmp_path):
    path = write(screen(100, GENES), tmp_path / "a.h5ad")
    seen = []
    done: Prepared = prepare_screen([path], tmp_path / "b.h5ad", progress=lambda *told: seen.append(told))
    assert seen[0] == (0, 100, "a.h5ad")
    assert [told[0] for told in seen] == sorted(told[0] for told in seen)
    assert seen[-1][:2] == (100, 100)
    assert done.seconds > 0 and done.peak_bytes > 2**20
