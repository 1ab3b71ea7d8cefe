"""No flipped bit of a results folder ends in a changed score without a word."""

from __future__ import annotations

from pathlib import Path

from benchmarks.flips import KINDS, flip


def test_flips_and_cuts_are_never_silent(tmp_path: Path) -> None:
    rows = flip(2 * len(KINDS), 3, tmp_path)
    assert set(rows["kind"]) == set(KINDS.values())
    assert rows.loc[rows["silent"] != "", ["file", "harm", "silent"]].to_dict("records") == []
