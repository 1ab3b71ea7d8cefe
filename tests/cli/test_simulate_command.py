"""`txeval simulate` as a newcomer meets it: what it writes and says, and bad arguments."""

from __future__ import annotations

from pathlib import Path

import anndata
import pytest

from txeval.cli import main
from txeval.data.truth import Truth

SMALL = ["--cells", "400", "--genes", "60", "--perturbations", "10", "--batches", "3", "--programs", "3", "--plain"]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_it_says_what_it_wrote_and_what_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "screen.h5ad"
    assert main(["simulate", str(out), *SMALL, "--no-effect", "0.2", "--unexpressed", "4"]) == 0
    text = said(capsys)
    assert "400 samples x 60 genes, counts, 3 batches" in text
    assert "8 with an effect, 2 without, 4 of genes that are not expressed" in text
    for next_step in (f"txeval run {tmp_path / 'screen.run.yaml'}", f"txeval recovery {tmp_path / 'screen-results'}"):
        assert next_step in text
    assert {path.name for path in tmp_path.iterdir()} == {"screen.h5ad", "screen.run.yaml", "screen.truth"}
    assert main(["validate", str(tmp_path / "screen.run.yaml")]) == 0
    assert "Nothing odd was found" in said(capsys)


def test_like_a_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.h5ad", tmp_path / "second.h5ad"
    assert main(["simulate", str(first), *SMALL, "--depth", "900"]) == 0
    like = ["--like-perturbation", "perturbation", "--like-control", "non-targeting", "--like-batch", "batch"]
    more = ["--cells", "300", "--like", str(first), *like, "--cell-lines", "2", "--batches", "4", "--plain"]
    assert main(["simulate", str(second), *more]) == 0
    text = said(capsys)
    assert f"Like {first}" in text and "60 genes" in text and "4 batches of 2 cell lines" in text
    made = anndata.read_h5ad(second)
    assert list(made.var_names) == list(anndata.read_h5ad(first).var_names)
    assert Truth.load(second).settings["like"] == "first.h5ad"


def test_nothing_is_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "screen.h5ad"
    out.write_text("precious")
    assert main(["simulate", str(out), *SMALL]) == 2
    assert "is there already" in said(capsys)
    assert out.read_text() == "precious"
    assert main(["simulate", str(out), *SMALL, "--overwrite"]) == 0
    assert anndata.read_h5ad(out).shape == (400, 60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--genes", "12", "--perturbations", "12"], "12 genes are too few for 13 target genes"),
        (["--cells", "20"], "20 samples are too few"),
        (["--cells", "0"], "0 is below 1"),
        (["--effect", "much"], "'much' is not a number"),
        (["--effect", "nan"], "effect is nan"),
        (["--mode", "count"], "did you mean 'counts'"),
        (["--mode", "continuous", "--depth", "100"], "--depth is for counts"),
        (["--like-batch", "lane"], "--like-batch is given without --like"),
        (["--like", "there.h5ad"], "needs to know the perturbations and controls"),
        (
            ["--like", "not_there.h5ad", "--like-perturbation", "p", "--like-control", "c"],
            "not_there.h5ad: no such file",
        ),
        (["--cell-lines", "5"], "5 cell lines in 3 batches"),
    ],
)
def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["simulate", str(tmp_path / "a.h5ad"), *SMALL, *arguments]) == 2
    assert message in said(capsys)
    assert list(tmp_path.iterdir()) == []


def test_suffix_says_the_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(tmp_path / "a.txt"), *SMALL]) == 2
    assert ".h5ad or .zarr" in said(capsys)
