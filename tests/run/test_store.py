"""Results folders: damage, versions, changed meanings, merging."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_helpers import N, run, same_scores, stamps, write_screen
from sealing import rewrite

from txeval.errors import InputError
from txeval.run import merge, read_details, read_scores
from txeval.run.files import write_json
from txeval.run.rows import COLUMNS, score_frame
from txeval.run.store import Store

SETTINGS = {"tasks": ["stub_size"], "post_processing": ["raw"], "seeds": 1}


@pytest.fixture(scope="module")
def original(screen_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with two cells that have tables."""
    out = tmp_path_factory.mktemp("original") / "out"
    run(screen_file, out, **SETTINGS)
    return out


@pytest.fixture
def out(original: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(original, tmp_path / "out"))


def first_cell(out: Path) -> Path:
    return min((out / "cells").glob("*.json"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4:-8] = bytes(len(content) - 12)
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda out: truncate(first_cell(out)),
    "empty": lambda out: first_cell(out).write_text(""),
    "no JSON": lambda out: first_cell(out).write_bytes(b"\xff\x00{"),
    "another thing": lambda out: first_cell(out).write_text("[]"),
    "of another key": lambda out: rewrite(first_cell(out), lambda cell: cell.update(key="0" * 64)),
    "table truncated": lambda out: truncate(first_cell(out).with_suffix(".units.parquet")),
    "table garbled": lambda out: garble(first_cell(out).with_suffix(".units.parquet")),
    "table missing": lambda out: first_cell(out).with_suffix(".units.parquet").unlink(),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_damaged_cell_is_computed_again(name: str, out: Path, original: Path, screen_file: Path, log: Path) -> None:
    DAMAGES[name](out)
    outcome = run(screen_file, out, **SETTINGS)
    assert outcome.n_computed == 1
    assert log.read_text().splitlines() == ["stub_size 0"]
    assert any("damaged" in text and first_cell(out).name in text for text in outcome.warnings)
    same_scores(outcome.scores, read_scores(original))
    pd.testing.assert_frame_equal(read_details(out, "stub_size", "units"), read_details(original, "stub_size", "units"))


def test_damaged_embeddings_and_fits(out: Path, original: Path, screen_file: Path) -> None:
    settings = {**SETTINGS, "post_processing": ["raw", "centering"]}
    run(screen_file, out, **settings)
    good = read_scores(out)
    for path in [*(out / "embeddings").glob("*.np?"), *(out / "postprocessing").glob("*.npz")]:
        truncate(path)
    for path in (out / "cells").glob("*.json"):
        path.unlink()
    outcome = run(screen_file, out, **settings)
    same_scores(outcome.scores, good)
    assert sum("will be made again" in text for text in outcome.warnings) == 3
    assert sum("will be fitted again" in text for text in outcome.warnings) == 2


def test_a_damaged_manifest_and_plan(out: Path, original: Path, screen_file: Path) -> None:
    truncate(out / "manifest.json")
    truncate(next((out / "plans").glob("*.json")))
    (out / "scores.parquet").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        read_scores(out)
    outcome = run(screen_file, out, **SETTINGS)
    assert outcome.n_computed == 0
    assert sum("is damaged" in text for text in outcome.warnings) >= 2
    same_scores(read_scores(out), read_scores(original))
    assert json.loads((out / "manifest.json").read_text())["format"] == 2


def test_a_newer_version(out: Path, screen_file: Path) -> None:
    write_json(out / "manifest.json", {"format": 99, "txeval_version": "9.0"})
    for act in (
        lambda: run(screen_file, out, **SETTINGS),
        lambda: read_scores(out),
        lambda: merge([out, out.parent], out / "m"),
    ):
        with pytest.raises(InputError, match=r"written by txeval 9\.0 in format 99"):
            act()


def test_folders_that_are_none(tmp_path: Path, screen_file: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_scores(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no results"):
        read_scores(tmp_path)
    write_json(tmp_path / "manifest.json", {"name": "a web page"})
    with pytest.raises(InputError, match="not a manifest of txeval"):
        run(screen_file, tmp_path)


def test_another_screen(out: Path, tmp_path: Path) -> None:
    other = write_screen(tmp_path / "other.h5ad", seed=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    with pytest.raises(InputError, match="scores of another screen") as why:
        run(other, out, **SETTINGS)
    assert "other.h5ad" in str(why.value)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.json")} == before


def test_another_protocol(out: Path, screen_file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: paper\ntasks: {stub_size: {power: 2.0}}\n")
    outcome = run(screen_file, out, **SETTINGS, protocol=mine)
    size = outcome.scores.query("metric == 'size'")
    assert size.groupby("protocol")["protocol_fingerprint"].nunique().to_dict() == {"mine": 1, "paper": 1}
    assert size["protocol_fingerprint"].nunique() == 2
    # The same name for other parameters would mix what does not belong together.
    mine.write_text("extends: paper\ntasks: {stub_size: {power: 3.0}}\n")
    with pytest.raises(InputError, match=r"tasks\.stub_size\.power 2\.0 there, 3\.0 now"):
        run(screen_file, out, **SETTINGS, protocol=mine)
    # More seeds and post-processings are more of the same.
    mine.write_text("extends: paper\nseeds: 2\npost_processing: {choices: [raw]}\ntasks: {stub_size: {power: 2.0}}\n")
    outcome = run(screen_file, out, tasks=["stub_size"], post_processing=["raw"], seeds=2, protocol=mine)
    size = outcome.scores.query("metric == 'size' and protocol == 'mine'")
    assert len(set(size["protocol_fingerprint"])) == 1
    assert len(size) == 3


def test_a_label_with_a_new_meaning(out: Path, screen_file: Path) -> None:
    models = ["random@of=stub_plain", "mine=stub_plain"]
    outcome = run(screen_file, out, **{**SETTINGS, "embeddings": models})
    assert any("mine is another embedding than before" in text for text in outcome.warnings)
    mine = outcome.scores.query("model == 'mine'")
    assert set(mine["source"]) == {"stub_plain"}
    assert len(set(mine["embedding_fingerprint"])) == 1
    # The old meaning comes back without a computation.
    assert run(screen_file, out, **SETTINGS).n_computed == 0


def test_a_file_that_has_changed_in_place(screen_file: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "vectors.npy"
    rng = np.random.default_rng(0)
    settings = {**SETTINGS, "embeddings": [f"mine={vectors}"], "baseline": False, "positional": True}
    found = []
    for scale in (1.0, 2.0, 1.0):
        np.save(vectors, (rng.normal(size=(N, 3)) if not found else np.load(vectors) * scale / found[-1][0]))
        outcome = run(screen_file, tmp_path / "out", **settings)
        value = outcome.scores.query("metric == 'size'")["value"].iloc[0]
        found.append((scale, value, outcome.n_computed))
    assert found[1][1] == pytest.approx(2 * found[0][1])
    assert found[2][1] == found[0][1]
    assert [computed for _, _, computed in found] == [1, 1, 0]
    # It stays where it is: no copy in the results folder.
    assert not list((tmp_path / "out" / "embeddings").glob("*.npy"))


def test_tables_must_have_plain_names(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    with pytest.raises(ValueError, match="letters"):
        store.save_cell("k", {"rows": []}, {"../x": pd.DataFrame()})


def test_score_frame() -> None:
    frame = score_frame([{"dataset": "a", "value": np.float32(0.5), "seed": None}, {"seed": 3, "derived": True}])
    assert tuple(frame.columns) == COLUMNS
    assert frame["value"].dtype == np.float64
    assert frame["seed"].tolist() == [pd.NA, 3]
    assert frame["derived"].tolist() == [False, True]
    assert frame["reason"].tolist() == ["", ""]
    assert (score_frame([]).dtypes == frame.dtypes).all()


# Merging


def test_merge(screen_file: Path, tmp_path: Path) -> None:
    one = run(screen_file, tmp_path / "one", **SETTINGS)
    other = run(screen_file, tmp_path / "other", **{**SETTINGS, "embeddings": ["b=stub_plain"], "baseline": False})
    elsewhere = write_screen(tmp_path / "elsewhere.h5ad", seed=5)
    third = run(elsewhere, tmp_path / "third", **SETTINGS)
    merged = merge([tmp_path / "one", tmp_path / "other", tmp_path / "third"], tmp_path / "all")
    assert len(merged.scores) == len(one.scores) + len(other.scores) + len(third.scores)
    assert set(merged.scores["dataset"]) == {"small", "elsewhere"}
    for part, dataset, models in (
        (one, "small", ["random", "mine"]),
        (third, "elsewhere", ["random", "mine"]),
    ):
        rows = merged.scores[(merged.scores["dataset"] == dataset) & merged.scores["model"].isin(models)]
        plain = rows[~rows["derived"]].reset_index(drop=True)
        pd.testing.assert_frame_equal(plain, part.scores[~part.scores["derived"]].reset_index(drop=True))
    pd.testing.assert_frame_equal(read_scores(tmp_path / "all"), merged.scores)
    details = read_details(tmp_path / "all", "stub_size", "units")
    assert set(zip(details["dataset"], details["model"], strict=True)) == {
        ("small", "random"),
        ("small", "mine"),
        ("small", "b"),
        ("elsewhere", "random"),
        ("elsewhere", "mine"),
    }
    split = pd.read_parquet(tmp_path / "all" / "splits.parquet")
    assert split.groupby("dataset").size().to_dict() == {"elsewhere": N, "small": N}
    # What is merged can be merged again, and gone on with.
    again = merge([tmp_path / "all", tmp_path / "one"], tmp_path / "again")
    pd.testing.assert_frame_equal(again.scores, merged.scores)
    outcome = run(screen_file, tmp_path / "all", **SETTINGS)
    assert outcome.n_computed == 0
    pd.testing.assert_frame_equal(outcome.scores, merged.scores)


def test_merge_into_a_folder_with_results(screen_file: Path, out: Path, tmp_path: Path) -> None:
    run(screen_file, tmp_path / "other", **{**SETTINGS, "embeddings": ["b=stub_plain"], "baseline": False})
    merged = merge([tmp_path / "other"], out)
    assert set(merged.scores["model"]) == {"random", "mine", "b"}


def test_merge_takes_equal_cells_once_and_refuses_others(out: Path, original: Path, tmp_path: Path) -> None:
    def change(by: float) -> None:
        def scale(cell: dict[str, Any]) -> None:
            for row in cell["rows"]:
                if row["metric"] == "size":
                    row["value"] *= 1 + by

        rewrite(first_cell(out), scale)

    change(1e-12)
    merged = merge([original, out], tmp_path / "fine")
    pd.testing.assert_frame_equal(merged.scores, read_scores(original))
    change(1e-6)
    with pytest.raises(InputError, match=r"contradict each other in 1 place\(s\)(.|\n)*stub_size.*size is"):
        merge([original, out], tmp_path / "not")
    assert not (tmp_path / "not").exists()


def test_merge_prefers_a_result_to_an_error(out: Path, original: Path, tmp_path: Path) -> None:
    def fail(cell: dict[str, Any]) -> None:
        cell["state"] = "error"
        cell["rows"] = [{**row, "value": None, "status": "failed", "reason": "lightning"} for row in cell["rows"]]

    rewrite(first_cell(out), fail)
    for order in ([original, out], [out, original]):
        merged = merge(order, tmp_path / order[0].parent.name)
        pd.testing.assert_frame_equal(merged.scores, read_scores(original))


def test_merge_of_what_does_not_go_together(screen_file: Path, out: Path, tmp_path: Path) -> None:
    def refused(other: Path, fragment: str) -> None:
        with pytest.raises(InputError, match=fragment):
            merge([out, other], tmp_path / "merged")

    run(screen_file, tmp_path / "label", **{**SETTINGS, "embeddings": ["mine=stub_plain"], "baseline": False})
    refused(tmp_path / "label", "model 'mine' is another embedding")
    other = write_screen(tmp_path / "small.h5ad", seed=9)
    run(other, tmp_path / "name", **SETTINGS)
    refused(tmp_path / "name", "data set 'small' is another screen")
    protocol = tmp_path / "paper.yaml"
    protocol.write_text("extends: reference\nname: paper\n")
    run(screen_file, tmp_path / "protocol", **SETTINGS, protocol=protocol)
    refused(tmp_path / "protocol", "protocol 'paper' differs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("txeval.run.plan.UNITS_VERSION", 0)
        run(screen_file, tmp_path / "older", **SETTINGS)
    refused(tmp_path / "older", "computed with other settings")
    refused(tmp_path / "nowhere", "does not exist")
    refused(out, "named twice")
    with pytest.raises(InputError, match="two folders"):
        merge([out], tmp_path / "merged")


def test_cells_are_not_touched_by_merging(out: Path, screen_file: Path, tmp_path: Path) -> None:
    run(screen_file, tmp_path / "other", **{**SETTINGS, "embeddings": ["b=stub_plain"], "baseline": False})
    before = stamps(out)
    merge([out, tmp_path / "other"], tmp_path / "merged")
    assert stamps(out) == before
