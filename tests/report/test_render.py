from __future__ import annotations

import csv
import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from score_rows import row, scores, screen_scores

from txeval.report import (
    detail_grids,
    full_grids,
    print_grids,
    summary,
    summary_grids,
    to_latex,
    to_markdown,
)
from txeval.report.layout import Cell, Column, Grid, Row
from txeval.text import csv_text

NASTY = "a|b_c*[red]d[/red]&%$#{}~^\\<i>\x1b[31m"


def printed(grids: list[Grid], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True, emoji=False, markup=False, highlight=False)
    print_grids(grids, console)
    return console.file.getvalue()


def test_the_summary_has_metrics_down_and_models_across_with_chance_and_random_first() -> None:
    [grid] = summary_grids(screen_scores())
    assert grid.index == ("level", "metric")
    assert [column.label for column in grid.columns] == ["chance", "random", "pca", "scVI"]
    assert [column.group for column in grid.columns] == ["reference", "reference", "models", "models"]
    assert len(grid.rows) == 6
    assert [row.names[0][:1] for row in grid.rows] == ["2", "", "4", "", "5", ""]
    top1 = grid.rows[2]
    assert [cell.text for cell in top1.cells] == ["0.050", "0.130", "0.180", "0.230"]
    assert [cell.letter for cell in top1.cells] == ["", "t", "t", "t"]
    assert [cell.best for cell in top1.cells] == [False, False, False, True]


def test_a_hole_has_the_number_of_its_reason() -> None:
    [grid] = summary_grids(screen_scores())
    hole = grid.rows[4].cells[3]
    assert hole.text == "–"
    assert grid.reasons[hole.marks[0] - 1] == "3 perturbed genes; 10 needed"
    for text in (printed([grid]), to_markdown([grid])):
        assert "[1] 3 perturbed genes; 10 needed" in text


def test_the_summary_says_how_it_was_made() -> None:
    notes = " ".join(summary_grids(screen_scores())[0].notes)
    assert "optimistic" in notes
    assert "best of 4" in notes
    assert "mean of 3 seeds" in notes
    assert "deterministic" in notes
    assert "t tvn" in notes
    assert "fewer post-processings" in notes


def test_models_that_do_not_beat_the_random_baseline_are_told() -> None:
    [grid] = summary_grids(scores(row(0.5, model="random"), row(0.4), row(0.5, model="scVI")))
    assert any("No model is better than the floors" in note for note in grid.notes)
    [grid] = summary_grids(scores(row(0.5, model="random"), row(0.6)))
    assert not any("than the floors" in note for note in grid.notes)


def test_different_numbers_of_seeds_are_told() -> None:
    rows = [row(0.5, seed=s) for s in range(2)] + [row(0.5, seed=s, model="scVI") for s in range(5)]
    assert "different numbers of seeds (2 to 5)" in " ".join(summary_grids(scores(*rows))[0].notes)


def test_full_tables_show_mean_and_deviation() -> None:
    grids = full_grids(screen_scores(), task="linear_probe")
    text = printed(grids)
    assert "0.310 ± 0.010" in text
    assert "seed 2 of 3 seeds has no score: diverged" in text
    assert len(grids[0].rows) == 12


def test_full_tables_show_every_subset_and_chance() -> None:
    [grid] = full_grids(screen_scores(), task="relationships", metrics=["recall"])
    assert grid.index == ("model", "post-processing", "subset")
    assert [r.names[2] for r in grid.rows[-2:]] == ["CORUM", "StringDB"]
    assert grid.rows[-2].names[0] == "chance"
    assert grid.rows[-1].cells[0].text == "0.100"


def test_details_show_interval_chance_and_what_was_left_out() -> None:
    rows = scores(
        row(0.5, low=0.4, high=0.6, interval_unit="batch", chance=0.1, n_samples=1234, left_out='{"no label": 3}'),
        row(0.5, model="scVI", interval_note="no interval: 2 batch unit(s), 5 needed", notes="small"),
    )
    text = printed(detail_grids(rows), width=200)
    for part in ("0.400 to 0.600", "batch", "1,234", "no label: 3", "no interval: 2 batch unit(s)", "small"):
        assert part in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_loses_no_score(width: int) -> None:
    many = [row(0.001 * i + 0.1, model=f"model_number_{i:02d}") for i in range(20)]
    text = printed(summary_grids(scores(*many)), width=width)
    assert all(len(line) <= width for line in text.splitlines())
    assert all(f"model_number_{i:02d}" in text for i in range(20))
    assert all(f"{0.001 * i + 0.1:.3f}" in text for i in range(20))


