"""Results folders that somebody else made: nothing outside them is read or written, and bad input is said to be so."""

from __future__ import annotations

import ast
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from run_helpers import run
from sealing import reseal, rewrite

import txeval
from txeval.cli import main
from txeval.compute.machine import Memory
from txeval.errors import InputError
from txeval.run.files import write_document, write_table
from txeval.run.store import Store

SETTINGS = {"tasks": ["stub_size"], "post_processing": ["raw", "centering"], "seeds": 1}
SECRET = "nobody else's business"


@pytest.fixture(scope="module")
def honest(screen_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("honest") / "out"
    run(screen_file, out, **SETTINGS)
    return out


@pytest.fixture
def place(honest: Path, tmp_path: Path) -> Path:
    """A folder `foreign` that may be changed, and beside it files of the user, which nobody may touch."""
    shutil.copytree(honest, tmp_path / "foreign")
    (tmp_path / "settings.json").write_text(SECRET)
    (tmp_path / "key").write_text(SECRET)
    return tmp_path


def a_plan(folder: Path) -> Path:
    return next((folder / "plans").glob("*.json"))


def a_cell(folder: Path) -> Path:
    return min((folder / "cells").glob("*.json"))


def plan(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change the plan, under the name that it asks for where it has one."""
    return lambda place: rewrite(a_plan(place / "foreign"), change)


def in_plan(**values: Any) -> Callable[[Path], None]:
    return plan(lambda record: record.update(values))


def instead(name: str, make: Callable[[Path, Path], object]) -> Callable[[Path], None]:
    """Put something else in the place of a file."""

    def harm(place: Path) -> None:
        path = next((place / "foreign").glob(name))
        path.unlink()
        make(path, place)

    return harm


def linked_room(place: Path) -> None:
    (place / "foreign" / "protocols").rename(place / "elsewhere")
    (place / "foreign" / "protocols").symlink_to(place / "elsewhere")


def link(path: Path, place: Path) -> None:
    path.symlink_to(place / "key")


def fifo(path: Path, place: Path) -> None:
    os.mkfifo(path)


def endless(path: Path, place: Path) -> None:
    path.symlink_to("/dev/zero")


def deep(path: Path, place: Path) -> None:
    path.write_text('{"format": 2, "rows": ' + "[" * 100_000 + "]" * 100_000 + "}")


def deep_and_sealed(path: Path, place: Path) -> None:
    write_document(path, "{" + '"format": 2, "provenance": ' + "[" * 100_000 + "]" * 100_000 + "}")


def large(path: Path, place: Path) -> None:
    with path.open("wb") as handle:
        handle.truncate(2**40)


def cut(path: Path, place: Path) -> None:
    path.write_text("{")


ATTACKS: dict[str, Callable[[Path], object]] = {
    "an id that leaves the folder": in_plan(id="../../settings"),
    "an absolute id": plan(lambda record: record.update(id=str(Path(record["id"]).absolute()))),
    "a hidden id": in_plan(id=".bashrc"),
    "a key that leaves the folder": plan(lambda record: record["entries"][0].update(key="../../settings")),
    "a split that leaves the folder": plan(lambda record: record["split"].update(digest="../../settings")),
    "a screen that leaves the folder": plan(lambda record: record["screen"].update(fingerprint="../../settings")),
    "an embedding that leaves the folder": plan(lambda r: r["models"][0].update(fingerprints=["../../settings"])),
    "a task that leaves the folder": plan(lambda record: record["entries"][0].update(task="../../settings")),
    "a plan without order": plan(lambda record: record.pop("order")),
    "text for a number": in_plan(order="first"),
    "a number for text": in_plan(dataset=7),
    "a huge number": in_plan(order=10**30),
    "entries of models that are not there": plan(lambda record: record.update(models=[])),
    "a linked plan": instead("plans/*.json", link),
    "a pipe for a plan": instead("plans/*.json", fifo),
    "an endless plan": instead("plans/*.json", endless),
    "a deep plan": instead("plans/*.json", deep_and_sealed),
    "a linked manifest": instead("manifest.json", link),
    "a pipe for a manifest": instead("manifest.json", fifo),
    "an endless manifest": instead("manifest.json", endless),
    "a deep manifest": instead("manifest.json", deep),
    "a large manifest": instead("manifest.json", large),
    "a cut manifest": instead("manifest.json", cut),
    "a table of a cell that leaves the folder": lambda p: rewrite(
        a_cell(p / "foreign"), lambda cell: cell["tables"].update({"../../../settings": cell["tables"]["units"]})
    ),
    "text for a score": lambda p: rewrite(a_cell(p / "foreign"), lambda cell: cell["rows"][0].update(value="high")),
    "a linked cell": instead("cells/*.json", link),
    "a pipe for a cell": instead("cells/*.json", fifo),
    "linked scores": instead("scores.parquet", link),
    "endless scores": instead("scores.parquet", endless),
    "a linked room": linked_room,
}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_a_hostile_folder(
    name: str, place: Path, honest: Path, screen_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Every command says that the folder is not as it should be, or goes on without what is damaged and says so."""
    ATTACKS[name](place)
    monkeypatch.chdir(place)
    outside = {path: path.read_bytes() for path in place.iterdir() if path.is_file()}
    said = {}
    for words in (
        ["leaderboard", "check", "foreign"],
        ["show", "foreign", "--plain"],
        ["leaderboard", "build", "foreign", "--out", "site"],
        ["merge", str(honest), "foreign", "--out", "merged"],
    ):
        status = main(words)
        printed = capsys.readouterr()
        said[words[-1]] = printed.out + printed.err
        assert status in (0, 1, 2), words
        assert SECRET not in said[words[-1]]
        assert status or words[:2] != ["leaderboard", "check"], said
    try:
        outcome = run(screen_file, place / "foreign", **SETTINGS)
        assert outcome.warnings or outcome.n_computed or "scores" in name
    except InputError as why:
        assert "foreign" in why.problem and why.remedy
    assert {path: path.read_bytes() for path in outside} == outside
    written = [path for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    copies = [path for path in written if path not in outside and "elsewhere" not in path.parts]
    assert not [path for path in copies if path.stat().st_size < 10**6 and SECRET.encode() in path.read_bytes()]
    assert {path.name for path in place.iterdir()} <= {"foreign", "settings.json", "key", "site", "merged", "elsewhere"}


def test_names_of_keys_are_checked_wherever_they_become_files(place: Path) -> None:
    store = Store(place / "foreign")
    for key in ("../../settings", str(place / "settings"), ".hidden", "a/b", "", "x" * 500):
        for act in (store.load_cell, store.forget_cell, store.embedding_about, store.load_fitted, store.load_samples):
            with pytest.raises(InputError, match="no name of a file in a results folder"):
                act(key)
    assert (place / "settings.json").read_text() == SECRET


def test_a_stored_embedding_is_no_way_to_read_another_file(place: Path) -> None:
    """`of` names any file of the user; without its digest, which takes its content, it is not read."""
    folder = place / "foreign"
    np.save(place / "mine.npy", np.random.default_rng(0).random((240, 5)).astype("f4"))
    path = next((folder / "embeddings").glob("*.json"))
    for of in (str(place / "mine.npy"), "/dev/zero", "../../mine.npy"):
        rewrite(path, lambda about, of=of: about.update(of=of))
        store = Store(folder)
        try:
            assert store.load_embedding(path.stem, 240) is None
            assert any(path.stem in text for text in store.warnings)
        except InputError as why:
            assert ".." in why.problem


def test_a_table_that_would_not_fit_is_not_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it declares counts: ten thousand million equal numbers take a few kilobytes in a file."""
    scores = pd.concat([txeval.read_scores(place / "foreign")] * 20_000)
    write_table(place / "foreign" / "scores.parquet", scores.assign(**dict.fromkeys(scores.columns, 1)))
    reseal(place / "foreign")
    monkeypatch.setattr("txeval.run.folder.memory_limit", lambda: Memory(2**26, "a very small machine"))
    with pytest.raises(
        InputError, match=r"scores\.parquet declares 400,000 rows of 36 columns, which need .* GiB of memory"
    ):
        txeval.read_scores(place / "foreign")


def test_a_linked_lock(place: Path, screen_file: Path) -> None:
    (place / "foreign" / ".lock").unlink(missing_ok=True)
    (place / "foreign" / ".lock").symlink_to(place / "key")
    with pytest.raises(InputError, match=r"foreign/\.lock cannot be written"):
        run(screen_file, place / "foreign", **SETTINGS)
    assert (place / "key").read_text() == SECRET


def test_a_field_is_named_with_its_value(place: Path) -> None:
    rewrite(a_plan(place / "foreign"), lambda record: record["entries"][1].update(seed="seven"))
    with pytest.raises(InputError, match=r"plans/\w+\.json: entries\[1\]\.seed is \"seven\": Expected `int \| null`"):
        Store(place / "foreign").plans()


def test_scores_of_another_form(place: Path) -> None:
    folder = place / "foreign"
    write_table(folder / "scores.parquet", txeval.read_scores(folder).assign(value="high"))
    reseal(folder)
    with pytest.raises(InputError, match=r"scores\.parquet cannot be read"):
        txeval.read_scores(folder)


# The door


#: What opens or parses a file.
OPENING = {
    *("open", "read_text", "read_bytes", "read_parquet", "read_table", "read_schema", "read_csv", "ParquetFile"),
    *("load", "loads", "memmap", "safe_load", "parse_yaml", "read_yaml", "NpyRows", "copyfile", "copy2"),
}
#: What is called alike and goes through the door, or reads a cell of a table.
ELSEWHERE = {"ResultsFolder.open", "folders.ResultsFolder.open", "self.stored.open", "Truth.load", "json.loads"}
#: Modules that open other files than those of results folders, and what.
OTHERS = {
    "run/cluster.py": "cluster and scheduler files of the user",
    "run/config.py": "YAML of the user",
    "run/embedding.py": "folders of txeval embed",
    "run/execution.py": "/proc/cpuinfo",
    "run/files.py": "its own temporary and lock files",
    "run/remote.py": "what the client of this run has just written, under the digest that it names",
    "run/store.py": "what the door has verified",
    "report/paper/published.py": "tables of the package",
    "report/html/page.py": "assets of the package",
    "report/leaderboard/site.py": "assets of the package",
    "cli/__init__.py": "/dev/null",
    "cli/data_prepare.py": "lists of genes of the user",
}


def opens(path: Path) -> bool:
    """Whether a module calls anything that opens or parses a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.split(".")[-1] in OPENING and name not in ELSEWHERE:
                return True
    return False


def test_nothing_else_opens_files_of_a_results_folder() -> None:
    root = Path(txeval.__file__).parent
    modules = [path for part in ("run", "report", "cli") for path in (root / part).rglob("*.py")]
    assert {str(path.relative_to(root)) for path in modules if opens(path)} == {"run/folder.py", *OTHERS}


# Commands


def test_a_file_that_runs_a_command_is_shown_and_needs_trust(
    screen_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever the command stands: in the embedding itself, or in the one that it is built on."""
    mark = tmp_path / "mark"
    given = f"external@command='touch {mark} {{input}} {{output}}'"
    configuration = tmp_path / "run.yaml"
    roles = {"perturbation": "gene", "control": ["ctrl"], "batch": "lane"}
    for embedding in (given, f'random@of="{given}"'):
        content = {"screen": str(screen_file), "roles": roles, "embeddings": [f"X={embedding}"], "min_counts": 0}
        content |= {"tasks": ["stub_size"], "post_processing": ["raw"], "seeds": 1, "out": str(tmp_path / "out")}
        configuration.write_text(yaml.safe_dump(content))
        assert main(["run", str(configuration), "--plain"]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"touch {mark}" in said and "--trust" in said
        assert not mark.exists() and not (tmp_path / "out").exists()
        main(["validate", str(configuration)])
        assert "would run with your rights: the command touch" in " ".join(capsys.readouterr().err.split())
        assert not mark.exists()
        main(["run", str(configuration), "--plain", "--trust"])
        assert "Runs with your rights: the command touch" in " ".join(capsys.readouterr().err.split())
        assert mark.exists()
        mark.unlink()
        shutil.rmtree(tmp_path / "out")
