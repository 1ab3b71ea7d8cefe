from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_rows import row, scores, screen_scores

from txeval.errors import InputError
from txeval.report import summary
from txeval.report.tables import aggregate, catalogue, full, holes

POSTS = ("raw", "centering", "center_scaling", "tvn")


def test_mean_and_sample_standard_deviation_over_seeds() -> None:
    values = [0.2, 0.5, 0.9]
    [cell] = aggregate(scores(*(row(v, seed=s, task="linear_probe", level=2) for s, v in enumerate(values)))).to_dict(
        "records"
    )
    assert cell["value"] == pytest.approx(np.mean(values))
    assert cell["sd"] == pytest.approx(np.std(values, ddof=1))
    assert (cell["n_seeds"], cell["deterministic"], cell["n_failed"]) == (3, False, 0)


def test_a_deterministic_score_has_no_deviation_and_no_seeds() -> None:
    [cell] = aggregate(scores(row(0.25))).to_dict("records")
    assert (cell["value"], cell["n_seeds"], cell["deterministic"]) == (0.25, 0, True)
    assert np.isnan(cell["sd"])


def test_one_seed_is_not_called_deterministic() -> None:
    [cell] = aggregate(scores(row(0.25, seed=0))).to_dict("records")
    assert (cell["n_seeds"], cell["deterministic"]) == (1, False)
    assert np.isnan(cell["sd"])


def test_a_failed_seed_leaves_a_hole_instead_of_the_mean_of_the_others() -> None:
    [cell] = aggregate(scores(row(0.2, seed=0), row(None, seed=1, reason="diverged"), row(0.4, seed=2))).to_dict(
        "records"
    )
    assert np.isnan(cell["value"])
    assert np.isnan(cell["sd"])
    assert cell["n_failed"] == 1
    assert "seed 1 of 3 seeds" in cell["reason"]
    assert "diverged" in cell["reason"]


def test_what_was_left_out_is_kept_with_its_range_over_seeds() -> None:
    made = aggregate(
        scores(
            row(0.2, seed=0, left_out='{"no label": 3, "too small": 1}', notes="a | b"),
            row(0.2, seed=1, left_out='{"no label": 3, "too small": 4}', notes="b | c"),
        )
    )
    assert made.loc[0, "left_out"] == "no label: 3; too small: 1 to 4"
    assert made.loc[0, "notes"] == "a | b | c"


def test_an_interval_is_not_averaged_over_seeds() -> None:
    one = aggregate(scores(row(0.5, low=0.4, high=0.6)))
    two = aggregate(scores(row(0.5, seed=0, low=0.4, high=0.6), row(0.5, seed=1, low=0.4, high=0.6)))
    assert (one.loc[0, "low"], one.loc[0, "high"]) == (0.4, 0.6)
    assert two[["low", "high"]].isna().all(axis=None)


def test_the_same_seed_twice_is_refused() -> None:
    twice = scores(row(0.2, seed=0, embedding_fingerprint="a"), row(0.3, seed=0, embedding_fingerprint="b"))
    with pytest.raises(InputError, match=r"(?s)more than once.*'pca'.*knn/top1.*another label"):
        aggregate(twice)


def test_frames_that_are_no_scores_are_refused() -> None:
    with pytest.raises(InputError, match="'protocol' is missing"):
        aggregate(screen_scores().drop(columns="protocol"))


def test_datasets_and_protocols_are_never_mixed() -> None:
    mixed = scores(
        row(0.1, dataset="a"), row(0.3, dataset="b"), row(0.5, dataset="a", protocol="x", protocol_fingerprint="p2")
    )
    assert sorted(aggregate(mixed)["value"]) == [0.1, 0.3, 0.5]
    assert len(summary(mixed)) == 3


def test_a_level_that_failed_as_a_whole_is_a_hole_under_every_database() -> None:
    table = summary(screen_scores())
    recall = table[(table["task"] == "relationships") & (table["model"] == "scVI")]
    assert list(recall["subset"]) == ["CORUM", "StringDB"]
    assert recall["value"].isna().all()
    assert set(recall["reason"]) == {"3 perturbed genes; 10 needed"}
    assert "" not in set(table.loc[table["task"] == "relationships", "subset"])


