"""Files that are something else, damaged or hostile: exit status 2, a message that helps, nothing written."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from txeval.cli import main

N, G = 12, 5


def screen(**columns: Any) -> ad.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "perturbation": np.resize(["control", "G1", "G2"], N),
            "batch": np.resize(["a", "b"], N),
            "weight": np.linspace(0.1, 1.3, N),
            **columns,
        },
        index=[f"c{i}" for i in range(N)],
    )
    return ad.AnnData(
        sp.csr_matrix(rng.poisson(2, (N, G)).astype("f4")), obs=obs, var=pd.DataFrame(index=list("VWXYZ"))
    )


@dataclass
class Place:
    """Where a case lays out its bad input."""

    folder: Path

    def write(self, name: str, content: str | bytes) -> list[str]:
        (self.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return ["data", "describe", name]

    def h5ad(self, name: str = "screen.h5ad", **columns: Any) -> str:
        screen(**columns).write_h5ad(self.folder / name)
        return name

    def hdf5(self, name: str, fill: Callable[[h5py.File], object]) -> list[str]:
        with h5py.File(self.folder / name, "w") as file:
            fill(file)
        return ["data", "describe", name]

    def mtx(self, **files: str) -> list[str]:
        folder = self.folder / "cells"
        folder.mkdir()
        whole = {
            "matrix.mtx": "%%MatrixMarket matrix coordinate integer general\n%\n3 2 3\n1 1 4\n3 1 1\n2 2 7\n",
            "features.tsv": "E1\tA\tGene Expression\nE2\tB\tGene Expression\nE3\tC\tGene Expression\n",
            "barcodes.tsv": "AAAA-1\nCCCC-1\n",
        }
        for name, content in {**whole, **{key.replace("__", "."): value for key, value in files.items()}}.items():
            if content:
                (folder / name).write_text(content)
        return ["data", "describe", "cells"]


GCT = "#1.3\n2\t3\t1\t1\nid\tsymbol\ts1\ts2\ts3\npert\tna\tDMSO\ta\tb\ng1\tTP53\t1\t2\t3\ng2\tMYC\t4\t5\t6\n"


def tenx(file: h5py.File, **changes: Any) -> None:
    parts: dict[str, Any] = {
        "barcodes": np.array([b"AAAA-1", b"CCCC-1"]),
        "data": np.array([1, 2, 3], dtype=np.int32),
        "indices": np.array([0, 2, 1]),
        "indptr": np.array([0, 2, 3]),
        "shape": np.array([3, 2]),
        "features/id": np.array([b"E1", b"E2", b"E3"]),
        "features/name": np.array([b"A", b"B", b"C"]),
        "features/feature_type": np.array([b"Gene Expression"] * 3),
    }
    for name, values in {**parts, **{key.replace("__", "/"): value for key, value in changes.items()}}.items():
        if values is not None:
            file[f"matrix/{name}"] = values


def gctx(file: h5py.File, **changes: Any) -> None:
    parts: dict[str, Any] = {
        "0/DATA/0/matrix": np.ones((3, 2), dtype=np.float32),
        "0/META/COL/id": np.array([b"s1", b"s2", b"s3"]),
        "0/META/COL/pert": np.array([b"DMSO", b"a", b"b"]),
        "0/META/ROW/id": np.array([b"g1", b"g2"]),
    }
    file.attrs["version"] = changes.pop("version", "GCTX1.0")
    for name, values in {**parts, **{key.replace("__", "/"): value for key, value in changes.items()}}.items():
        if values is not None:
            file[name] = values


def loom(file: h5py.File, **changes: Any) -> None:
    parts: dict[str, Any] = {
        "matrix": np.ones((2, 3), dtype=np.float32),
        "row_attrs/Gene": np.array([b"TP53", b"MYC"]),
        "col_attrs/CellID": np.array([b"c1", b"c2", b"c3"]),
    }
    for name, values in {**parts, **{key.replace("__", "/"): value for key, value in changes.items()}}.items():
        if values is not None:
            file[name] = values
    file.require_group("row_attrs")


def arrow(folder: Path) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame({"a": [1]}).to_parquet(buffer)
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("../../evil.h5ad", "x")
    return buffer.getvalue()


def labels(place: Place, name: str, content: str | bytes) -> list[str]:
    place.write(name, content)
    return ["data", "describe", place.h5ad(), "--labels", name]


def outs(place: Place) -> list[str]:
    (place.folder / "run1" / "filtered_feature_bc_matrix").mkdir(parents=True)
    return ["data", "describe", "run1"]


def two_matrices(place: Place) -> list[str]:
    words = place.mtx()
    (place.folder / "cells" / "GSM2_matrix.mtx").write_text("%%MatrixMarket")
    return words


def cut(place: Place, share: float) -> list[str]:
    path = place.folder / place.h5ad("whole.h5ad")
    content = path.read_bytes()
    path.unlink()
    return place.write("screen.h5ad", content[: int(share * len(content))])


def wrong_length(place: Place) -> list[str]:
    name = place.h5ad()
    with h5py.File(place.folder / name, "r+") as file:
        del file["obs/weight"]
        ad.io.write_elem(file, "obs/weight", np.arange(3.0))
    return ["data", "describe", name]


def run(place: Place, *flags: str, **columns: Any) -> list[str]:
    return ["validate", place.h5ad(**columns), *flags, "--embedding", "pca", "--min-counts", "0"]


def both(place: Place) -> list[str]:
    place.write("run.yaml", f"screen: {place.h5ad()}\nroles: {{perturbation: perturbation, control: control}}\n")
    return ["data", "subset", "run.yaml", "-n", "0", "--out", "part.h5ad"]


PERTURBATION = ("--perturbation", "perturbation", "--control", "control")
GZIP = gzip.compress(GCT.encode() * 50)

CASES: dict[str, tuple[Callable[[Place], list[str]], tuple[str, ...]]] = {
    # Something else under the name of a screen
    "no such file": (
        lambda p: ["data", "describe", p.h5ad("screen.h5ad").replace("screen", "scren")],
        ("screen.h5ad?",),
    ),
    "an empty file": (lambda p: p.write("screen.h5ad", b""), ("empty (0 bytes)",)),
    "an empty 10x file": (lambda p: p.write("filtered.h5", b""), ("empty (0 bytes)",)),
    "text": (lambda p: p.write("screen.h5ad", "cell,gene\n1,2\n"), ("not an HDF5 file", "10x", "loom")),
    "an R object": (lambda p: p.write("screen.h5ad", b"RDX3\n..."), ("an R file", "zellkonverter")),
    "a packed R object": (lambda p: p.write("s.rds", gzip.compress(b"RDX3\n...")), ("an R file",)),
    "a pickle": (lambda p: p.write("screen.h5ad", pickle.dumps([1])), ("a Python pickle", "never loaded")),
    "a NumPy array": (lambda p: p.write("screen.h5ad", b"\x93NUMPY\x01\x00"), ("a NumPy array without labels",)),
    "a Parquet table": (lambda p: p.write("screen.h5ad", arrow(p.folder)), ("a Parquet table",)),
    "a zip archive": (lambda p: p.write("screen.h5ad", archive()), ("a zip archive",)),
    "a PDF": (lambda p: p.write("screen.h5ad", b"%PDF-1.7"), ("a PDF",)),
    "a web page": (
        lambda p: p.write("screen.h5ad", "<!DOCTYPE html><h1>404</h1>"),
        ("a web page", "download it again"),
    ),
    "an answer of a server": (lambda p: p.write("a.h5", "<?xml version='1.0'?><Error/>"), ("an XML document",)),
    "a Git LFS pointer": (lambda p: p.write("screen.h5ad", "version https://git-lfs.github.com/spec/v1\n"), ("LFS",)),
    "MuData": (
        lambda p: p.hdf5("a.h5mu.h5", lambda f: [f.create_group(g) for g in ("mod", "obs", "var")]),
        ("MuData",),
    ),
    "h5Seurat": (
        lambda p: p.hdf5("a.h5", lambda f: [f.create_group(g) for g in ("assays", "cell.names")]),
        ("h5Seurat",),
    ),
    "molecules": (
        lambda p: p.hdf5("m.h5", lambda f: [f.create_group(g) for g in ("barcode_idx", "umi")]),
        ("molecule_info",),
    ),
    "any HDF5": (lambda p: p.hdf5("x.h5", lambda f: f.create_group("stuff")), ("not an AnnData file", "stuff")),
    "an empty folder": (
        lambda p: [(p.folder / "cells").mkdir(), "data", "describe", "cells"][1:],
        ("not a Zarr store",),
    ),
    "outs of Cell Ranger": (outs, ("run1/filtered_feature_bc_matrix", "name one of them")),
    # Damaged
    "an HDF5 file cut short": (lambda p: cut(p, 0.6), ("it has", "but should have", "bytes")),
    "an HDF5 file cut to its header": (lambda p: cut(p, 0.001), ("cannot be opened as HDF5",)),
    "a gzip archive cut short": (lambda p: p.write("plate.gct.gz", GZIP[: len(GZIP) // 2]), ("plate.gct.gz", "gzip")),
    "a column of another length": (wrong_length, ("obs column 'weight' has 3 values for 12 samples",)),
    # GCT
    "GCT of another version": (
        lambda p: p.write("p.gct", GCT.replace("#1.3", "#1.1")),
        ("version '1.1'", "1.2 and 1.3"),
    ),
    "GCT without its sizes": (lambda p: p.write("p.gct", "#1.3\n\nid\n"), ("line 2 is ''", "4 whole numbers")),
    "GCT 1.2 with the sizes of 1.3": (lambda p: p.write("p.gct", GCT.replace("#1.3", "#1.2")), ("2 whole numbers",)),
    "GCT with negative sizes": (lambda p: p.write("p.gct", GCT.replace("2\t3\t1\t1", "-2\t3\t1\t1")), ("'-2 3 1 1'",)),
    "GCT with fewer genes": (
        lambda p: p.write("p.gct", GCT.replace("2\t3\t1", "3\t3\t1")),
        ("promises 3 genes", "are 2"),
    ),
    "GCT with more genes": (
        lambda p: p.write("p.gct", GCT.replace("2\t3\t1", "1\t3\t1")),
        ("promises 1 genes", "line 2"),
    ),
    "GCT with more samples": (
        lambda p: p.write("p.gct", GCT.replace("2\t3\t1", "2\t4\t1")),
        ("line 3 has 5", "have 6"),
    ),
    "GCT with a short line": (
        lambda p: p.write("p.gct", GCT.replace("\t5\t6", "\t5")),
        ("line 6 has 4 fields, not 5",),
    ),
    "GCT with a text value": (lambda p: p.write("p.gct", GCT.replace("\t5\t", "\tfive\t")), ("'g2'", "'s2'", "'five'")),
    "GCT in another encoding": (lambda p: p.write("p.gct", GCT.replace("DMSO", "µM").encode("latin-1")), ("UTF-8",)),
    "GCT of an endless size": (
        lambda p: p.write("p.gct", GCT.replace("2\t3\t1", "99999999999\t3\t1")),
        ("99,999,999,999",),
    ),
    "GCTX without samples": (
        lambda p: p.hdf5("p.gctx", lambda f: gctx(f, **{"0__META__COL__id": None})),
        ("no /0/META/COL/id",),
    ),
    "GCTX the other way round": (
        lambda p: p.hdf5("p.gctx", lambda f: gctx(f, **{"0__DATA__0__matrix": np.ones((2, 3), "f4")})),
        ("2 x 3", "3 samples and 2 genes", "other way round"),
    ),
    "GCTX with labels left over": (
        lambda p: p.hdf5("p.gctx", lambda f: gctx(f, **{"0__META__COL__pert": np.array([b"a"])})),
        ("'pert' has 1 values for 3 names",),
    ),
    "GCTX of another version": (
        lambda p: p.hdf5("p.gctx", lambda f: gctx(f, version="GCTX2.0")),
        ("'GCTX2.0'", "cmapPy"),
    ),
    # loom
    "loom without names of genes": (
        lambda p: p.hdf5("a.loom", lambda f: loom(f, row_attrs__Gene=None)),
        ("the genes have no names", "row attribute Gene"),
    ),
    "loom with an attribute of another length": (
        lambda p: p.hdf5("a.loom", lambda f: loom(f, col_attrs__plate=np.array([b"P1"]))),
        ("col_attrs/plate", "each of the 3 cells", "(1,)"),
    ),
    "loom of one dimension": (
        lambda p: p.hdf5("a.loom", lambda f: loom(f, matrix=np.ones(3))),
        ("/matrix is not a matrix",),
    ),
    "loom of text": (
        lambda p: p.hdf5("a.loom", lambda f: loom(f, matrix=np.array([[b"a"] * 3] * 2))),
        ("X holds values of type",),
    ),
    # 10x
    "10x of an unknown version": (
        lambda p: p.hdf5(
            "a.h5", lambda f: tenx(f, features__id=None, features__name=None, features__feature_type=None)
        ),
        ("10x Genomics file of an unknown version", "no features", "it has barcodes"),
    ),
    "10x without names of genes": (
        lambda p: p.hdf5("a.h5", lambda f: tenx(f, features__name=None)),
        ("no id or no name",),
    ),
    "10x of another shape": (
        lambda p: p.hdf5("a.h5", lambda f: tenx(f, shape=np.array([3, 9]))),
        ("2 barcodes", "x 9"),
    ),
    "10x with pointers that run backwards": (
        lambda p: p.hdf5("a.h5", lambda f: tenx(f, indptr=np.array([0, 5, 3]))),
        ("do not fit together",),
    ),
    "10x with an index outside": (
        lambda p: p.hdf5("a.h5", lambda f: tenx(f, indices=np.array([0, 7, 1]))),
        ("outside",),
    ),
    "10x of antibodies alone": (
        lambda p: p.hdf5("a.h5", lambda f: tenx(f, features__feature_type=np.array([b"Antibody Capture"] * 3))),
        ("none of its 3 features is of type 'Gene Expression'", "Antibody Capture"),
    ),
    "10x of two species": (
        lambda p: p.hdf5(
            "a.h5", lambda f: [f.create_group(f"{g}/{k}") for g in ("hg19", "mm10") for k in ("barcodes", "indptr")]
        ),
        ("2 genomes (hg19, mm10)",),
    ),
    # Matrix Market
    "mtx with another header": (lambda p: p.mtx(matrix__mtx="%%MatrixMarket vector\n3 2 3\n"), ("first line",)),
    "mtx that is dense": (
        lambda p: p.mtx(matrix__mtx="%%MatrixMarket matrix array real general\n3 2\n"),
        ("array real",),
    ),
    "mtx that is symmetric": (
        lambda p: p.mtx(matrix__mtx="%%MatrixMarket matrix coordinate real symmetric\n3 3 0\n"),
        ("symmetric",),
    ),
    "mtx without its sizes": (
        lambda p: p.mtx(matrix__mtx="%%MatrixMarket matrix coordinate integer general\n%\n"),
        ("line 3 is ''", "rows, columns and values"),
    ),
    "mtx of another shape": (
        lambda p: p.mtx(barcodes__tsv="A\nB\nC\n"),
        ("3 x 2", "features.tsv has 3", "barcodes.tsv 3"),
    ),
    "mtx without barcodes": (lambda p: p.mtx(barcodes__tsv=""), ("no barcodes.tsv", "or .gz")),
    "mtx cut short": (
        lambda p: p.mtx(matrix__mtx="%%MatrixMarket matrix coordinate integer general\n3 2 3\n1 1 4\n"),
        ("promises 3 values, but there are 1",),
    ),
    "mtx with a row outside": (
        lambda p: p.mtx(matrix__mtx="%%MatrixMarket matrix coordinate integer general\n3 2 1\n9 1 4\n"),
        ("row 9", "1 to 3"),
    ),
    "mtx with row 0": (
        lambda p: p.mtx(matrix__mtx="%%MatrixMarket matrix coordinate integer general\n3 2 1\n0 1 4\n"),
        ("row 0",),
    ),
    "mtx with text for a value": (
        lambda p: p.mtx(matrix__mtx="%%MatrixMarket matrix coordinate integer general\n3 2 1\n1 1 many\n"),
        ("cannot read the values",),
    ),
    "mtx with a fraction for a count": (
        lambda p: p.mtx(matrix__mtx="%%MatrixMarket matrix coordinate integer general\n3 2 1\n1 1 0.5\n"),
        ("cannot read the values",),
    ),
    "two matrices in a folder": (two_matrices, ("2 matrices", "name the file")),
    # Tables of labels
    "labels that are no table": (lambda p: labels(p, "labels.xlsx", b"PK"), ("labels.xlsx", ".csv or .tsv")),
    "labels that are not there": (
        lambda p: ["data", "describe", p.h5ad(), "--labels", "no.csv"],
        ("no.csv", "no such file"),
    ),
    "labels of one column": (lambda p: labels(p, "labels.csv", "cell\nc1\n"), ("1 columns",)),
    "labels of other samples": (
        lambda p: labels(p, "labels.csv", "cell,g\nx1,a\n"),
        ("none of its 1 samples", "'x1'", "'c0'"),
    ),
    "labels twice": (lambda p: labels(p, "labels.csv", "cell,g\nc1,a\nc1,b\n"), ("'c1' has several lines",)),
    "labels that are there already": (
        lambda p: labels(p, "l.csv", "cell,batch\nc1,a\n"),
        ("'batch' is in", "rename it"),
    ),
    "labels that are empty": (lambda p: labels(p, "labels.tsv", ""), ("the file is empty",)),
    "labels cut short": (lambda p: labels(p, "l.csv.gz", gzip.compress(b"cell,g\n" * 99)[:30]), ("cannot be read",)),
    # Names
    "a name that climbs": (lambda p: ["data", "describe", "../../../etc/passwd"], ("passwd",)),
    "a name that no file can have": (lambda p: ["data", "describe", "x" * 400 + ".h5ad"], ("xxx",)),
    "a name with control characters": (lambda p: ["data", "describe", "a\x1b[31m.h5ad"], ("\\x1b", "no such file")),
    "a proposal that is no YAML": (lambda p: ["data", "describe", p.h5ad(), "--out", "run.txt"], ("run.txt", ".yaml")),
    "a proposal that is there": (
        lambda p: [p.write("run.yaml", "x: 1"), "data", "describe", p.h5ad(), "--out", "run.yaml"][1:],
        ("run.yaml is there already", "--overwrite"),
    ),
    "a proposal in a folder that is a file": (
        lambda p: [p.write("file", ""), "data", "describe", p.h5ad(), "--out", "file/run.yaml"][1:],
        ("run.yaml",),
    ),
    "a mistyped flag of an action": (
        lambda p: ["data", "describe", p.h5ad(), "--lables", "x.csv"],
        ("'--lables' in txeval data describe", "'--labels'"),
    ),
    "a mistyped file": (lambda p: ["data", "describe", p.h5ad().replace("h5ad", "h5da")], ("screen.h5ad?",)),
    "a mistyped data set": (lambda p: ["data", "describe", "replogle2022"], ("'replogle2022'", "'replogle_2022'")),
    # Labels
    "a label column of numbers": (
        lambda p: run(p, "--perturbation", "weight", "--control", "control"),
        ("'weight' holds decimal numbers (such as 0.1)", "perturbation labels"),
    ),
    "a batch column of numbers": (lambda p: run(p, *PERTURBATION, "--batch", "weight"), ("'weight'", "batch labels")),
    "a pattern that is none": (
        lambda p: run(p, *PERTURBATION, "--batch", "names~("),
        ("no regular expression", "names~"),
    ),
    "a pattern that finds nothing": (
        lambda p: run(p, *PERTURBATION, "--batch", "names~-([0-9]+)$"),
        ("finds nothing", "'c0'"),
    ),
    "a pattern of a column that is not there": (
        lambda p: run(p, *PERTURBATION, "--batch", "bach~x"),
        ("'bach~x'", "'batch'"),
    ),
    "a label to leave out that is not there": (
        lambda p: run(
            p, *PERTURBATION, "--exclude", "unasigned", perturbation=np.resize(["control", "G1", "unassigned"], N)
        ),
        ("'unasigned'", "'unassigned'"),
    ),
    "a control to leave out": (
        lambda p: run(p, *PERTURBATION, "--exclude", "control"),
        ("control and to be left out",),
    ),
    "controls that are left out as a column": (
        lambda p: run(p, "--perturbation", "perturbation", "--control-column", "batch"),
        ("'batch' is not a true/false column",),
    ),
    "a part of no samples": (both, ("0 is below 1",)),
}


@pytest.mark.parametrize("name", list(CASES))
def test_bad_file(
    name: str,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path_factory.mktemp("case")  # its name must not hold the words that a message is searched for
    monkeypatch.chdir(folder)
    monkeypatch.delenv("TXEVAL_DEBUG", raising=False)
    build, fragments = CASES[name]
    words = [str(word) for word in build(Place(folder))]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    status = main(words)
    out, err = capsys.readouterr()
    assert status == 2, err
    assert err.startswith("txeval: error: ")
    assert "Traceback" not in out + err
    assert "\n  -> " in err  # a remedy
    assert [fragment for fragment in fragments if fragment not in err] == [], err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_there_are_enough_kinds() -> None:
    assert len(CASES) >= 30


@pytest.mark.parametrize(
    "build",
    [
        lambda p: p.write("p.gct", GCT),
        lambda p: p.hdf5("p.gctx", gctx),
        lambda p: p.hdf5("a.loom", loom),
        lambda p: p.hdf5("a.h5", tenx),
        lambda p: p.mtx(),
        lambda p: ["data", "describe", p.h5ad()],
        lambda p: labels(p, "labels.csv", "cell,plate\nc1,a\n"),
        lambda p: run(p, *PERTURBATION, "--batch", "batch"),
    ],
)
def test_what_the_cases_start_from_is_well_formed(
    build: Callable[[Place], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(build(Place(tmp_path))) == 0
