"""Every command looks at the place of its result before it starts: the other arguments need not even exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from txeval.cli import main
from txeval.destination import check_destination
from txeval.errors import InputError

ROLES = ["--perturbation", "gene", "--control", "control", "--batch", "batch"]
#: Command with {} for the place of its result -> whether that is a folder, and its suffix.
FOLDERS = {
    "run": ["run", "nowhere.h5ad", *ROLES, "--embedding", "pca", "--out", "{}"],
    "experiment": ["experiment", "likelihood", "nowhere.h5ad", *ROLES, "--out", "{}"],
    "embed": ["embed", "nowhere.h5ad", *ROLES, "--model", "pca", "--out", "{}"],
    "embed --save": ["embed", "nowhere.h5ad", *ROLES, "--model", "scgpt-finetuned", "--out", "emb", "--save", "{}"],
    "embed --save of scvi": ["embed", "nowhere.h5ad", *ROLES, "--model", "scvi", "--out", "emb", "--save", "{}"],
    "merge": ["merge", "nowhere", "elsewhere", "--out", "{}"],
    "figures": ["figures", "nowhere", "--out", "{}"],
    "leaderboard": ["leaderboard", "build", "nowhere", "--out", "{}"],
    "demo": ["demo", "--out", "{}"],
    "weights fetch": ["weights", "fetch", "scgpt", "--to", "{}"],
    "data fetch": ["data", "fetch", "replogle_2022", "--to", "{}"],
}
FILES = {
    "report": (["report", "nowhere", "--out", "{}"], "report.html"),
    "paper": (["paper", "table3", "nowhere", "--format", "csv", "--out", "{}"], "table.csv"),
    "paper xlsx": (["paper", "table3", "nowhere", "--format", "xlsx", "--out", "{}"], "table.xlsx"),
    "compare": (["compare", "nowhere", "--plot", "{}"], "plot.svg"),
    "simulate": (["simulate", "{}", "--like", "nowhere.h5ad"], "simulated.h5ad"),
    "prepare": (["data", "prepare", "nowhere.h5ad", "--out", "{}"], "prepared.h5ad"),
    "prepare NAME": (["data", "prepare", "replogle_2022", "--out", "{}"], "prepared.h5ad"),
    "subset": (["data", "subset", "nowhere.h5ad", *ROLES, "--samples", "5", "--out", "{}"], "part.h5ad"),
    "describe": (["data", "describe", "nowhere.h5ad", "--out", "{}"], "run.yaml"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TXEVAL_OFFLINE", "1")
    (tmp_path / "taken").write_text("mine")


@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_below_a_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words, end = FILES[name] if name in FILES else (FOLDERS[name], "results")
    place = str(tmp_path / "taken" / end)
    before = sorted(tmp_path.rglob("*"))
    assert main([word.replace("{}", place) for word in words]) == 2
    said = capsys.readouterr().err
    assert f"cannot write {place}: {tmp_path / 'taken'} is a file" in said and "->" in said, said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", list(FOLDERS))
def test_a_file_where_a_folder_is_to_be(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([word.replace("{}", str(tmp_path / "taken")) for word in FOLDERS[name]]) == 2
    assert f"{tmp_path / 'taken'} is a file" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("name", list(FILES))
def test_a_folder_where_a_file_is_to_be(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words, end = FILES[name]
    (tmp_path / end).mkdir()
    assert main([word.replace("{}", str(tmp_path / end)) for word in words]) == 2
    assert f"{tmp_path / end} is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["compare", "simulate", "prepare", "subset", "describe"])
def test_a_suffix_without_a_format(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words, _ = FILES[name]
    assert main([word.replace("{}", "result.docx") for word in words]) == 2
    assert "result.docx: the suffix '.docx' says no format" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["simulate", "subset", "describe", "embed --save"])
def test_what_is_there_is_not_replaced_unasked(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    if name in FILES:
        words, end = FILES[name]
        (tmp_path / end).write_text("mine")
    else:
        words, end = FOLDERS[name], "model"
        (tmp_path / end).mkdir()
        (tmp_path / end / "weights").write_text("mine")
    assert main([word.replace("{}", end) for word in words]) == 2
    assert f"{end} is there already" in capsys.readouterr().err


def test_places() -> None:
    """What cannot be written is known by trying; nothing stays behind."""
    with pytest.raises(InputError, match="cannot write /proc/nowhere/x"):
        check_destination("/proc/nowhere/x")
    with pytest.raises(InputError, match=r"cannot write .*too long"):
        check_destination("x" * 400 + "/y", folder=True)
    with pytest.raises(InputError, match="cannot write ~no-such-user"):
        check_destination("~no-such-user/x")
    with pytest.raises(InputError, match="a does not exist"):
        check_destination("a/b.csv", parents=False)
    Path("empty").mkdir()
    assert check_destination("empty", folder=True, overwrite=False) == Path("empty")
    assert check_destination("deep/er/file") == Path("deep/er/file")
    assert sorted(path.name for path in Path().iterdir()) == ["empty", "taken"]


def test_a_model_is_not_saved_over_the_embedding(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = FOLDERS["embed --save"]
    for place in ("emb", str(tmp_path), "./emb"):
        if place == str(tmp_path):
            (tmp_path / "taken").unlink()
        assert main([word.replace("{}", place) for word in words]) == 2
        assert "cannot hold the model: the embedding goes to" in capsys.readouterr().err