def test_a_level_that_failed_for_everybody_is_one_row() -> None:
    failed = scores(*(row(None, task="relationships", level=5, metric="recall", model=m) for m in ("pca", "scVI")))
    table = summary(failed)
    assert list(table["subset"]) == ["", ""]
    assert table["reason"].eq("too few samples").all()


def test_the_best_post_processing_is_chosen_per_model_and_metric() -> None:
    table = summary(scores(row(0.2), row(0.6, post_processing="tvn"), row(0.4, post_processing="centering")))
    [chosen] = table.to_dict("records")
    assert (chosen["post_processing"], chosen["value"], chosen["n_choices"]) == ("tvn", 0.6, 3)


def test_the_lowest_is_best_where_lower_is_better() -> None:
    lower = [info for info in catalogue().values() if not info.higher_is_better]
    assert lower, "no registered metric is better when lower: the direction is not tested"
    info = lower[0]
    same = {"task": info.task, "level": info.level, "metric": info.metric}
    table = summary(scores(row(0.9, **same), row(0.1, post_processing="tvn", **same)), metrics=[info.metric])
    assert table.loc[0, "post_processing"] == "tvn"


def test_a_tie_goes_to_the_first_post_processing() -> None:
    rows = [row(0.5, post_processing=post) for post in reversed(POSTS)]
    assert summary(scores(*rows)).loc[0, "post_processing"] == "raw"


def test_a_post_processing_with_a_hole_is_not_chosen_and_is_counted() -> None:
    table = summary(scores(row(0.2), row(None, post_processing="tvn")))
    assert (table.loc[0, "post_processing"], table.loc[0, "n_choices"], table.loc[0, "n_holes"]) == ("raw", 1, 1)


def test_a_model_without_the_metric_says_so() -> None:
    table = summary(scores(row(0.2), row(0.3, model="scVI", metric="top5")))
    hole = table[(table["model"] == "scVI") & (table["metric"] == "top1")].iloc[0]
    assert np.isnan(hole["value"])
    assert hole["reason"] == "not in the run"


def test_a_baseline_comes_first_and_is_never_best_whatever_its_label() -> None:
    table = summary(scores(row(0.9, model="Zero", source="random"), row(0.2), row(0.3, model="alpha", source="a.npy")))
    assert list(table["model"]) == ["Zero", "alpha", "pca"]
    assert list(table["best"]) == [False, True, False]
    assert list(table["role"]) == ["floor", "", ""]


def test_the_summary_holds_the_headline_metrics_in_the_order_of_the_levels() -> None:
    table = summary(screen_scores())
    assert list(dict.fromkeys(table["level"])) == [2, 4, 5]
    headline = {(i.task, i.metric) for i in catalogue().values() if i.headline}
    assert set(zip(table["task"], table["metric"], strict=True)) <= headline
    assert list(dict.fromkeys(table.loc[table["task"] == "relationships", "label"])) == ["CORUM", "StringDB"]


def test_a_metric_that_is_not_installed_is_shown_all_the_same() -> None:
    mine = scores(row(0.2, metric="mine"))
    assert not catalogue(mine)["knn", "mine"].known
    assert list(full(mine)["knn"]["metric"]) == ["mine"]
    assert summary(mine).empty


def test_full_has_every_post_processing_of_every_model() -> None:
    tables = full(screen_scores())
    assert list(tables) == ["linear_probe", "knn", "relationships"]
    knn = tables["knn"]
    got = {tuple(pair) for pair in knn[["model", "post_processing"]].to_numpy()}
    assert got == set(itertools.product(("random", "pca", "scVI"), POSTS))


def test_holes_are_listed_by_reason() -> None:
    found = holes(screen_scores()).set_index("reason")
    assert found.loc["diverged", "n_rows"] == 2
    assert found.loc["3 perturbed genes; 10 needed", "post_processings"] == "raw, centering, center_scaling, tvn"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.randoms(use_true_random=False))
def test_the_summary_is_the_best_mean_whatever_the_order_of_rows(values: list[float], random) -> None:
    rows = [
        row(value, seed=seed, post_processing=post)
        for value, (post, seed) in zip(values, itertools.product(POSTS, (0, 1)), strict=True)
    ]
    random.shuffle(rows)
    expected = max((values[2 * i] + values[2 * i + 1]) / 2 for i in range(4))
    table = summary(scores(*rows))
    assert table.loc[0, "value"] == pytest.approx(expected)
    pd.testing.assert_frame_equal(table, summary(scores(*rows[::-1])))
