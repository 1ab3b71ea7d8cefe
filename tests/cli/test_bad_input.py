"""Bad input of every kind through the real command line: exit status 2, a message that helps, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from txeval.cli import main

N, G = 96, 12


def make_screen() -> anndata.AnnData:
    """A tiny well-formed screen: 7 perturbations and controls in 4 batches."""
    rng = np.random.default_rng(0)
    labels = np.array(["non-targeting", *(f"GENE{i}" for i in range(7))])[np.arange(N) % 8]
    obs = pd.DataFrame(
        {
            "gene": pd.Categorical(labels),
            "batch": np.array(["b1", "b2", "b3", "b4"])[np.arange(N) // (N // 4)],
            "is_control": labels == "non-targeting",
            "score": rng.random(N),
            "empty": [""] * N,
        },
        index=[f"cell_{i}" for i in range(N)],
    )
    counts = rng.poisson(3, (N, G)).astype(np.float32)
    screen = anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"GENE{i}" for i in range(G)]))
    screen.layers["lognorm"] = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).astype(np.float32)
    screen.obsm["X_emb"] = rng.normal(size=(N, 5)).astype(np.float32)
    return screen


@dataclass
class Place:
    """Where a case lays out its bad input."""

    folder: Path
    screen: Path
    extra: list[str] = field(default_factory=list)

    def write(self, change: Callable[[anndata.AnnData], Any]) -> Path:
        """Write a changed screen; a change may return another object to write."""
        screen = make_screen()
        made = change(screen)
        path = self.folder / "changed.h5ad"
        (made if isinstance(made, anndata.AnnData) else screen).write_h5ad(path)
        return path

    def file(self, name: str, content: str | bytes = "") -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def npy(self, values: Any) -> str:
        path = self.folder / "embedding.npy"
        np.save(path, values)
        return str(path)

    def parquet(self, frame: pd.DataFrame) -> str:
        path = self.folder / "embedding.parquet"
        frame.to_parquet(path)
        return str(path)

    def command(self, screen: Path | str | None = None, **changes: str | list[str] | None) -> list[str]:
        """`txeval run` of a well-formed screen, but for the changes; None leaves a flag out."""
        flags: dict[str, str | list[str] | None] = {
            "perturbation": "gene",
            "control": "non-targeting",
            "batch": "batch",
            "embedding": "obsm:X_emb",
            "min-counts": "0",
            "tasks": "knn",
            "post-processing": "raw",
            "seeds": "1",
            "out": str(self.folder / "out"),
        }
        flags.update({name.replace("_", "-"): value for name, value in changes.items()})
        words = ["run", str(screen or self.screen)]
        for name, value in flags.items():
            if value is not None:
                words += [f"--{name}", *([value] if isinstance(value, str) else value)]
        return [*words, "--no-baseline", "--plain", *self.extra]


Case = Callable[[Place], list[str]]
CASES: dict[str, tuple[Case, tuple[str, ...]]] = {}


def case(name: str, *fragments: str) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        assert name not in CASES
        CASES[name] = (function, fragments)
        return function

    return add


def simple(name: str, *fragments: str, **changes: str | list[str] | None) -> None:
    """A case that only changes flags."""
    CASES[name] = (lambda place: place.command(**changes), fragments)


# Roles

simple("perturbation column that does not exist", "screen.h5ad", "'gen'", "'gene'", perturbation="gen")
simple("batch column that does not exist", "screen.h5ad", "'bacth'", "'batch'", batch="bacth")
simple("control column that does not exist", "'is_contrl'", "'is_control'", control=None, control_column="is_contrl")
simple("target gene column that does not exist", "'target'", target_gene="target")
simple("cell line column that does not exist", "'line'", cell_line="line")
simple("gene symbol column that does not exist", "'symbol'", gene_symbol="symbol")
simple("no perturbation column", "perturbation is missing", "column of obs", perturbation=None)
simple("no control named", "control", "--control", control=None)
simple("control label that does not exist", "'nontargeting'", "'non-targeting'", "gene", control="nontargeting")
simple("controls named by label and by column", "--control", "--control-column", control_column="is_control")
simple("control column that is no flag", "'gene'", control=None, control_column="gene")
simple("perturbation column of decimal numbers", "'score'", "decimal", perturbation="score")
simple("perturbation column without a label", "'empty'", "96", perturbation="empty")
simple("batch column without a label", "'empty'", "96", batch="empty")
simple("perturbation and batch from one column", "'gene'", "two columns", batch="gene")


@case("control column that marks no sample", "'is_control'", "none of the 96 samples")
def _(place: Place) -> list[str]:
    path = place.write(lambda a: a.obs.__setitem__("is_control", False))
    return place.command(path, control=None, control_column="is_control")


@case("only controls", "changed.h5ad", "no perturbed sample", "96 controls")
def _(place: Place) -> list[str]:
    return place.command(place.write(lambda a: a.obs.__setitem__("gene", "non-targeting")))


# The file

simple("screen that does not exist", "nowhere.h5ad", "no such file", screen="nowhere.h5ad")
CASES["empty file"] = (lambda p: p.command(p.file("empty.h5ad")), ("empty.h5ad", "empty"))
CASES["text file called h5ad"] = (lambda p: p.command(p.file("text.h5ad", "gene\tb\n" * 99)), ("text.h5ad",))
CASES["truncated file"] = (
    lambda p: p.command(p.file("cut.h5ad", p.screen.read_bytes()[:3000])),
    ("cut.h5ad", "3,000 bytes", "download it again"),
)
CASES["file of another kind"] = (lambda p: p.command(p.file("table.csv", "a,b\n1,2\n")), ("table.csv", ".h5ad"))


@case("HDF5 file that is no AnnData", "other.h5ad")
def _(place: Place) -> list[str]:
    import h5py

    with h5py.File(place.folder / "other.h5ad", "w") as handle:
        handle["numbers"] = np.arange(5)
    return place.command(place.folder / "other.h5ad")


@case("empty zarr folder", "screen.zarr")
def _(place: Place) -> list[str]:
    (place.folder / "screen.zarr").mkdir()
    return place.command(place.folder / "screen.zarr")


@case("screen without samples", "changed.h5ad", "0 samples")
def _(place: Place) -> list[str]:
    return place.command(place.write(lambda a: a[:0].copy()))


@case("screen without an expression matrix", "changed.h5ad", "X")
def _(place: Place) -> list[str]:
    return place.command(place.write(lambda a: anndata.AnnData(obs=a.obs, var=a.var, obsm=dict(a.obsm))))


# Values and their scale

simple("layer that does not exist", "screen.h5ad", "'lognrm'", "'lognorm'", layer="lognrm")
simple("unknown scale", "'count'", "'counts'", scale="count")
simple("fractions declared as counts", "counts", "not a whole number", layer="lognorm", scale="counts")
simple("counts declared as log1p", "whole number", "--scale log1p", "counts", scale="log1p")
simple("quality control of what are no counts", "--min-counts 500", "--scale log1p", min_counts="500", scale="log1p")
simple("quality control that leaves nothing", "1e+06", "all 96 samples", "--min-counts 0", min_counts="1000000")


@case("negative counts", "changed.h5ad", "-3", "negative", "counts")
def _(place: Place) -> list[str]:
    def change(a: anndata.AnnData) -> None:
        a.X[4, 2] = -3

    return place.command(place.write(change), scale="counts")


@case("NaN among the values", "changed.h5ad", "nan", "finite")
def _(place: Place) -> list[str]:
    def change(a: anndata.AnnData) -> None:
        a.X[4, 2] = np.nan

    return place.command(place.write(change))


# Embeddings

simple("no embedding", "embedding", "obsm:KEY", embedding=None)
simple("unknown embedder", "'pcaa'", "'pca'", embedding="pcaa")
simple("unknown option of an embedder", "'n_comps'", "pca", embedding="pca@n_comps=3")
simple("option of the wrong kind", "'many'", "pca", embedding="pca@components=many")
simple("obsm key that does not exist", "'X_em'", "'X_emb'", embedding="obsm:X_em")
simple("two embeddings of one label", "'mine'", "LABEL=SOURCE", embedding=["mine=obsm:X_emb", "mine=pca"])
simple("embedding file that does not exist", "nowhere.npy", embedding="nowhere.npy")
simple("embedding of an unknown kind", "embedding.xlsx", embedding="embedding.xlsx")
CASES["key of another file that does not exist"] = (
    lambda p: p.command(embedding=f"{p.screen}#obsm/X_other"),
    ("screen.h5ad", "X_other", "X_emb"),
)


def numbers(shape: tuple[int, ...] = (N, 5), bad: float | None = None) -> np.ndarray:
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    if bad is not None:
        values[7, 2] = bad
    return values


def named(values: np.ndarray, names: list[str]) -> pd.DataFrame:
    return pd.DataFrame(values, index=names, columns=[f"d{i}" for i in range(values.shape[1])])


NAMES = [f"cell_{i}" for i in range(N)]


def array_case(name: str, make: Callable[[], Any], *fragments: str, positional: bool = True) -> None:
    def build(place: Place) -> list[str]:
        place.extra = ["--positional"] if positional else []
        return place.command(embedding=place.npy(make()))

    CASES[name] = (build, ("embedding.npy", *fragments))


array_case("NaN in an embedding", lambda: numbers(bad=np.nan), "nan", "7")
array_case("infinity in an embedding", lambda: numbers(bad=np.inf), "inf", "7")
array_case("embedding with too few rows", lambda: numbers((N - 1, 5)), "95", "96")
array_case("embedding of one axis", lambda: numbers((N,)), "96", "samples x dimensions")
array_case("embedding without columns", lambda: numbers((N, 0)), "no columns")
array_case("embedding of text", lambda: np.full((N, 2), "a"), "<U1", "table of numbers")
array_case("embedding of objects", lambda: np.full((N, 2), None, dtype=object), "object")
array_case("embedding without names and without leave", numbers, "--positional", positional=False)
CASES["truncated embedding"] = (
    lambda p: [*p.command(embedding=str(p.file("cut.npy", Path(p.npy(numbers())).read_bytes()[:300]))), "--positional"],
    ("cut.npy",),
)


def frame_case(name: str, make: Callable[[], pd.DataFrame], *fragments: str) -> None:
    CASES[name] = (lambda place: place.command(embedding=place.parquet(make())), ("embedding.parquet", *fragments))


frame_case("names that do not match", lambda: named(numbers(), [f"other_{i}" for i in range(N)]), "other_0", "cell_0")
frame_case("names of some samples only", lambda: named(numbers()[:-1], NAMES[:-1]), "cell_95")
frame_case("duplicated names", lambda: named(numbers(), ["cell_0", "cell_0", *NAMES[2:]]), "cell_0")
frame_case("text where numbers are due", lambda: named(numbers(), NAMES).assign(kind="a"), "kind")


# What to compute

simple("unknown task", "'knnn'", "'knn'", tasks="knnn")
simple("task named twice", "knn", "2 times", tasks=["knn", "knn"])
simple("unknown post-processing", "'center'", "'centering'", post_processing="center")
simple("unknown protocol", "'papper'", "'paper'", protocol="papper")
simple("protocol file that does not exist", "nowhere.yaml", protocol="nowhere.yaml")
simple("no seed", "--seeds", "0 is below 1", seeds="0")
simple("seeds that are no number", "--seeds", "'many'", seeds="many")
simple("no worker", "--workers", "0 is below 1", workers="0")
simple("negative minimum of counts", "--min-counts", "-5", min_counts="-5")
simple("minimum of counts that is no number", "--min-counts", "'few'", min_counts="few")
simple("unknown overwrite policy", "'alway'", "'always'", overwrite="alway")
simple("folder of relationships that does not exist", "nowhere", relations="nowhere")


def protocol_case(name: str, text: str, *fragments: str) -> None:
    CASES[name] = (lambda p: p.command(protocol=str(p.file("mine.yaml", text))), ("mine", *fragments))


protocol_case("protocol with an unknown section", "extends: paper\nsplits: {seed: 1}\n", "'splits'", "'split'")
protocol_case("protocol with an unknown task", "extends: paper\ntasks: {kn: {k: 3}}\n", "'kn'", "'knn'")
protocol_case("protocol with an unknown parameter", "extends: paper\ntasks: {knn: {K_: 3}}\n", "'K_'", "'k'")
protocol_case("parameter of the wrong kind", "extends: paper\ntasks: {knn: {k: many}}\n", "k", "'many'", "int")
protocol_case("parameter out of range", "extends: paper\ntasks: {knn: {k: 0}}\n", "k is 0")
protocol_case("protocol that extends itself", "extends: mine.yaml\n", "circle")
protocol_case("protocol that is no YAML", "tasks: [unclosed\n", "not YAML")


# The results folder

CASES["results folder that is a file"] = (lambda p: p.command(out=str(p.file("taken"))), ("taken", "is a file"))
CASES["results folder below a file"] = (lambda p: p.command(out=str(p.file("taken") / "x")), ("taken", "is a file"))
simple("results folder that cannot be made", "/proc/nowhere", out="/proc/nowhere")


# YAML files


def yaml_case(name: str, text: str, *fragments: str) -> None:
    CASES[name] = (lambda p: ["run", str(p.file("run.yaml", text)), "--out", str(p.folder / "out")], fragments)


yaml_case("run file with an unknown setting", "scren: x.h5ad\n", "run.yaml", "'scren'", "'screen'")
yaml_case("run file with a role out of place", "screen: x.h5ad\nbatch: b\n", "run.yaml", "under roles:")
yaml_case("run file with an unknown role", "screen: x.h5ad\nroles: {perturbtion: gene}\n", "'perturbation'")
yaml_case("run file without a screen", "embeddings: [pca]\n", "run.yaml", "screen is missing")
yaml_case("run file that is no YAML", "screen: [unclosed\n", "run.yaml", "not YAML")
yaml_case("empty run file", "", "run.yaml")
CASES["run file that does not exist"] = (lambda p: ["run", "nowhere.yaml"], ("nowhere.yaml",))


# The command line itself

CASES["unknown command"] = (lambda p: ["shwo"], ("'shwo'", "'show'"))
CASES["unknown flag"] = (lambda p: [*p.command(), "--protocl", "paper"], ("'--protocl'", "'--protocol'"))
CASES["flag without its value"] = (lambda p: ["run", str(p.screen), "--batch"], ("--batch", "expected one argument"))
CASES["no screen"] = (lambda p: ["run", "--perturbation", "gene"], ("SCREEN", "first"))
CASES["no folder to show"] = (lambda p: ["show"], ("DIR",))
CASES["folder to show that does not exist"] = (lambda p: ["show", "nowhere"], ("nowhere", "does not exist"))
CASES["folder to show without results"] = (lambda p: ["show", str(p.folder)], ("no results",))
CASES["unknown format"] = (lambda p: ["show", "x", "--format", "latx"], ("'latx'", "'latex'"))
CASES["nothing to merge"] = (lambda p: ["merge", "nowhere", "elsewhere", "--out", str(p.folder / "out")], ("nowhere",))
CASES["merge without a target"] = (lambda p: ["merge", "a", "b"], ("--out",))
CASES["unknown protocol to show"] = (lambda p: ["protocols", "corect"], ("'corect'",))
CASES["unknown task to list"] = (lambda p: ["tasks", "knnn"], ("'knnn'", "'knn'"))
CASES["unknown embedder to list"] = (lambda p: ["embedders", "pcaa"], ("'pcaa'", "'pca'"))


@pytest.fixture(scope="module")
def good_screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "screen.h5ad"
    make_screen().write_h5ad(path)
    return path


@pytest.mark.parametrize("name", list(CASES))
def test_bad_input(
    name: str,
    good_screen: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tmp_path = tmp_path_factory.mktemp("case")  # its name must not hold the words that a message is searched for
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TXEVAL_DEBUG", raising=False)
    build, fragments = CASES[name]
    words = build(Place(tmp_path, good_screen))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    status = main(words)
    out, err = capsys.readouterr()
    assert status == 2, err
    assert err.startswith("txeval: error: ")
    assert "Traceback" not in out + err
    assert out == ""
    missing = [fragment for fragment in fragments if fragment not in err]
    assert not missing, err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_there_are_enough_kinds() -> None:
    assert len(CASES) >= 40


def test_well_formed_input_passes_the_same_door(good_screen: Path, tmp_path: Path) -> None:
    words = Place(tmp_path, good_screen).command()
    assert main(["validate", *words[1:]]) == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["unknown command", "control label that does not exist", "truncated file"])
def test_bad_input_in_a_process_of_its_own(
    name: str, good_screen: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("case")
    build, fragments = CASES[name]
    words = build(Place(tmp_path, good_screen))
    env = {key: value for key, value in os.environ.items() if key != "TXEVAL_DEBUG"}
    done = subprocess.run(
        [sys.executable, "-m", "txeval", *words], capture_output=True, text=True, cwd=tmp_path, env=env, check=False
    )
    assert done.returncode == 2, done.stderr
    assert all(fragment in done.stderr for fragment in fragments), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
