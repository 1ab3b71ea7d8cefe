"""The README says what the program does: its examples run, its tables are complete."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import txeval
from txeval.cli.base import find_commands
from txeval.run.rows import DESCRIPTIONS

README = Path(__file__).resolve().parents[2] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_the_examples_run() -> None:
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted > 5
    assert result.failed == 0


def test_every_column_of_the_scores_is_described() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", TEXT, flags=re.MULTILINE))
    described = {name: table.get(name) for name in DESCRIPTIONS}
    assert described == {name: text.replace("|", r"\|") for name, text in DESCRIPTIONS.items()}


def test_every_command_is_listed() -> None:
    for name in find_commands():
        assert f"`txeval {name}" in TEXT


def test_every_public_function_of_the_table_exists() -> None:
    functions = re.findall(r"^\| `txeval\.([\w.]+)\(", TEXT, flags=re.MULTILINE)
    assert len(functions) == 10
    for name in functions:
        found = txeval
        for part in name.split("."):
            found = getattr(found, part)
        assert callable(found)


def test_no_place_is_left_to_fill() -> None:
    assert "@@" not in TEXT
