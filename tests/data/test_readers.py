"""Formats other than AnnData give what the libraries of their makers read."""

from __future__ import annotations

import gzip
import shutil
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.io
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.compute import arrays
from txeval.data import Roles, open_screen
from txeval.data import matrix as matrix_module
from txeval.data.matrix import Store, open_store
from txeval.data.readers import gct, mtx, stem

N, G = 37, 11


def made(n: int = N, g: int = G, seed: int = 0) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    return sp.csr_matrix(rng.poisson(0.7, (n, g)).astype(np.int32))


def dense(store: Store, where: str = "X", rows: Any = None) -> np.ndarray:
    matrix = store.matrix(where)
    block = matrix.rows(np.arange(matrix.shape[0]) if rows is None else np.asarray(rows))
    return block.toarray() if sp.issparse(block) else np.asarray(block)


def check_rows(store: Store, expected: np.ndarray, where: str = "X") -> None:
    """All rows, some rows, and no rows."""
    np.testing.assert_array_equal(dense(store, where), expected)
    some = np.array([0, 3, 4, len(expected) - 1])
    np.testing.assert_array_equal(dense(store, where, some), expected[some])
    assert dense(store, where, np.empty(0, dtype=np.int64)).shape == (0, expected.shape[1])


def texts(values: list[str]) -> np.ndarray:
    return np.array([value.encode() for value in values])


def write_10x(path: Path, x: sp.csr_matrix, *, version: int, guides: int = 0, dtype: str = "int32") -> Path:
    """As Cell Ranger writes it: pointers of the barcodes, shape of features x barcodes."""
    n, g = x.shape
    names = [f"GENE{j}" for j in range(g - guides)] + [f"TP53_{j}" for j in range(guides)]
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        group["data"] = x.data.astype(dtype)
        group["indices"], group["indptr"] = x.indices.astype(np.int64), x.indptr.astype(np.int64)
        group["shape"] = np.array([g, n], dtype=np.int32)
        group["barcodes"] = texts([f"ACGTACGT{i:04d}-{1 + i % 2}" for i in range(n)])
        ids = texts([f"ENSG{j:011d}" for j in range(g)])
        if version == 3:
            features = group.create_group("features")
            features["id"], features["name"] = ids, texts(names)
            features["feature_type"] = texts(["Gene Expression"] * (g - guides) + ["CRISPR Guide Capture"] * guides)
            features["genome"] = texts(["GRCh38"] * g)
            features["_all_tag_keys"] = texts(["genome"])
            if guides:
                features["target_gene_name"] = texts([""] * (g - guides) + ["TP53"] * (guides - 1) + ["Non-Targeting"])
        else:
            group["genes"], group["gene_names"] = ids, texts(names)
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_10x_hdf5_is_what_scanpy_reads(tmp_path: Path, version: int) -> None:
    path = write_10x(tmp_path / "filtered.h5", made(), version=version)
    oracle = scanpy.read_10x_h5(path)
    store = open_store(path)
    check_rows(store, oracle.X.toarray())
    assert store.names("obs").tolist() == oracle.obs_names.tolist()
    assert store.names("var").tolist() == oracle.var_names.tolist()
    for column in oracle.var.columns:
        assert store.column("var", column).tolist() == oracle.var[column].tolist()
    assert store.kind == f"10x HDF5 (version {version})"


def test_guides_of_10x_are_calls_and_no_genes(tmp_path: Path) -> None:
    x = made(g=G + 4)
    path = write_10x(tmp_path / "crispr.h5", x, version=3, guides=4)
    oracle = scanpy.read_10x_h5(path, gex_only=True)
    store = open_store(path)
    check_rows(store, oracle.X.toarray())
    assert store.names("var").tolist() == oracle.var_names.tolist()
    counted = x.toarray()[:, -4:]
    guide = store.column("obs", "guide")
    called = counted.max(axis=1) > 0
    assert guide.notna().tolist() == called.tolist()
    assert guide[called].tolist() == [f"TP53_{j}" for j in counted[called].argmax(axis=1)]
    assert store.column("obs", "guide_umi_total").tolist() == counted.sum(axis=1).tolist()
    target = store.column("obs", "guide_target")[called].tolist()
    assert target == ["Non-Targeting" if j == 3 else "TP53" for j in counted[called].argmax(axis=1)]
    assert any("CRISPR Guide Capture" in note for note in store.notes)
    screen = open_screen(path, Roles(perturbation="guide_target", control="Non-Targeting", batch="names~-([0-9]+)$"))
    assert screen.n == int(called.sum())
    assert screen.samples.batches.tolist() == ["1", "2"]
    assert any("4 of 15 features" in warning for warning in screen.report["warnings"])


