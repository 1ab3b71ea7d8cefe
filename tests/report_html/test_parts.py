"""The parts of the report that need no browser."""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
import re
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from score_rows import row, scores, screen_scores

from txeval.data.samples import Samples
from txeval.errors import InputError
from txeval.report.html import ReportOptions
from txeval.report.html.data import make_views
from txeval.report.html.maps import cluster_order, cosines_between, layout_of, nearest, sample_of_cells
from txeval.report.html.markup import Markup, element
from txeval.report.html.packing import Block, Packer, embedded_json, plain_text
from txeval.report.html.verdict import Contender, LevelScores, ScoreColumn, judge

# Packing


def unpacked(ref: dict[str, Any], packer: Packer) -> dict[str, np.ndarray[Any, Any]]:
    """What the page's script makes of a block."""
    content = gzip.decompress(base64.b64decode(packer.texts[ref["block"]]))
    found, start = {}, 0
    for column in ref["columns"]:
        n = column["n"]
        octets = np.frombuffer(content, np.uint8)[start : start + 2 * n].astype(int)
        codes = octets[:n] + 256 * octets[n:]
        found[column["name"]] = np.where(codes == 65535, np.nan, column["offset"] + codes * column["step"])
        start += 2 * n
    assert start == len(content)
    return found


@given(nps.arrays(np.float64, st.integers(0, 50), elements=st.floats(-1e6, 1e6) | st.just(math.nan)))
def test_packed_numbers_come_back_within_half_a_step(values: np.ndarray[Any, Any]) -> None:
    block, packer = Block(), Packer()
    block.steps("x", values)
    block.codes("i", np.arange(len(values)) - 1)
    found = unpacked(packer.add(block), packer)
    finite = values[np.isfinite(values)]
    half = np.ptp(finite) / 65534 / 2 if len(finite) else 0
    np.testing.assert_array_equal(np.isnan(found["x"]), np.isnan(values))
    np.testing.assert_allclose(found["x"], values, atol=half * (1 + 1e-9) + 1e-9, rtol=0)
    expected = np.arange(len(values), dtype=float) - 1
    expected[expected < 0] = np.nan
    np.testing.assert_array_equal(found["i"], expected)


@pytest.mark.parametrize(
    "grid", [np.arange(1, 1001) / 1000, np.array([0, 3, 7]) / 60, np.array([0.25]), np.arange(-5, 5)]
)
def test_numbers_on_a_grid_come_back_as_they_are(grid: np.ndarray[Any, Any]) -> None:
    values = np.random.default_rng(0).choice(grid, 500)
    block, packer = Block(), Packer()
    block.steps("x", values)
    np.testing.assert_allclose(unpacked(packer.add(block), packer)["x"], values, atol=1e-12, rtol=0)


def test_packed_numbers_can_be_rounded() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    sizes = []
    for digits in (None, 3):
        block, packer = Block(), Packer()
        block.steps("x", values, digits=digits)
        found = unpacked(packer.add(block), packer)["x"]
        sizes.append(packer.size)
    np.testing.assert_allclose(found, np.round(values, 3), atol=1e-9)
    assert sizes[1] < sizes[0]


def test_numbers_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match="too large"):
        Block().codes("i", [65535])


@settings(max_examples=40)
@given(st.text() | st.lists(st.text()) | st.dictionaries(st.text(), st.floats() | st.text()))
def test_embedded_json_holds_nothing_that_ends_or_opens_an_element(data: Any) -> None:
    text = embedded_json(data)
    assert not set(text) & set("<>&\u2028\u2029")
    clean = json.loads(embedded_json(json.loads(text)))
    assert clean == json.loads(text)


def test_nan_is_null() -> None:
    assert embedded_json({"a": math.nan, "b": np.float64("inf"), "c": np.array([1.5, math.nan])}) == (
        '{"a":null,"b":null,"c":[1.5,null]}'
    )


@given(st.text())
def test_text_in_elements_is_escaped(text: str) -> None:
    made = element("b", text, title=text)
    assert re.fullmatch(r'<b title="([^"<>]*)">([^<>]*)</b>', made, flags=re.DOTALL)
    assert html.unescape(made[made.index(">") + 1 : -4]) == html.unescape(html.escape(plain_text(text)))
    assert element("i", made) == f"<i>{made}</i>"
    assert element("br") == "<br>"
    assert element("p", None, False, [Markup("&amp;"), "&"]) == "<p>&amp;&amp;</p>"


