"""The object for notebooks, on rows that are known."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest
from score_rows import row, screen_scores

import txeval
from txeval.errors import InputError
from txeval.report import aggregate
from txeval.run.files import FORMAT, write_document, write_table
from txeval.run.rows import score_frame


def folder_of(path: Path, scores: pd.DataFrame) -> Path:
    """A results folder of given scores, without details."""
    path.mkdir()
    seal = write_table(path / "scores.parquet", scores)
    protocols = [{"name": name} for name in scores["protocol"].unique()]
    about = {"format": FORMAT, "txeval_version": "1", "protocols": protocols, "files": {"scores.parquet": seal}}
    write_document(path / "manifest.json", about)
    return path


@pytest.fixture
def results(tmp_path: Path) -> txeval.Results:
    return txeval.open_results(folder_of(tmp_path / "r", screen_scores()))


def test_the_summary_has_metrics_down_and_models_across(results: txeval.Results) -> None:
    table = results.summary()
    assert list(table.columns) == ["random", "pca", "scVI"]
    assert table.index.names == ["level", "task", "metric", "subset"]
    assert table.loc[(4, "knn", "top1", ""), "scVI"] == pytest.approx(0.23)
    assert math.isnan(table.loc[(5, "relationships", "recall", "CORUM"), "scVI"])
    assert table.index.get_level_values("level").is_monotonic_increasing


def test_a_level_has_every_post_processing(results: txeval.Results) -> None:
    table = results.table(4)
    pd.testing.assert_frame_equal(table, results.table("knn"))
    assert len(table) == 12
    frame = aggregate(results.scores).query("task == 'knn'")
    for cell in frame.to_dict("records"):
        assert table.loc[(cell["model"], cell["post_processing"]), (cell["metric"], "")] == cell["value"]


def test_several_screens_are_told_apart(tmp_path: Path) -> None:
    rows = [row(0.1 * i, dataset=name, screen_fingerprint=name) for i, name in enumerate(("one", "two"))]
    results = txeval.open_results(folder_of(tmp_path / "r", score_frame(rows)))
    table = results.table("knn")
    assert table.index.names == ["dataset", "model", "post_processing"]
    assert table.loc[("two", "pca", "raw"), ("top1", "")] == pytest.approx(0.1)
    assert results.verdict.count("\n") == 1
    assert "two, protocol paper:" in results.verdict


def test_it_shows_itself(results: txeval.Results) -> None:
    assert "scVI is best on" in repr(results)
    html = results._repr_html_()
    assert "scVI is best on" in html
    assert re.search(r"0\.230", html)
    assert html.count("<table") == 1


def test_labels_from_data_are_escaped(tmp_path: Path) -> None:
    rows = score_frame([row(0.5, model="<script>alert(1)</script>", dataset="<b>d</b>")])
    html = txeval.open_results(folder_of(tmp_path / "r", rows))._repr_html_()
    assert "<script>" not in html
    assert "<b>d</b>" not in html
    assert "&lt;script&gt;" in html


def test_it_plots(results: txeval.Results) -> None:
    pytest.importorskip("altair")
    assert "scVI" in str(results.plot().to_dict())
    assert "top5" in str(results.plot(4).to_dict()) or "kNN top 5" in str(results.plot(4).to_dict())


def test_the_report_of_scores_alone(results: txeval.Results) -> None:
    text = results.report().read_text("utf-8")
    assert "scVI is best on" in text


@pytest.mark.parametrize(("level", "message"), [(9, "no level 9"), ("kn", "did you mean"), ("nonsense", "nonsense")])
def test_a_level_that_is_not_there(results: txeval.Results, level: int | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        results.table(level)


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        txeval.open_results(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no scores"):
        txeval.open_results(folder_of(tmp_path / "empty", score_frame([])))