def write_mtx(folder: Path, x: sp.csr_matrix, *, packed: bool, old: bool = False, prefix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    n, g = x.shape
    files = {
        f"{prefix}matrix.mtx": None,
        f"{prefix}barcodes.tsv": "".join(f"ACGTACGT{i:04d}-1\n" for i in range(n)),
        f"{prefix}{'genes' if old else 'features'}.tsv": "".join(
            f"ENSG{j:011d}\tGENE{j}" + ("\n" if old else "\tGene Expression\n") for j in range(g)
        ),
    }
    for name, text in files.items():
        path = folder / name
        if text is None:
            scipy.io.mmwrite(path, x.T.tocoo(), field="integer")
        else:
            path.write_text(text)
        if packed:
            with path.open("rb") as source, gzip.open(f"{path}.gz", "wb") as target:
                shutil.copyfileobj(source, target)
            path.unlink()
    return folder


@pytest.mark.parametrize(("packed", "old"), [(True, False), (False, True)])
def test_matrix_market_folders_are_what_scanpy_reads(tmp_path: Path, packed: bool, old: bool) -> None:
    folder = write_mtx(tmp_path / "filtered", made(), packed=packed, old=old)
    oracle = scanpy.read_10x_mtx(folder)
    store = open_store(folder)
    check_rows(store, oracle.X.toarray())
    assert store.names("obs").tolist() == oracle.obs_names.tolist()
    assert store.names("var").tolist() == oracle.var_names.tolist()
    assert store.column("var", "gene_ids").tolist() == oracle.var["gene_ids"].tolist()
    prefixed = write_mtx(tmp_path / "geo", made(), packed=packed, old=old, prefix="GSM1_")
    path = next(prefixed.glob("*.mtx*"))
    for place in (prefixed, path):
        np.testing.assert_array_equal(dense(open_store(place)), oracle.X.toarray())


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(60)), by_cells=st.booleans(), block=st.integers(4, 200))
def test_values_of_a_matrix_market_file_in_any_order(
    order: list[int], by_cells: bool, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    rng = np.random.default_rng(1)
    where = rng.choice(N * G, 60, replace=False)
    cells, genes, values = where // G, where % G, rng.integers(1, 9, 60)
    write_mtx(folder, made(), packed=False)
    first, second = (cells, genes) if by_cells else (genes, cells)
    sizes = f"{N} {G}" if by_cells else f"{G} {N}"
    lines = [f"{first[i] + 1} {second[i] + 1} {values[i]}" for i in order]
    text = "\n".join(["%%MatrixMarket matrix coordinate integer general", "% made here", f"{sizes} 60", *lines]) + "\n"
    (folder / "matrix.mtx").write_text(text)
    expected = np.zeros((N, G))
    expected[cells, genes] = values
    with pytest.MonkeyPatch.context() as patch:
        for module in (matrix_module, mtx, arrays):
            patch.setattr(module, "BLOCK_ELEMENTS", block)
        check_rows(open_store(folder), expected)


def gct_screen() -> ad.AnnData:
    rng = np.random.default_rng(2)
    obs = pd.DataFrame(
        {
            "pert_iname": ["DMSO", "drug a", "drug b"] * 4,
            "dose": [float("nan"), 0.5, 10] * 4,
            "plate": ["P1", "P2"] * 6,
            "well": [f"A0{i % 10}" for i in range(12)],
        },
        index=[f"P:{i}" for i in range(12)],
    )
    var = pd.DataFrame(
        {"pr_gene_symbol": [f"GENE{j}" for j in range(7)], "pr_is_lm": [1, 1, 0, 1, 0, 0, 1]},
        index=[f"{100 + j}_at" for j in range(7)],
    )
    return ad.AnnData(rng.normal(size=(12, 7)).astype(np.float32).round(4), obs=obs, var=var)


def gctoo(screen: ad.AnnData) -> Any:
    from cmapPy.pandasGEXpress.GCToo import GCToo

    return GCToo(
        screen.to_df().T,
        row_metadata_df=screen.var.astype(object),
        col_metadata_df=screen.obs.astype(object).where(screen.obs.notna(), "-666"),
    )


def write_gct(path: Path, screen: ad.AnnData) -> Path:
    from cmapPy.pandasGEXpress import write_gct as writer

    writer.write(gctoo(screen), str(path), data_float_format="%.4f")
    return path


def write_gctx(path: Path, screen: ad.AnnData) -> Path:
    from cmapPy.pandasGEXpress import write_gctx as writer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "string_", np.bytes_, raising=False)  # cmapPy is of the time before NumPy 2
        writer.write(gctoo(screen), str(path))
    return path