def test_control_characters_are_shown_and_joiners_stay() -> None:
    assert plain_text("a\x00b\x1b[31m\ud800") == "a\\x00b\\x1b[31m\\xd800"
    assert plain_text("👩\u200d🔬") == "👩\u200d🔬"


# The verdict


def column(*models: tuple[str, float, float, float], higher: bool = True) -> ScoreColumn:
    return ScoreColumn("score", [Contender(name, "raw", value, low, high) for name, value, low, high in models], higher)


NAMES = ["a", "b", "c", "random"]


def test_a_lead_beyond_all_intervals_is_clear() -> None:
    level = LevelScores(4, "kNN", [column(("a", 0.8, 0.7, 0.9), ("b", 0.5, 0.4, 0.6), ("random", 0.1, 0.0, 0.2))])
    found = judge([level], ["a", "b", "random"], {"random"})
    assert found.headline == "a is best on 1 of 1 level, without post-processing."
    assert found.levels[0].rivals == () == found.levels[0].unknown
    assert found.levels[0].above_baseline == "yes"
    assert "The lead is clear on every level." in found.sentences


def test_overlapping_intervals_are_not_told_apart_and_missing_ones_are_not_known() -> None:
    columns = [
        column(("a", 0.8, 0.6, 0.9), ("b", 0.7, 0.5, 0.8), ("c", 0.75, math.nan, math.nan), ("random", 0.79, 0, 1))
    ]
    found = judge([LevelScores(4, "kNN", columns)], NAMES, {"random"}).levels[0]
    assert found.leaders == ("a",)
    assert found.rivals == ("b",)
    assert found.unknown == ("c",)
    assert found.above_baseline == "unclear"
    assert "cannot be told apart from b" in found.sentence


def test_one_score_beyond_the_interval_is_enough_to_tell_two_apart() -> None:
    wide = column(("a", 0.8, 0.1, 0.9), ("b", 0.5, 0.1, 0.9))
    narrow = column(("a", 0.8, 0.7, 0.9), ("b", 0.5, 0.4, 0.6))
    assert judge([LevelScores(2, "probe", [wide, narrow])], ["a", "b"], set()).levels[0].rivals == ()


def test_lower_can_be_better_and_a_baseline_never_wins() -> None:
    level = LevelScores(
        6, "error", [column(("a", 2.0, 1.9, 2.1), ("b", 1.0, 0.9, 1.1), ("random", 0.5, 0.4, 0.6), higher=False)]
    )
    found = judge([level], ["a", "b", "random"], {"random"})
    assert found.levels[0].leaders == ("b",)
    assert found.levels[0].above_baseline == "no"
    assert any("Nothing is above the random baseline" in text for text in found.sentences)


def test_a_level_without_scores_is_told_with_its_reason() -> None:
    levels = [LevelScores(5, "relations", [column(("a", math.nan, math.nan, math.nan))], reason="18 genes; 50 needed")]
    found = judge(levels, ["a", "b"], set())
    assert found.headline == "No level could be scored."
    assert found.levels[0].sentence == "18 genes; 50 needed"
    assert "Not scored: level 5 relations." in found.sentences


def test_the_single_choice_has_the_lowest_mean_rank_and_every_score() -> None:
    def level(number: int, values: dict[tuple[str, str], float]) -> LevelScores:
        return LevelScores(number, "x", [ScoreColumn("s", [Contender(m, p, v) for (m, p), v in values.items()])])

    one = level(1, {("a", "raw"): 3, ("a", "tvn"): 9, ("b", "raw"): 2, ("b", "tvn"): 1})
    two = level(2, {("a", "raw"): 3, ("a", "tvn"): math.nan, ("b", "raw"): 4, ("b", "tvn"): 1})
    three = level(3, {("a", "raw"): 3, ("a", "tvn"): 9, ("b", "raw"): 2, ("b", "tvn"): 1})
    # a/tvn leads wherever it has a score, but has none on level 2.
    assert judge([one, two, three], ["a", "b"], set()).choice == ("a", "raw")
    assert judge([one, three], ["a", "b"], set()).choice == ("a", "tvn")


def test_the_verdict_agrees_with_the_summary_table() -> None:
    [view] = make_views(screen_scores())
    best = view.summary[view.summary["best"]]
    for found in view.verdict.levels:
        own = best[best["level"] == found.level]
        if len(own):
            assert set(found.leaders) == set(own["model"])
    assert view.verdict.headline.startswith("scVI is best on")


