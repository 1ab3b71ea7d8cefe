"""Reading blocks of rows, against anndata and scipy in memory."""

from __future__ import annotations

import itertools
import shutil
import tracemalloc
from pathlib import Path

import anndata as ad
import h5py
import made
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.compute.arrays import row_blocks
from txeval.data import matrix as module
from txeval.data import open_screen
from txeval.data.matrix import CsrMatrix, open_store, spans
from txeval.errors import InputError

STORES = [
    *((f"x.{kind}.h5ad", kind, 2) for kind in made.LAYOUTS),
    *((f"x.{kind}.v{version}.zarr", kind, version) for kind in made.LAYOUTS for version in (2, 3)),
]


def dense(block):
    return block.toarray() if sp.issparse(block) else block


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("matrix")
    a = made.adata(n=203, g=17)
    a.layers["half"] = a.X / -2
    return {name: made.write(a, folder / name, layout=kind, zarr_format=version) for name, kind, version in STORES}


@pytest.mark.parametrize("name", [name for name, _, _ in STORES])
def test_every_store_gives_the_matrix(files: dict[str, Path], name: str) -> None:
    expected = made.counts(203, 17)
    with open_screen(files[name], made.ROLES) as screen:
        assert screen.scale == "counts"
        for bound in (None, 17, 100, 3000):
            got = np.full_like(expected, np.nan)
            for rows, block in screen.blocks(max_elements=bound):
                assert block.shape[0] * 17 <= max(17, bound or module.BLOCK_ELEMENTS)
                assert block.dtype == np.float32
                got[rows] = dense(block)
            np.testing.assert_array_equal(got, expected)
        assert sp.issparse(block) == (".dense." not in name)
        assert screen.obsm_keys() == ["X_pca"]
        np.testing.assert_array_equal(screen.read_obsm("X_pca"), made.adata(203, 17).obsm["X_pca"])
        np.testing.assert_array_equal(screen.matrix("layer:half"), expected / -2)
    with open_screen(files[name], made.ROLES, layer="half") as screen:
        assert screen.where == "layers/half" and screen.scale == "continuous"
        np.testing.assert_array_equal(screen.matrix("X"), expected)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from([name for name, _, _ in STORES]),
    rows=st.lists(st.integers(0, 202), max_size=40),
    bound=st.integers(1, 400),
)
def test_any_rows_in_any_order_and_block_size(files: dict[str, Path], name: str, rows: list[int], bound: int) -> None:
    expected = made.counts(203, 17)
    with open_screen(files[name], made.ROLES) as screen:
        wanted = np.array(rows, dtype=np.int64)
        parts = list(screen.blocks(wanted, max_elements=bound))
        assert list(itertools.chain(*(range(len(rows))[part] for part, _ in parts))) == list(range(len(rows)))
        for part, block in parts:
            np.testing.assert_array_equal(dense(block), expected[wanted[part]])


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int32", "int64", "uint64", "float32", "float64", ">f4"])
def test_any_numeric_type(tmp_path: Path, layout: str, dtype: str) -> None:
    x = np.minimum(made.counts(40, 8), 1 if dtype == "bool" else 100)
    path = made.write(made.adata(x=x), tmp_path / "x.h5ad", layout=layout)
    typed = made.LAYOUTS[layout](sp.csr_matrix(x.astype(dtype.replace(">", "="))))
    made.rewrite_matrix(path, "X", typed)
    if dtype == ">f4":
        with h5py.File(path, "r+") as file:
            group, key = (file, "X") if layout == "dense" else (file["X"], "data")
            values, attributes = group[key][()], dict(group[key].attrs)
            del group[key]
            group.create_dataset(key, data=values.astype(">f4")).attrs.update(attributes)
    with open_screen(path, made.ROLES) as screen:
        assert screen.scale == "counts"
        np.testing.assert_array_equal(screen.matrix(), x)


