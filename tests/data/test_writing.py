from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.data import writing
from txeval.data.matrix import open_store
from txeval.data.writing import open_writer, smallest_type
from txeval.errors import InputError

GENES = [f"G{i}" for i in range(37)]


def counts(n: int, seed: int = 0, high: int = 9) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    return sp.csr_matrix(rng.poisson(0.3, (n, len(GENES))) * rng.integers(1, high, (n, len(GENES))))


def read(path: Path) -> anndata.AnnData:
    return anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)


def dense(matrix) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def everything(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(writing, "_CHUNK", {"h5ad": 256, "zarr": 512})
    monkeypatch.setattr(writing, "_SEGMENT_BYTES", 1000)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("n", [0, 1, 6, 7, 300])
def test_what_is_written_is_read(tmp_path, suffix, layout, n):
    whole = counts(n, high=400)
    obs = pd.DataFrame(
        {"label": [f"p{i % 3}" for i in range(n)], "batch": np.arange(n) % 2, "flag": np.arange(n) % 2 == 0},
        index=[f"cell{i}" for i in range(n)],
    )
    out = tmp_path / f"a{suffix}"
    with open_writer(out, genes=GENES, obs=obs, layout=layout, uns={"note": {"seed": 3}}, threads=1) as writer:
        for a in range(0, n, 41):
            writer.append(whole[a : a + 41])
    found = read(out)
    np.testing.assert_array_equal(dense(found.X), whole.toarray())
    assert found.X.dtype == (np.uint16 if n > 1 else smallest_type(whole.data))
    assert sp.issparse(found.X) == (layout == "csr")
    assert found.var_names.tolist() == GENES
    assert found.obs_names.tolist() == obs.index.tolist()
    assert found.obs["label"].astype(str).tolist() == obs["label"].tolist()
    assert found.obs["flag"].dtype == bool
    assert found.uns["note"]["seed"] == 3
    assert everything(tmp_path) == [out.name]
    store = open_store(out)
    np.testing.assert_array_equal(dense(store.matrix("X").rows(np.arange(n))), whole.toarray())
    store.close()
    if suffix == ".zarr":
        assert zarr.open_group(str(out), mode="r").metadata.zarr_format == 3


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([1, 200, 300, 70_000, 20_000_001, 2**32 - 1, 2**33, 0.5, -3, -(2**25)]), max_size=5))
def test_type_grows_with_the_values(tmp_path_factory, highest):
    """Whatever comes in whichever order: no whole number is changed, and the type is no larger than needed."""
    folder = tmp_path_factory.mktemp("grow")
    blocks = [np.where(np.eye(3, len(GENES)) > 0, value, 1.0) for value in highest]
    with open_writer(folder / "a.h5ad", genes=GENES, threads=1) as writer:
        for block in blocks:
            writer.append(block)
        kind = writer.dtype
    found = read(folder / "a.h5ad").X
    whole = np.vstack([np.zeros((0, len(GENES))), *blocks])
    np.testing.assert_array_equal(dense(found), whole)
    if all(value >= 0 and float(value).is_integer() for value in highest) and max(highest, default=0) < 2**32:
        assert kind == smallest_type(whole)
        assert kind.kind == "u"
    else:
        assert kind.kind == "f"


def test_explicit_zeros_and_unsorted_rows_are_put_right(tmp_path):
    block = sp.csr_matrix((np.array([1, 0, 2, 3]), np.array([5, 4, 1, 1]), np.array([0, 2, 4])), shape=(2, len(GENES)))
    with open_writer(tmp_path / "a.h5ad", genes=GENES) as writer:
        writer.append(block)
    found = read(tmp_path / "a.h5ad").X
    assert found.nnz == 2
    assert (found[0, 5], found[1, 1]) == (1, 5)


def test_a_failure_leaves_nothing(tmp_path):
    (tmp_path / "a.h5ad").write_text("the earlier one")
    with pytest.raises(RuntimeError), open_writer(tmp_path / "a.h5ad", genes=GENES) as writer:
        writer.append(counts(50))
        raise RuntimeError
    assert everything(tmp_path) == ["a.h5ad"]
    assert (tmp_path / "a.h5ad").read_text() == "the earlier one"


def test_wrong_sizes(tmp_path):
    with (
        pytest.raises(InputError, match="a block has 3 genes, the file 37"),
        open_writer(tmp_path / "a.h5ad", genes=GENES) as writer,
    ):
        writer.append(np.ones((2, 3)))
    with (
        pytest.raises(InputError, match="2 x 37 values for 5 samples"),
        open_writer(tmp_path / "a.h5ad", genes=GENES, obs=pd.DataFrame(index=list("abcde"))) as writer,
    ):
        writer.append(np.ones((2, 37)))
    with pytest.raises(InputError, match=r"\.h5ad or \.zarr"):
        open_writer(tmp_path / "a.csv", genes=GENES)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        open_writer(tmp_path / "file" / "a.h5ad", genes=GENES)
    assert everything(tmp_path) == ["file"]


