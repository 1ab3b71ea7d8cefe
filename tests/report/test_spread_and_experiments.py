"""Intervals of means over seeds, and the tables and figures of experiments."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import score_rows

from txeval.cli import main
from txeval.errors import InputError
from txeval.report.experiments import experiment_grids, likelihood_frame, reference_frame, scaling_frame
from txeval.report.spread import joined_interval, with_intervals
from txeval.report.summary import summary

# Intervals of means


def test_one_score_keeps_its_interval() -> None:
    assert joined_interval([0.5], [0.4], [0.7]) == pytest.approx((0.4, 0.7), abs=1e-9)
    assert joined_interval([0.5, 0.5], [0.4, 0.4], [0.7, 0.7]) == pytest.approx((0.4, 0.7), abs=1e-9)


def test_seeds_that_differ_widen_it_and_no_interval_stays_none() -> None:
    low, high = joined_interval([0.4, 0.6], [0.3, 0.5], [0.5, 0.7])
    assert low < 0.4 and high > 0.6
    assert all(map(math.isnan, joined_interval([0.4, 0.6], [0.3, math.nan], [0.5, 0.7])))


def test_it_covers_the_true_mean() -> None:
    """Units are shared by the seeds; each seed adds its own noise."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        units = rng.normal(0, 1.0)
        values = units + rng.normal(0, 0.7, 3)
        low, high = joined_interval(list(values), list(values - 1.96), list(values + 1.96))
        hits += low <= 0 <= high
    assert 0.94 <= hits / 2000 <= 0.985


def test_means_over_seeds_get_an_interval_within_the_range() -> None:
    rows = score_rows.scores(
        *(score_rows.row(v, seed=i, low=v - 0.05, high=v + 0.05) for i, v in enumerate((0.94, 0.98, 0.99))),
        *(score_rows.row(v, seed=i, model="other") for i, v in enumerate((0.5, 0.6))),
    )
    frame = with_intervals(rows).set_index("model")
    assert frame.loc["pca", "high"] == 1.0
    assert 0.8 < frame.loc["pca", "low"] < 0.92
    assert math.isnan(frame.loc["other", "low"])


# Experiments


def part(label: str, size: int, of: str = "scVI=scvi@latent=4") -> dict[str, Any]:
    return {
        "dataset": "screen",
        "label": label,
        "source": "trained-on",
        "options": {"of": of, "samples": size},
        "provenance": [{"trained_on_part": {"samples": size or 800}}],
    }


MANIFEST = {
    "embeddings": [
        part("scVI, 100 samples", 100),
        part("scVI, 800 samples", 0),
        {"dataset": "screen", "label": "pca", "source": "pca", "options": {}, "provenance": []},
    ]
}
VALUES = {("scVI, 100 samples", "raw"): (0.2, 0.3, 0.4), ("scVI, 800 samples", "raw"): (0.5, 0.55, 0.6)}


def experiment() -> pd.DataFrame:
    rows = []
    for (model, post), values in VALUES.items():
        for seed, value in enumerate(values):
            own = {"model": model, "seed": seed, "chance": 0.1}
            rows.append(score_rows.row(value, post_processing=post, **own))
            # Better at one size, worse on the whole.
            rows.append(score_rows.row(0.42 if "100" in model else 0.2, post_processing="tvn", **own))
    rows.append(score_rows.row(0.44, low=0.4, high=0.5))
    return score_rows.scores(*rows)


def test_sizes_have_one_post_processing_and_student_intervals() -> None:
    frame = scaling_frame(experiment(), MANIFEST)
    assert list(frame["size"]) == [100, 800]
    assert set(frame["post_processing"]) == {"raw"}
    assert set(frame["group"]) == {"scVI"}
    for row, values in zip(frame.to_dict("records"), VALUES.values(), strict=True):
        expected = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
        assert (row["low"], row["high"]) == pytest.approx(expected)
        assert row["value"] == pytest.approx(np.mean(values))
        assert row["repeats"] == list(values)


def test_the_others_are_shown_under_the_same_post_processing() -> None:
    scores = experiment()
    [other] = reference_frame(scores, scaling_frame(scores, MANIFEST)).to_dict("records")
    assert (other["group"], other["value"], other["low"], other["high"]) == ("pca", 0.44, 0.4, 0.5)