def test_half_precision(tmp_path: Path) -> None:
    x = made.counts(40, 8)
    path = made.write(made.adata(x=x), tmp_path / "x.h5ad", layout="csr")
    with h5py.File(path, "r+") as file:
        values = file["X/data"][()]
        del file["X/data"]
        file["X"].create_dataset("data", data=values.astype(np.float16))
    with open_screen(path, made.ROLES) as screen:
        np.testing.assert_array_equal(screen.matrix(), x)


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"compression": "lzf"}, {}])
def test_small_chunks_and_gaps(tmp_path: Path, layout: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows far apart are read apart, and more than one read is put together correctly."""
    monkeypatch.setattr(module, "GAP_ELEMENTS", 5)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 50)
    x = made.counts(211, 9, density=0.3)
    path = made.write(made.adata(x=x), tmp_path / "x.h5ad", layout=layout)
    chunks = (2, 9) if layout == "dense" else (7,)
    made.rewrite_matrix(path, "X", made.LAYOUTS[layout](sp.csr_matrix(x)), chunks=chunks, **options)
    with open_screen(path, made.ROLES) as screen:
        np.testing.assert_array_equal(screen.matrix(), x)
        rows = np.random.default_rng(1).permutation(211)[:60]
        got = np.concatenate([dense(block) for _, block in screen.blocks(rows, max_elements=9 * 37)])
        np.testing.assert_array_equal(got, x[rows])


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=30),
    gaps=st.lists(st.integers(0, 20), min_size=30, max_size=30),
    gap=st.integers(0, 20),
    cap=st.integers(1, 60),
)
def test_reads_cover_everything_once_and_are_bounded(lengths: list[int], gaps: list[int], gap: int, cap: int) -> None:
    start = np.cumsum([0, *lengths[:-1]]) + np.cumsum(gaps[: len(lengths)])
    stop = start + lengths
    pieces = list(spans(start, stop, gap, cap))
    assert [i for a, b in pieces for i in range(a, b)] == list(range(len(lengths)))
    for a, b in pieces:
        assert b - a == 1 or stop[b - 1] - start[a] <= cap
        assert all(start[i + 1] - stop[i] <= gap for i in range(a, b - 1))


def test_unsorted_and_repeated_indices_are_put_in_order(tmp_path: Path) -> None:
    path = made.write(made.adata(n=10, g=4), tmp_path / "x.h5ad")
    with h5py.File(path, "r+") as file:
        group = file["X"]
        for key in ("data", "indices", "indptr"):
            del group[key]
        group["indptr"] = np.arange(0, 31, 3)
        group["indices"] = np.tile([3, 1, 3], 10).astype(np.int32)
        group["data"] = np.tile([1.0, 2.0, 4.0], 10).astype(np.float32)
    with open_screen(path, made.ROLES) as screen:
        (_, block), *_ = screen.blocks()
        assert block.has_canonical_format
        np.testing.assert_array_equal(block.toarray(), np.tile([0, 2, 0, 5], (10, 1)))


def test_files_of_the_first_anndata_layout(tmp_path: Path) -> None:
    """AnnData before 0.7: obs and var are tables of records, sparse matrices are marked by h5sparse_format."""
    x = sp.csr_matrix(made.counts(20, 5))
    path = tmp_path / "old.h5ad"
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs["h5sparse_format"] = b"csr"
        group.attrs["h5sparse_shape"] = np.array(x.shape)
        group["data"], group["indices"], group["indptr"] = x.data, x.indices, x.indptr
        obs = np.zeros(20, dtype=[("index", "S8"), ("perturbation", "i1"), ("batch", "i4")])
        obs["index"] = [f"cell{i}".encode() for i in range(20)]
        obs["perturbation"] = np.resize([0, 1], 20)
        obs["batch"] = np.resize([7, 7, 8, 8], 20)
        file["obs"] = obs
        file["var"] = np.array([(f"G{j}".encode(),) for j in range(5)], dtype=[("index", "S8")])
        file["uns/perturbation_categories"] = np.array([b"control", b"G1"])
    with open_screen(path, made.ROLES) as screen:
        assert screen.samples.perturbations.tolist() == ["G1", "control"]
        assert screen.samples.batches.tolist() == ["7", "8"]
        assert screen.sample_names[3] == "cell3"
        np.testing.assert_array_equal(screen.matrix(), x.toarray())


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.parametrize("limit", [module.FULL_DIGEST_BYTES, 0])
def test_digest_is_of_the_content(
    tmp_path: Path, layout: str, suffix: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FULL_DIGEST_BYTES", limit)
    x = made.counts(50, 6)
    path = made.write(made.adata(x=x), tmp_path / f"a.{suffix}", layout=layout)
    copy = tmp_path / f"b.{suffix}"
    (shutil.copytree if suffix == "zarr" else shutil.copy)(path, copy)
    x[3, 0] += 1
    other = made.write(made.adata(x=x), tmp_path / f"c.{suffix}", layout=layout)
    digests = []
    for file in (path, copy, other):
        store = open_store(file)
        digests.append(store.matrix("X").digest())
        store.close()
    assert digests[0] == digests[1] != digests[2]


def test_a_zarr_store_that_lost_pieces_is_read_with_a_warning(tmp_path: Path) -> None:
    """A piece of nothing but 0 is not stored either: the two cannot be told apart."""
    path = made.write(made.adata(), tmp_path / "x.zarr", layout="csr")
    for piece in (path / "X" / "data").glob("[0-9]*"):
        piece.unlink()
    with open_screen(path, made.ROLES) as screen:
        assert any("pieces of the values of X are not stored and read as 0" in w for w in screen.report["warnings"])
        assert not screen.matrix().any()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """100,000 samples x 2,000 genes with 40 counts each: 800 MB dense, 32 MB of stored values and indices."""
    n, g, per = 100_000, 2_000, 40
    rng = np.random.default_rng(0)
    indices = (np.arange(per) * (g // per) + rng.integers(0, g // per, (n, per))).astype(np.int32).ravel()
    data = rng.integers(1, 9, n * per).astype(np.float32)
    x = sp.csr_matrix((data, indices, np.arange(0, n * per + 1, per)), shape=(n, g))
    folder = tmp_path_factory.mktemp("large")
    a = made.adata(n=n, g=1)
    a = ad.AnnData(X=x, obs=a.obs)
    return {layout: made.write(a, folder / f"{layout}.h5ad", layout=layout) for layout in ("csr", "csc")}


@pytest.mark.parametrize(("layout", "limit_mb"), [("csr", 8), ("csc", 20)])
def test_memory_is_bounded_by_the_block(
    large: dict[str, Path], layout: str, limit_mb: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass over the file holds neither n x g values nor all stored ones, however they are stored.

    The stored values with their indices are 32 MB (and turning them in memory takes three times that); what is held for
    each sample (row pointers, counts, names of the samples) is allowed for.
    """
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 200_000)
    screen = open_screen(large[layout], made.ROLES)
    screen.close()
    total = 0.0
    tracemalloc.start()
    for _, block in screen.blocks(max_elements=400_000):
        total += float(block.sum(dtype=np.float64))
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    with h5py.File(large[layout]) as file:
        assert total == file["X/data"][()].sum(dtype=np.float64)
    assert peak < limit_mb
    screen.close()