@pytest.mark.parametrize("make", [summary_grids, full_grids, detail_grids])
def test_labels_cannot_steer_the_terminal_or_break_a_table(make) -> None:
    grids = make(scores(row(0.5, model=NASTY, dataset=NASTY, reason=NASTY, notes=NASTY), row(None, reason=NASTY)))
    text = printed(grids, width=250)
    assert "\x1b" not in text
    assert "[red]d[/red]" in text
    assert "\\x1b" in text
    markdown = to_markdown(grids)
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    assert "<i>" not in markdown.replace("\\<i\\>", "")
    latex = to_latex(grids)
    lines = [line for line in latex.splitlines() if line.endswith(r"\\") and "&" in re.sub(r"\\&", "", line)]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1
    bare = re.sub(r"\\[{}]", "", latex)
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"(?<!\\)[%#$_]", re.sub(r"\$\\pm\$", "", latex))


def test_latex_uses_booktabs_and_bold() -> None:
    latex = to_latex(summary_grids(screen_scores()))
    for part in (
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\textbf{0.230}\textsuperscript{t}",
        r"--\textsuperscript{1}",
    ):
        assert part in latex


def test_markdown_marks_the_best_and_the_choice() -> None:
    assert "| **0.230** t |" in to_markdown(summary_grids(screen_scores()))


def test_csv_keeps_full_precision() -> None:
    table = summary(scores(row(1 / 3), row(0.1, model="random")))
    back = pd.read_csv(io.StringIO(csv_text(table)), float_precision="round_trip")
    assert list(back["value"]) == list(table["value"])
    assert list(back.columns) == list(table.columns)


def test_csv_has_no_formulas_and_no_escape_sequences() -> None:
    labels = ["=HYPERLINK(1)", "+1", "-cmd", "@SUM(A1)", "\tx", "a\x1b[31mb", "a\nb", "plain", 'a,"b"']
    frame = pd.DataFrame({"=name": labels, "kind": pd.Categorical(labels), "value": np.linspace(-1, 1, len(labels))})
    frame.loc[1, "=name"] = None
    text = csv_text(frame)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["'=name", "kind", "value"]
    assert [row[1] for row in rows[1:]] == [
        *("'=HYPERLINK(1)", "'+1", "'-cmd", "'@SUM(A1)", "\\x09x", "a\\x1b[31mb", "a b", "plain", 'a,"b"')
    ]
    assert rows[2][0] == ""
    assert np.array_equal([float(row[2]) for row in rows[1:]], frame["value"])


def ranked_grid() -> Grid:
    """A grid with floors, intervals and ranks, wider than a terminal."""
    floors = [
        Column(name, "reference") for name in ("chance", "random", "shuffled", "control_mean", "replicate ceiling")
    ]
    models = [Column(f"model {i}", "models") for i in range(3)]
    cells = [
        *(Cell("0.100") for _ in floors),
        Cell("0.500", letter="r|t", best=True, tied=True, rank="#1-2", below="[0.400, 0.600]"),
        Cell("0.450", letter="r", tied=True, rank="#1-2", below="[0.350, 0.550]"),
        Cell("0.200", letter="r", rank="#3", below="[0.100, 0.300]"),
    ]
    rows = (Row(("4 kNN", "top 1"), tuple(cells), "4"),)
    return Grid(title="t", index=("level", "metric"), columns=(*floors, *models), rows=rows)


def test_ties_ranks_and_intervals_stand_in_every_format() -> None:
    grid = ranked_grid()
    text = printed([grid], width=200)
    assert "*0.500 r|t #1-2" in text
    assert "[0.400, 0.600]" in text
    marked = to_markdown([grid])
    assert r"\* **0.500** r\|t \#1-2<br>\[0.400, 0.600\]" in marked
    assert marked.count(r"\* ") == 2
    latex = to_latex([grid])
    assert r"\shortstack[r]{\textbf{0.500}\textsuperscript{*r\textbar{}t}\\\scriptsize \#1-2 [0.400, 0.600]}" in latex


@pytest.mark.parametrize("width", [60, 80, 110])
def test_no_score_is_broken_and_floors_stand_apart_where_they_would_crowd_out_the_models(width: int) -> None:
    text = printed([ranked_grid()], width=width)
    for score in ("*0.500 r|t #1-2", "*0.450 r #1-2", "0.200 r #3", "[0.400, 0.600]", "[0.100, 0.300]"):
        assert score in text
    assert max(map(len, text.splitlines())) <= width
    # Chance is beside every part; the other floors are printed once.
    assert text.count("shuffled") == 1
    assert text.count("chance") > 1


def test_tables_say_which_probe_is_shown_where_it_is_not_the_recipe() -> None:
    def made(notes: str) -> pd.DataFrame:
        given = {"task": "linear_probe", "level": 2, "metric": "top1", "chance": 0.1}
        return scores(row(0.4, model="scVI", notes=notes, **given), row(0.3, notes=notes, **given))

    other = made("A549: solver: lda, 0 training steps | ridge 0.0001")
    for grids in (summary_grids(other), full_grids(other)):
        assert any("solver lda, which is not the paper's recipe" in note for note in grids[0].notes)
    recipe = made("solver: adamw, 750 training steps")
    for grids in (summary_grids(recipe), full_grids(recipe)):
        assert not any("solver" in note for note in grids[0].notes)