def check_like_cmappy(store: Store, path: Path) -> None:
    from cmapPy.pandasGEXpress.parse import parse

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = parse(str(path))
    check_rows(store, oracle.data_df.T.to_numpy())
    for frame, table in (("obs", oracle.col_metadata_df), ("var", oracle.row_metadata_df)):
        assert store.names(frame).tolist() == table.index.tolist()
        assert set(store.columns(frame)) == set(table.columns)
        for column in table.columns:
            ours, theirs = store.column(frame, column), table[column].reset_index(drop=True)
            assert ours.isna().tolist() == theirs.isna().tolist()
            known = theirs.notna()
            if pd.api.types.is_numeric_dtype(theirs):
                np.testing.assert_allclose(ours[known].astype(float), theirs[known].astype(float))
            else:
                assert ours[known].astype(str).tolist() == theirs[known].astype(str).tolist()


def test_gct_1_3_is_what_cmappy_reads(tmp_path: Path) -> None:
    path = write_gct(tmp_path / "plate.gct", gct_screen())
    check_like_cmappy(open_store(path), path)
    packed = tmp_path / "plate.gct.gz"
    with gzip.open(packed, "wb") as file:
        file.write(path.read_bytes())
    check_like_cmappy(open_store(packed), path)
    by_genes = open_store(path).matrix("X")
    np.testing.assert_array_equal(by_genes.columns(2, 5), dense(open_store(path))[:, 2:5])
    assert any("-666" in note for note in open_store(path).notes)


def test_gct_1_2_as_published(tmp_path: Path) -> None:
    """Two label columns, no labels of samples: https://www.genepattern.org/file-formats-guide (GCT)."""
    path = tmp_path / "old.gct"
    path.write_bytes(
        b"#1.2\r\n2\t3\r\nNAME\tDescription\ts1\ts2\ts3\r\nTP53\tp53\t1\t2.5\tNA\r\nMYC\tna\t-1\t1e3\t\r\n"
    )
    store = open_store(path)
    assert store.kind == "GCT 1.2"
    assert store.names("obs").tolist() == ["s1", "s2", "s3"]
    assert store.names("var").tolist() == ["TP53", "MYC"]
    assert store.column("var", "Description").tolist() == ["p53", "na"]
    np.testing.assert_array_equal(dense(store), np.array([[1, -1], [2.5, 1000], [np.nan, np.nan]], dtype=np.float32))


def test_gctx_is_what_cmappy_reads(tmp_path: Path) -> None:
    path = write_gctx(tmp_path / "plate.gctx", gct_screen())
    check_like_cmappy(open_store(path), path)