def write(
    out: Path, whole: sp.csr_matrix, *, layout: str = "csr", die_at: int = -1, key: str = "k"
) -> tuple[int, bool]:
    with open_writer(
        out, genes=GENES, layout=layout, resume=True, key=key, checkpoint_seconds=0.0, threads=1
    ) as writer:
        for a in range(int(writer.state.get("next", 0)), whole.shape[0], 23):
            b = min(a + 23, whole.shape[0])
            writer.append(whole[a:b], state={"next": b}, source=np.arange(a, b))
            if a >= die_at >= 0:
                # Rows that no checkpoint knows of.
                writer._every = 1e9
                writer.append(counts(40, seed=9, high=200), source=np.zeros(40))
                os.kill(os.getpid(), signal.SIGKILL)
        writer.obs = pd.DataFrame({"source": writer.record("source")}, index=[f"c{i}" for i in writer.record("source")])
        return writer.resumed, writer.discarded


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_killed_and_gone_on_with(tmp_path, suffix, layout):
    """The file of a process that was killed twice is byte for byte that of one that was not."""
    whole = sp.vstack([counts(200), counts(200, seed=1, high=5000)], format="csr")
    out = tmp_path / "b" / f"a{suffix}"
    for die_at in (90, 300):
        child = multiprocessing.get_context("fork").Process(
            target=write, args=(out, whole), kwargs={"layout": layout, "die_at": die_at}
        )
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert not out.exists()
    resumed, discarded = write(out, whole, layout=layout)
    assert resumed > 300
    assert not discarded
    straight = tmp_path / "c" / f"a{suffix}"
    assert write(straight, whole, layout=layout)[0] == 0
    np.testing.assert_array_equal(dense(read(out).X), whole.toarray())
    assert read(out).obs["source"].tolist() == list(range(400))
    assert read(out).X.dtype == np.uint16
    assert everything(out.parent) == [out.name]
    if suffix == ".h5ad":
        assert out.read_bytes() == straight.read_bytes()
    else:
        files, theirs = (
            {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()}
            for store in (out, straight)
        )
        assert files == theirs


def test_remains_of_something_else_are_not_used(tmp_path):
    out = tmp_path / "a.h5ad"
    child = multiprocessing.get_context("fork").Process(target=write, args=(out, counts(200)), kwargs={"die_at": 90})
    child.start()
    child.join()
    resumed, discarded = write(out, counts(100, seed=5), key="another")
    assert (resumed, discarded) == (0, True)
    np.testing.assert_array_equal(dense(read(out).X), counts(100, seed=5).toarray())


@pytest.mark.parametrize(
    "lost", ["data.uint8/00000", "indices.int32/sizes", "lengths", "record.source", "journal.json"]
)
def test_damaged_remains_are_not_used(tmp_path, lost):
    out = tmp_path / "a.h5ad"
    child = multiprocessing.get_context("fork").Process(target=write, args=(out, counts(200)), kwargs={"die_at": 150})
    child.start()
    child.join()
    path = tmp_path / ".a.h5ad.partial" / lost
    path.write_bytes(path.read_bytes()[:7])
    resumed, discarded = write(out, counts(200))
    assert (resumed, discarded) == (0, True)
    np.testing.assert_array_equal(dense(read(out).X), counts(200).toarray())


def test_two_at_once(tmp_path):
    with (
        open_writer(tmp_path / "a.h5ad", genes=GENES, resume=True),
        pytest.raises(InputError, match="being written by another process"),
    ):
        open_writer(tmp_path / "a.h5ad", genes=GENES, resume=True)


def test_full_disk(tmp_path, monkeypatch):
    def full(self, packed):
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(InputError, match="No space left on device") as caught,
        open_writer(tmp_path / "a.h5ad", genes=GENES) as writer,
    ):
        monkeypatch.setattr(writing._Segments, "append", full)
        writer.append(counts(100))
    assert "make room" in caught.value.remedy
    assert everything(tmp_path) == []


def test_hdf5_needs_no_plugins(tmp_path):
    """Chunks are packed here, not by HDF5: its own filters must undo it."""
    with open_writer(tmp_path / "a.h5ad", genes=GENES, dtype=np.float64) as writer:
        writer.append(counts(100))
    with h5py.File(tmp_path / "a.h5ad") as file:
        data = file["X/data"]
        assert (data.dtype, data.compression, data.shuffle) == (np.float64, "gzip", True)
        np.testing.assert_array_equal(data[...], counts(100).data)
