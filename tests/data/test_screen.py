"""Roles, quality control, fingerprint and reading of a screen, against pandas and anndata in memory."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import anndata as ad
import h5py
import made
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from txeval.data import Roles, Screen, open_screen
from txeval.data import screen as module
from txeval.data.roles import single_gene
from txeval.errors import InputError


def names(labels, codes) -> list[str]:
    return labels[codes].tolist()


def opened(tmp_path: Path, a: ad.AnnData, roles: Roles = made.ROLES, *, layout: str = "csr", **options) -> Screen:
    return open_screen(made.write(a, tmp_path / "x.h5ad", layout=layout), roles, **options)


def warned(screen: Screen, *words: str) -> bool:
    return any(all(word in text for word in words) for text in screen.report["warnings"])


def test_roles_of_a_real_screen(data_dir: Path) -> None:
    path = data_dir / "norman2019_k562_crispra_500hvg.h5ad"
    obs = ad.read_h5ad(path).obs
    roles = Roles("perturbation", ("control",), batch="gem_group", cell_line="cell_type")
    with open_screen(path, roles, layer="counts") as screen:
        s = screen.samples
        assert names(s.perturbations, s.perturbation) == obs["perturbation"].tolist()
        assert names(s.batches, s.batch) == obs["gem_group"].tolist()
        assert s.is_control.tolist() == obs["control"].tolist()
        assert names(s.cell_lines, s.cell_line) == obs["cell_type"].tolist()
        assert s.perturbations.tolist() == sorted(obs["perturbation"].unique())
        targets = dict(zip(s.perturbations.tolist(), s.target_genes.tolist(), strict=True))
        assert targets["KLF1"] == "KLF1" and targets["KLF1+MAP2K6"] == "" and targets["control"] == ""
        assert sum(bool(t) for t in targets.values()) == 18
        assert warned(screen, "15 perturbations are combinations")
        assert screen.report["n_batches"] == 8 and screen.report["n_perturbations"] == 33
        assert screen.name == "norman2019_k562_crispra_500hvg"


def test_quality_control_of_a_real_screen(data_dir: Path) -> None:
    path = data_dir / "papalexi2021_thp1_ecciteseq_299genes.h5ad"
    a = ad.read_h5ad(path)
    totals = np.asarray(a.X.sum(1)).ravel()
    assert np.array_equal(totals, a.obs["total_counts_panel"])
    done = []
    roles = Roles("perturbation", ("non-targeting",), batch="bio_rep", target_gene="perturbation")
    with open_screen(
        path, roles, min_counts=186, max_elements=500_000, progress=lambda *step: done.append(step)
    ) as screen:
        kept = np.flatnonzero(totals > 186)  # above, not at least: 138 samples have 186
        assert np.sum(totals == 186) > 0
        np.testing.assert_array_equal(screen.kept, kept)
        np.testing.assert_array_equal(screen.totals, totals[kept])
        assert screen.report["dropped"] == {"total count not above 186": len(totals) - len(kept)}
        assert screen.report["n_kept"] == screen.n == screen.samples.n == len(kept)
        assert screen.sample_names.tolist() == a.obs_names[kept].tolist()
        assert done[-1][:2] == (len(totals), len(totals)) and len(done) > 1
        rows = np.array([5, 0, screen.n - 1])
        (_, block), *_ = screen.blocks(rows)
        np.testing.assert_array_equal(block.toarray(), a.X[kept[rows]].toarray())
    with open_screen(path, roles) as screen:
        assert screen.n == len(totals) and screen.report["dropped"] == {}
        assert "not asked for" in screen.report["quality_control"]
        np.testing.assert_array_equal(screen.totals, totals)


def test_quality_control_is_for_counts_only(tmp_path: Path) -> None:
    with opened(tmp_path, made.adata(x=np.log1p(made.counts())), scale="continuous", min_counts=1000) as screen:
        assert screen.n == 60
        assert "not applied" in screen.report["quality_control"] and warned(screen, "quality control not applied")


@pytest.mark.parametrize("layout", list(made.LAYOUTS))
def test_same_samples_from_every_layout(tmp_path: Path, layout: str) -> None:
    x = made.counts()
    with opened(tmp_path, made.adata(x=x), layout=layout, min_counts=20) as screen:
        np.testing.assert_array_equal(screen.kept, np.flatnonzero(x.sum(1) > 20))
        np.testing.assert_array_equal(screen.matrix(), x[x.sum(1) > 20])


def test_controls_by_several_labels_and_by_column(tmp_path: Path) -> None:
    a = made.adata()
    a.obs["perturbation"] = pd.Categorical(np.resize(["NT1", "NT2", "G1", "G2"], 60))
    a.obs["flag"] = a.obs["perturbation"].isin(["NT1", "NT2"])
    path = made.write(a, tmp_path / "x.h5ad")
    with open_screen(path, Roles("perturbation", ("NT1", "NT2"))) as by_label:
        expected = by_label.samples
    assert expected.is_control.tolist() == a.obs["flag"].tolist()
    assert names(expected.perturbations, expected.perturbation) == a.obs["perturbation"].tolist()
    for spelled in (
        a.obs["flag"],
        a.obs["flag"].astype("boolean"),
        a.obs["flag"].astype(int),
        a.obs["flag"].astype(float),
        a.obs["flag"].astype(str),
        pd.Categorical(a.obs["flag"].astype(str).str.upper()),
        pd.Categorical(a.obs["flag"]),
    ):
        b = a.copy()
        b.obs["flag"] = spelled
        made.write(b, path)
        with open_screen(path, Roles("perturbation", control_column="flag")) as screen:
            np.testing.assert_array_equal(screen.samples.is_control, expected.is_control)
            said = warned(screen, "rather than true/false")
            assert said == (getattr(b.obs["flag"].dtype, "name", "") not in ("bool", "boolean"))


def test_one_control_label_may_be_a_plain_text() -> None:
    assert Roles("p", "control").control == ("control",)  # type: ignore[arg-type]
    assert Roles("p", ["a", "b"]).control == ("a", "b")  # type: ignore[arg-type]


@pytest.mark.parametrize("gap", [np.nan, "", "nan", "NaN", " ", "<NA>"])
def test_samples_without_a_label_are_dropped_and_counted(tmp_path: Path, gap) -> None:
    a = made.adata()
    labels = a.obs["perturbation"].astype(object).to_numpy().copy()
    batches = a.obs["batch"].astype(object).to_numpy().copy()
    labels[[3, 7]] = gap
    batches[[7, 20, 21]] = gap
    a.obs["perturbation"], a.obs["batch"] = pd.Categorical(labels), pd.Categorical(batches)
    with opened(tmp_path, a) as screen:
        assert screen.report["dropped"] == {
            "no perturbation label in 'perturbation'": 2,
            "no batch label in 'batch'": 2,  # row 7 counts once
        }
        assert screen.kept.tolist() == sorted(set(range(60)) - {3, 7, 20, 21})
        assert warned(screen, "2 samples dropped", "no perturbation label", "3, 7")
        assert not set(map(str.strip, screen.samples.perturbations)) & {"", "nan", "NaN", "<NA>"}
        assert names(screen.samples.perturbations, screen.samples.perturbation) == labels[screen.kept].tolist()


def test_a_control_label_is_never_missing(tmp_path: Path) -> None:
    a = made.adata()
    a.obs["perturbation"] = pd.Categorical(np.where(a.obs["is_control"], "nan", a.obs["perturbation"].astype(str)))
    with opened(tmp_path, a, Roles("perturbation", ("nan",))) as screen:
        assert screen.n == 60 and screen.samples.is_control.sum() == 12


def test_controls_without_a_perturbation_label_are_labelled(tmp_path: Path) -> None:
    a = made.adata()
    labels = a.obs["perturbation"].astype(object).to_numpy().copy()
    labels[a.obs["is_control"].to_numpy()] = None
    a.obs["perturbation"] = pd.Categorical(labels)
    with opened(tmp_path, a, Roles("perturbation", control_column="is_control", batch="batch")) as screen:
        s = screen.samples
        assert screen.n == 60
        assert set(names(s.perturbations, s.perturbation[s.is_control])) == {"control"}
        assert s.perturbations.tolist() == ["G1", "G1+G2", "G2", "G3", "control"]
        assert warned(screen, "12 controls have no label")


def test_integer_float_and_boolean_labels(tmp_path: Path) -> None:
    a = made.adata()
    a.obs["float_lane"] = a.obs["lane"].astype(float)
    a.obs.loc[a.obs_names[5], "float_lane"] = np.nan  # what pandas makes of integers with a gap
    for column in ("lane", "float_lane"):
        with opened(tmp_path, a, Roles("perturbation", ("control",), batch=column)) as screen:
            assert screen.samples.batches.tolist() == ["1", "2", "3"]
            assert screen.report["dropped"] == ({} if column == "lane" else {"no batch label in 'float_lane'": 1})
            got = names(screen.samples.batches, screen.samples.batch)
            assert got == [str(v) for v in a.obs["lane"].to_numpy()[screen.kept]]
    with opened(tmp_path, a, Roles("lane", ("3",), batch="is_control")) as screen:
        assert screen.samples.batches.tolist() == ["False", "True"]
        assert screen.samples.target_genes.tolist() == ["", "", ""]


def test_no_batch_column_is_one_batch_and_said(tmp_path: Path) -> None:
    with opened(tmp_path, made.adata(), Roles("perturbation", ("control",))) as screen:
        assert screen.samples.batches.tolist() == ["all"] and not screen.samples.batch.any()
        assert warned(screen, "no batch column is given")


def test_target_genes(tmp_path: Path) -> None:
    a = made.adata()
    target = {"control": "", "G1": "G1", "G2": "G9", "G3": "NOT-MEASURED", "G1+G2": "G1"}
    a.obs["target"] = pd.Categorical(a.obs["perturbation"].astype(str).map(target))
    a.obs["guide"] = np.resize(["x", "y", "z"], 60)
    with opened(tmp_path, a, Roles("perturbation", ("control",), None, "batch", "target")) as screen:
        s = screen.samples
        assert dict(zip(s.perturbations.tolist(), s.target_genes.tolist(), strict=True)) == target
    with opened(tmp_path, a, Roles("perturbation", ("control",), target_gene="guide")) as screen:
        assert not any(screen.samples.target_genes)
        assert warned(screen, "4 perturbations have several genes in 'guide'")
    with opened(tmp_path, a) as screen:
        assert screen.samples.target_genes.tolist() == ["G1", "", "G2", "G3", ""]


def test_single_gene() -> None:
    for label in ("TP53", "HLA-A", "ENSG00000141510.5", "C3orf72", "7SK", "Trp53"):
        assert single_gene(label) == label
    for label in ("A+B", "KLF1_MAP2K6", "A|B", "A,B", "12", "", "drug X", "a/b"):
        assert single_gene(label) == ""
    assert single_gene("Y_RNA", {"Y_RNA"}) == "Y_RNA"


def test_oddities_are_said(tmp_path: Path) -> None:
    a = made.adata()
    labels = a.obs["perturbation"].astype(object).to_numpy().copy()
    labels[1], labels[2], labels[3] = "unassigned", "g1", "none"
    batch = a.obs["batch"].astype(object).to_numpy().copy()
    batch[labels == "control"] = "b0"
    a.obs["perturbation"], a.obs["batch"] = pd.Categorical(labels), pd.Categorical(batch)
    a.obs["line"] = pd.Categorical(["K562"] * 59 + [None])
    a.obs_names = ["same", "same", *a.obs_names[2:]]
    a.var_names = ["G1", "G1", *a.var_names[2:]]
    with opened(tmp_path, a, Roles("perturbation", ("control",), batch="batch", cell_line="line")) as screen:
        assert warned(screen, "1 samples have the name of another") and not screen.has_unique_names
        assert warned(screen, "1 genes have the name of another")
        assert warned(screen, "2 of 3 batches have no controls", "b1, b2")
        assert warned(screen, "2 of 6 perturbations have fewer than 2 samples")
        assert warned(screen, "'unassigned'", "like any other")
        assert warned(screen, "'perturbation' that stand for a missing perturbation: 'none' (1)")
        assert warned(screen, "differ only in case", "'G1', 'g1'")
        assert warned(screen, "1 samples have no cell line")
        assert screen.samples.cell_lines.tolist() == ["(missing)", "K562"]
    with opened(tmp_path, made.adata()) as screen:
        assert screen.has_unique_names
        assert screen.report["warnings"] == ["1 perturbations are combinations, without a single target: G1+G2"]


def test_a_label_of_controls_and_of_perturbed_samples_is_said(tmp_path: Path) -> None:
    a = made.adata()
    a.obs["is_control"] = np.arange(60) < 7
    with opened(tmp_path, a, Roles("perturbation", control_column="is_control")) as screen:
        assert warned(screen, "5 labels are carried by controls and by perturbed samples")


def test_gene_symbols_from_a_column(tmp_path: Path) -> None:
    a = made.adata()
    symbols = pd.Series([f"S{j}" for j in range(12)], index=a.var_names)
    symbols.iloc[4] = np.nan
    a.var["symbol"] = pd.Categorical(symbols)
    roles = Roles("perturbation", ("control",), batch="batch", gene_symbol="symbol")
    with opened(tmp_path, a, roles) as screen:
        assert screen.genes.tolist() == [f"S{j}" if j != 4 else "G4" for j in range(12)]
        assert warned(screen, "1 genes have no 'symbol'")
        assert warned(screen, "none of the 3 target genes is among the 12 measured genes")


def test_embeddings_in_the_file(tmp_path: Path) -> None:
    x = made.counts()
    a = made.adata(x=x)
    a.obsm["sparse"] = sp.csr_matrix(x)
    a.obsm["table"] = pd.DataFrame({"a": np.arange(60.0), "b": np.arange(60)}, index=a.obs_names)
    a.obsm["half"] = a.obsm["X_pca"].astype(np.float16)
    a.obsm["text"] = pd.DataFrame({"a": ["x"] * 60}, index=a.obs_names)
    with opened(tmp_path, a, min_counts=20) as screen:
        assert sorted(screen.obsm_keys()) == ["X_pca", "half", "sparse", "table", "text"]
        kept = screen.kept
        assert 0 < len(kept) < 60
        for key in ("X_pca", "half"):
            got = screen.read_obsm(key)
            assert got.dtype == a.obsm[key].dtype and screen.obsm_shape(key) == got.shape
            np.testing.assert_array_equal(got, a.obsm[key][kept])
        np.testing.assert_array_equal(screen.read_obsm("sparse"), x[kept])
        np.testing.assert_array_equal(screen.read_obsm("table"), a.obsm["table"].to_numpy()[kept])
        rows = np.array([4, 0, 4])
        np.testing.assert_array_equal(screen.read_obsm("X_pca", rows), a.obsm["X_pca"][kept[rows]])
        np.testing.assert_array_equal(screen.read_obsm("X_pca", slice(2, 9)), a.obsm["X_pca"][kept[2:9]])
        with pytest.raises(InputError, match="no embedding in obsm called 'X_pcs'") as caught:
            screen.read_obsm("X_pcs")
        assert "X_pca" in caught.value.remedy
        with pytest.raises(InputError, match="column 'a' of obsm/text does not hold numbers"):
            screen.read_obsm("text")


def test_an_embedding_of_another_length_is_refused(tmp_path: Path) -> None:
    path = made.write(made.adata(), tmp_path / "x.h5ad")
    made.rewrite_matrix(path, "obsm/X_pca", np.zeros((59, 3)))
    with open_screen(path, made.ROLES) as screen, pytest.raises(InputError, match=r"59 rows.*60 samples"):
        screen.read_obsm("X_pca")


@pytest.mark.parametrize("limit", [module.MATRIX_IN_MEMORY_BYTES, 0])
def test_matrix_as_an_embedding(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MATRIX_IN_MEMORY_BYTES", limit)
    x = made.counts()
    a = made.adata(x=x)
    a.layers["z"] = np.random.default_rng(0).normal(size=x.shape)
    with opened(tmp_path, a, min_counts=20, max_elements=100) as screen:
        for key, expected in (("X", x), ("layer:z", a.layers["z"].astype(np.float32))):
            got = screen.matrix(key)
            assert got.dtype == np.float32 and isinstance(got, np.memmap) == (limit == 0)
            np.testing.assert_array_equal(got, expected[screen.kept])
        with pytest.raises(InputError, match="no layer called 'zz'"):
            screen.matrix("layer:zz")
        with pytest.raises(InputError, match="no matrix of a screen"):
            screen.matrix("z")


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_pickling_opens_the_file_again(tmp_path: Path, suffix: str) -> None:
    x = made.counts(5_000, 50)
    path = made.write(made.adata(x=x), tmp_path / f"x.{suffix}", layout="dense")
    screen = open_screen(path, made.ROLES, min_counts=100)
    list(screen.blocks())
    data = pickle.dumps(screen)
    assert len(data) < screen.n * 60, "neither the matrix nor the names travel"
    other = pickle.loads(data)
    assert other.fingerprint == screen.fingerprint and other.report == screen.report
    np.testing.assert_array_equal(other.matrix(), x[screen.kept])
    assert other.sample_names.tolist() == screen.sample_names.tolist()
    # In another process, as the workers do.
    (tmp_path / "screen.pickle").write_bytes(data)
    code = (
        "import pickle, sys; s = pickle.load(open(sys.argv[1], 'rb'));"
        "print(s.fingerprint, sum(float(b.sum()) for _, b in s.blocks()))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "screen.pickle")], capture_output=True, text=True, check=True
    ).stdout.split()
    assert out == [screen.fingerprint, str(float(x[screen.kept].sum()))]
    screen.close()
    other.close()
    if suffix == "zarr":
        shutil.rmtree(path)
    made.write(made.adata(n=10), path)
    with pytest.raises(InputError, match="changed since it was opened"):
        list(pickle.loads(data).blocks())


def test_a_closed_screen_opens_again(tmp_path: Path) -> None:
    with opened(tmp_path, made.adata()) as screen:
        before = screen.matrix()
    np.testing.assert_array_equal(screen.matrix(), before)
    screen.close()
    screen.close()


def test_fingerprint(tmp_path: Path) -> None:
    """The same for a copy under another name, another for anything that a score can depend on."""
    a = made.adata()
    path = made.write(a, tmp_path / "x.h5ad")
    copy = tmp_path / "other.h5ad"
    shutil.copy(path, copy)
    base = open_screen(path, made.ROLES).fingerprint
    assert open_screen(copy, made.ROLES, name="another name").fingerprint == base
    assert open_screen(path, made.ROLES, max_elements=30).fingerprint == base
    packed = made.write(a, tmp_path / "packed.h5ad", compression="gzip")
    assert open_screen(packed, made.ROLES).fingerprint == base

    def changed(what: str) -> str:
        b = a.copy()
        if what == "value":
            b.X[17, 3] += 1
        elif what == "label":
            b.obs["perturbation"] = b.obs["perturbation"].to_numpy()[::-1]
        elif what == "batch":
            b.obs["batch"] = b.obs["batch"].to_numpy()[::-1]
        elif what == "name":
            b.obs_names = ["other", *b.obs_names[1:]]
        elif what == "gene":
            b.var_names = ["other", *b.var_names[1:]]
        elif what == "order":
            b = b[::-1].copy()
        file = made.write(b, tmp_path / f"{what}.h5ad")
        roles = Roles("perturbation", ("control", "G3"), batch="batch") if what == "control" else made.ROLES
        if what == "target":
            roles = Roles("perturbation", ("control",), batch="batch", target_gene="batch")
        scale = "continuous" if what == "scale" else None
        return open_screen(file, roles, scale=scale, min_counts=20 if what == "qc" else 0).fingerprint

    whats = ["value", "label", "batch", "name", "gene", "order", "control", "target", "scale", "qc"]
    prints = {what: changed(what) for what in whats}
    assert len({base, *prints.values()}) == len(whats) + 1


def test_the_door_is_cheap(tmp_path: Path) -> None:
    """A file of 300,000 x 8,000 values (9.6 GB) opens without reading them; they are not even stored here."""
    n, g = 300_000, 8_000
    path = made.write(made.adata(n=n, g=1), tmp_path / "x.h5ad", layout="dense")
    with h5py.File(path, "r+") as file:
        del file["X"]
        x = file.create_dataset("X", shape=(n, g), dtype="float32", chunks=(64, g), fillvalue=1)
        x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        del file["var"]
        ad.io.write_elem(file, "var", pd.DataFrame(index=[f"G{j}" for j in range(g)]))
    tracemalloc.start()
    with open_screen(path, made.ROLES) as screen:
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        assert (screen.n, screen.n_genes) == (n, g)
        assert screen.scale == "counts" and "samples" in screen.scale_note
        assert len(screen.fingerprint) == 64  # of a sample of the values
        (_, block), *_ = screen.blocks(np.array([n - 1, 0]))
        assert block.shape == (2, g)
    assert peak < 250  # names and labels of 300,000 samples, and 4 M values


def test_rows_out_of_range(tmp_path: Path) -> None:
    with opened(tmp_path, made.adata()) as screen:
        assert list(screen.blocks(np.array([], dtype=np.int64))) == []
        for bad in (-1, 60):
            with pytest.raises(IndexError):
                list(screen.blocks(np.array([0, bad])))