def test_loom_is_what_anndata_reads(tmp_path: Path) -> None:
    a = ad.AnnData(made().astype(np.float32))
    a.obs_names = [f"cell{i}" for i in range(N)]
    a.var_names = [f"GENE{j}" for j in range(G)]
    a.obs["perturbation"] = ["control", "GENE1", "GENE2"] * 12 + ["control"]
    a.var["gene_ids"] = [f"ENSG{j:011d}" for j in range(G)]
    a.layers["spliced"] = a.X * 2
    a.obsm["X_pca"] = np.random.default_rng(0).normal(size=(N, 3))
    path = tmp_path / "screen.loom"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a.write_loom(path, write_obsm_varm=True)
        oracle = ad.io.read_loom(path, X_name="", obs_names="obs_names", var_names="var_names")
    store = open_store(path)
    check_rows(store, oracle.X.toarray())
    check_rows(store, oracle.layers["spliced"].toarray(), "layers/spliced")
    np.testing.assert_allclose(dense(store, "obsm/X_pca"), a.obsm["X_pca"])
    assert store.names("obs").tolist() == oracle.obs_names.tolist()
    assert store.names("var").tolist() == oracle.var_names.tolist()
    assert store.column("obs", "perturbation").tolist() == oracle.obs["perturbation"].tolist()
    screen = open_screen(path, Roles(perturbation="perturbation", control="control"))
    np.testing.assert_allclose(screen.read_obsm("X_pca"), a.obsm["X_pca"])
    assert screen.name == "screen"


def every_format(folder: Path) -> dict[str, Path]:
    """The same counts in every format."""
    x = made()
    a = ad.AnnData(x.astype(np.float32))
    a.obs_names, a.var_names = [f"c{i}" for i in range(N)], [f"GENE{j}" for j in range(G)]
    paths = {
        "10x": write_10x(folder / "a.h5", x, version=3),
        "mtx": write_mtx(folder / "mtx", x, packed=True),
        "gct": write_gct(folder / "a.gct", a),
        "gctx": write_gctx(folder / "a.gctx", a),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a.write_loom(folder / "a.loom")
    return {**paths, "loom": folder / "a.loom"}


def test_small_blocks_change_nothing_and_a_copy_has_the_same_digest(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    expected = made().toarray()
    for name, path in every_format(tmp_path).items():
        copy = tmp_path / "copy" / path.name
        shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
        whole = open_store(path).matrix("X").digest()
        with pytest.MonkeyPatch.context() as patch:
            for module in (matrix_module, gct, mtx):
                patch.setattr(module, "BLOCK_ELEMENTS", 50)
            patch.setattr(matrix_module, "GAP_ELEMENTS", 3)
            check_rows(open_store(copy), expected)
            assert open_store(copy).matrix("X").digest() == whole, name


def test_a_table_of_labels_is_joined_by_name(tmp_path: Path) -> None:
    path = write_10x(tmp_path / "filtered.h5", made(), version=3)
    names = open_store(path).names("obs")
    order = np.random.default_rng(0).permutation(N)[:30]
    table = pd.DataFrame({"cell": names[order], "target": [f"GENE{i % 3}" if i % 2 else "NTC" for i in order]})
    table.loc[len(table)] = ["elsewhere-1", "GENE9"]
    table.to_csv(tmp_path / "labels.csv", index=False)
    roles = Roles(perturbation="target", control="NTC")
    screen = open_screen(path, roles, labels=tmp_path / "labels.csv")
    assert screen.n == 30
    expected = {names[i]: f"GENE{i % 3}" if i % 2 else "NTC" for i in order}
    found = screen.samples.perturbations[screen.samples.perturbation]
    assert dict(zip(screen.sample_names.tolist(), found.tolist(), strict=True)) == expected
    warnings_ = " ".join(screen.report["warnings"])
    assert "7 of 37 samples are not in" in warnings_ and "1 of 31 lines" in warnings_
    screen.close()
    next(iter(screen.blocks()))  # opened again with its labels


def test_names_without_their_endings() -> None:
    assert [stem(Path(name)) for name in ("a.gct.gz", "b.x.h5ad", "folder", "c.zarr", ".h5")] == [
        *("a", "b.x", "folder", "c", ".h5")
    ]