def test_a_repeat_without_a_score_is_a_hole_with_its_reason() -> None:
    scores = experiment()
    bad = (scores["model"] == "scVI, 100 samples") & (scores["seed"] == 1)
    scores.loc[bad, ["status", "value", "reason"]] = ["failed", math.nan, "it diverged"]
    frame = scaling_frame(scores, MANIFEST)
    assert math.isnan(frame.loc[0, "value"])
    [grid] = experiment_grids(frame, "size")
    assert grid.rows[0].cells[0].text == "–"
    assert grid.reasons == ("it diverged",)
    assert grid.rows[1].names == ("scVI", "800")


def test_models_that_differ_in_the_likelihood_alone_are_one_experiment() -> None:
    def model(label: str, **options: Any) -> dict[str, Any]:
        return {"dataset": "screen", "label": label, "source": "scvi", "options": options}

    manifest = {
        "embeddings": [
            model("scVI ZINB", likelihood="zinb", latent=4),
            model("scVI NB", likelihood="nb", latent=4),
            model("larger", likelihood="nb", latent=32),
        ]
    }
    rows = score_rows.scores(*(score_rows.row(0.1 * i, model=m["label"]) for i, m in enumerate(manifest["embeddings"])))
    frame = likelihood_frame(rows, manifest)
    assert list(frame["likelihood"]) == ["ZINB", "NB"]
    assert likelihood_frame(rows, {"embeddings": manifest["embeddings"][1:]}).empty


# Figures


def values_of(spec: Any) -> list[dict[str, Any]]:
    """Every row of data in a chart."""
    found: list[dict[str, Any]] = []
    if isinstance(spec, dict):
        for name, item in spec.items():
            found += item if name == "values" and item and isinstance(item[0], dict) else values_of(item)
    elif isinstance(spec, list):
        for item in spec:
            found += values_of(item)
    return found


def test_the_heat_map_has_the_numbers_of_the_summary() -> None:
    pytest.importorskip("altair")
    from txeval.report.figures import summary_figure

    scores = score_rows.screen_scores()
    shown = [row for row in values_of(summary_figure(scores).to_dict()) if "text" in row]
    expected = summary(scores)
    assert len(shown) == len(expected)
    assert sorted(row["text"] for row in shown) == sorted(
        "–" if math.isnan(value) else f"{value:.3f}" for value in expected["value"]
    )
    assert sum(row["best"] for row in shown) == expected["best"].sum()
    assert all(row["place"] == 0 for row in shown if row["model"] == "random")


def test_figures_of_experiments_have_the_numbers_of_their_frames() -> None:
    pytest.importorskip("altair")
    from txeval.report.figures import scaling_figure

    rows = values_of(scaling_figure(experiment(), MANIFEST).to_dict())
    points = {(row["size"], round(row["value"], 6)) for row in rows if "low" in row}
    assert points == {(100, 0.3), (800, 0.55)}
    assert {row["value"] for row in rows if row.get("group") == "pca"} == {0.44}
    with pytest.raises(InputError, match="no experiment"):
        scaling_figure(experiment(), {"embeddings": []})


def test_hostile_labels_are_text_in_a_figure(tmp_path: Path) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    from txeval.report.figures import level_figure, save, summary_figure

    label = "<script>alert(1)</script>'\"&\u202e datum.x"
    scores = score_rows.screen_scores()
    scores["model"] = [label if model == "scVI" else model for model in scores["model"]]
    for name, figure in (("a.svg", summary_figure(scores)), ("b.svg", level_figure(scores, "knn"))):
        save(figure, tmp_path / name)
        root = ET.fromstring((tmp_path / name).read_text(encoding="utf-8"))
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert "script" not in tags and "text" in tags
        assert any("<script>" in (element.text or "") for element in root.iter())
    with pytest.raises(InputError, match="svg, pdf, png"):
        save(summary_figure(scores), tmp_path / "a.gif")


def test_without_the_libraries_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from txeval.report.figures import summary_figure

    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(InputError, match=r"txeval\[report\]"):
        summary_figure(score_rows.screen_scores())


def test_figures_say_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figures", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["figures", str(tmp_path), "--format", "gif"]) == 2
    assert "svg" in capsys.readouterr().err