def test_the_scale_goes_from_what_is_known_without_information_to_the_best() -> None:
    rows = [row(0.2, model="random", chance=0.1), row(0.4, model="pca", chance=0.1), row(0.6, model="scVI", chance=0.1)]
    [view] = make_views(scores(*rows))
    [one] = view.columns
    assert (one.chance, one.random, one.floor, one.top) == pytest.approx((0.1, 0.2, 0.2, 0.6))
    assert [one.position(v) for v in (0.2, 0.4, 0.6)] == pytest.approx([0, 0.5, 1])
    assert one.position(0.1) < 0
    # No model reaches the baseline: all of them lie below the scale.
    [view] = make_views(scores(row(0.9, model="random"), row(0.4, model="pca"), row(0.6, model="scVI")))
    assert view.columns[0].position(0.6) == -1


def test_the_interval_of_several_seeds_spans_theirs() -> None:
    rows = [row(0.5 + 0.1 * s, seed=s, low=0.4 + 0.1 * s, high=0.7 + 0.1 * s) for s in range(3)]
    [view] = make_views(scores(*rows))
    cell = view.cells.iloc[0]
    assert (cell["low"], cell["high"]) == pytest.approx((0.4, 0.9))
    assert [one[0] for one in cell["seeds"]] == [0, 1, 2]


# Maps


def test_neighbours_are_those_of_the_full_matrix() -> None:
    means = np.random.default_rng(0).normal(size=(57, 7)).astype(np.float32)
    means[5] = np.nan
    means[6] = 0
    found = nearest(means, 4, block=10)
    full = cosines_between(means)
    for i in range(57):
        if i in (5, 6):
            assert (found.index[i] == -1).all()
            continue
        others = [j for j in range(57) if j not in (i, 5, 6)]
        expected = sorted(others, key=lambda j: -full[i, j])[:4]
        assert found.index[i].tolist() == expected
        np.testing.assert_allclose(found.cosine[i], full[i, expected], atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_rows_have_few_neighbours(n: int) -> None:
    found = nearest(np.eye(3, dtype=np.float32)[:n], 5)
    assert found.index.shape == (n, max(n - 1, 0))


def test_clusters_stand_together() -> None:
    rng = np.random.default_rng(1)
    groups = rng.permutation(np.repeat([0, 1, 2], 6))
    means = (10 * np.eye(3)[groups] + rng.normal(scale=0.3, size=(18, 3))).astype(np.float32)
    means[0] = np.nan
    order = cluster_order(cosines_between(means))
    assert sorted(order) == list(range(18))
    assert order[-1] == 0
    changes = np.flatnonzero(np.diff(groups[order[:-1]]))
    assert len(changes) == 2


def samples(n: int, controls: int) -> Samples:
    code = np.where(np.arange(n) < controls, 0, 1).astype(np.int64)
    batch = np.zeros(n, np.int64)
    return Samples(code, np.array(["c", "p"]), code == 0, batch, np.array(["b"]), np.array(["", "p"]))


@pytest.mark.parametrize(
    ("n", "controls", "wanted", "expected"),
    [(100, 50, 200, 50), (1000, 500, 100, 20), (1000, 5, 100, 5), (1000, 990, 100, 90)],
)
def test_the_drawn_samples_are_seeded_and_have_controls(n: int, controls: int, wanted: int, expected: int) -> None:
    rows = sample_of_cells(samples(n, controls), wanted)
    assert len(rows) == min(n, wanted) == len(set(rows.tolist()))
    assert (rows < controls).sum() == expected
    np.testing.assert_array_equal(rows, sample_of_cells(samples(n, controls), wanted))


def test_the_two_dimensions_are_the_principal_components() -> None:
    values = np.random.default_rng(2).normal(size=(60, 5)).astype(np.float32) * [9, 5, 1, 1, 1]
    layout = layout_of(values.astype(np.float32), "pca")
    centred = values - values.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(layout.xy), np.abs(u[:, :2] * s[:2]), rtol=1e-3, atol=1e-3)
    share = 100 * s[0] ** 2 / (s**2).sum()
    assert layout.axes[0] == f"PC 1 ({share:.1f} %)"
    one = layout_of(values[:, :1].astype(np.float32), "pca")
    assert one.xy.shape == (60, 2)


def test_without_umap_it_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match="umap-learn is not installed") as caught:
        layout_of(np.ones((4, 2), np.float32), "umap")
    assert "txeval[umap]" in caught.value.remedy


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="layout"):
        ReportOptions(layout="tsne")