def test_a_turned_matrix_equals_scipys(large: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 300_000)
    store = open_store(large["csc"])
    turned = store.matrix("X")._turn()
    assert isinstance(turned, CsrMatrix)
    with h5py.File(large["csr"]) as file:
        np.testing.assert_array_equal(turned.indptr, file["X/indptr"][()])
        np.testing.assert_array_equal(turned.indices[:], file["X/indices"][()])
        np.testing.assert_array_equal(turned.data[:], file["X/data"][()])
    store.close()


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_damage_in_the_middle_is_an_input_error(tmp_path: Path, layout: str) -> None:
    """A compressed file whose bytes are spoilt somewhere in the matrix opens, and fails where it is read."""
    x = np.random.default_rng(0).poisson(3.0, (3_000, 50)).astype(np.float32)
    path = made.write(made.adata(x=x), tmp_path / "x.h5ad", layout=layout)
    chunks = (10, 50) if layout == "dense" else (500,)
    made.rewrite_matrix(path, "X", made.LAYOUTS[layout](sp.csr_matrix(x)), chunks=chunks, compression="gzip")
    with h5py.File(path) as file:
        array = file["X"] if layout == "dense" else file["X/data"]
        places = [array.id.get_chunk_info(i) for i in range(array.id.get_num_chunks())]
    with path.open("r+b") as raw:
        for place in places[1:-1]:
            raw.seek(place.byte_offset)
            raw.write(b"\x00" * place.size)
    with pytest.raises(InputError, match=r"(?s)cannot read X, .*damaged or was cut short") as caught:
        for _ in open_screen(path, made.ROLES).blocks():
            pass
    assert str(path) in str(caught.value)


def test_an_index_outside_the_matrix_is_refused(tmp_path: Path) -> None:
    path = made.write(made.adata(), tmp_path / "x.h5ad", layout="csr")
    with h5py.File(path, "r+") as file:
        file["X/indices"][7] = 4_000_000
    with pytest.raises(InputError, match="index outside the matrix"):
        open_screen(path, made.ROLES)


def test_real_files_against_anndata(data_dir: Path) -> None:
    for name, layer, roles in [
        ("papalexi2021_thp1_ecciteseq_299genes", None, ("perturbation", "non-targeting")),
        ("norman2019_k562_crispra_500hvg", "counts", ("perturbation", "control")),
        ("l1000_shrna_kd_litmus_plate_976genes", None, ("perturbation", "control")),
        ("ipsc_ec_perturbseq_298targets_x_120programs", "mean_difference", ("perturbation", "safe-targeting")),
    ]:
        path = data_dir / f"{name}.h5ad"
        a = ad.read_h5ad(path)
        x = a.X if layer is None else a.layers[layer]
        with open_screen(path, made.Roles(roles[0], (roles[1],)), layer=layer) as screen:
            assert screen.n == screen.n_file == a.n_obs
            assert screen.genes.tolist() == a.var_names.tolist()
            assert screen.sample_names.tolist() == a.obs_names.tolist()
            rows = np.random.default_rng(0).permutation(a.n_obs)
            for part, block in screen.blocks(rows, max_elements=a.n_vars * 1000):
                np.testing.assert_array_equal(dense(block), dense(x[rows[part]]))


def test_row_blocks_bound() -> None:
    assert [s.stop - s.start for s in row_blocks(10, 4, 12)] == [3, 3, 3, 1]
