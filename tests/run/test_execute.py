"""Runs of stub tasks: what is computed, what is kept, what is shown, what goes wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_helpers import N, config, run, same_scores, stamps

from txeval.compute.arrays import take_rows
from txeval.errors import InputError
from txeval.run import COLUMNS, NullProgress, execute, make_plan, read_details, read_scores
from txeval.run.store import Store


@pytest.fixture(scope="module")
def done(screen_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the standard run."""
    out = tmp_path_factory.mktemp("done") / "out"
    outcome = run(screen_file, out)
    assert (outcome.exit_status, outcome.n_reused, outcome.n_errors) == (1, 0, 0)
    return out


def test_rows(done: Path) -> None:
    scores = read_scores(done)
    assert tuple(scores.columns) == COLUMNS
    assert set(scores["status"]) == {"ok", "failed"}
    # 2 models x 2 post-processings; the random baseline for each seed, the other once.
    size = scores[scores["metric"] == "size"]
    assert size.groupby("model").size().to_dict() == {"mine": 2, "random": 4}
    assert size.loc[size["model"] == "mine", "seed"].isna().all()
    assert set(size.loc[size["model"] == "random", "seed"]) == {0, 1}
    noise = scores[scores["metric"] == "noise"]
    assert noise.groupby("model").size().to_dict() == {"mine": 4, "random": 4}
    one = size[(size["model"] == "mine") & (size["post_processing"] == "raw")].iloc[0]
    assert one["chance"] == 1.0
    assert one["low"] < one["value"] < one["high"]
    assert one["interval_unit"] == "batch"
    assert json.loads(one["left_out"]) == {"train samples": 3}
    assert one["notes"] == "a note | another"
    assert one["source"] == "obsm:X_emb"
    assert one["seconds"] > 0
    assert one["peak_memory_mb"] > 10
    assert len(one["cell_key"]) == 64
    assert not one["derived"]


def test_values(done: Path, screen_file: Path) -> None:
    import anndata

    values = anndata.read_h5ad(screen_file).obsm["X_emb"]
    split = pd.read_parquet(done / "splits.parquet")
    scores = read_scores(done)
    mine = scores.query("model == 'mine' and post_processing == 'raw' and task == 'stub_size'")
    norms = np.linalg.norm(values[split.loc[split["test"], "row"]].astype(np.float64), axis=1)
    found = mine.set_index(["metric", "subset"])["value"]
    assert found["size", ""] == pytest.approx(norms.mean(), rel=1e-12)
    assert found["extremes", "least"] == pytest.approx(norms.min(), rel=1e-12)
    assert found["extremes", "most"] == pytest.approx(norms.max(), rel=1e-12)


def test_a_score_that_cannot_be_computed_is_a_row(done: Path) -> None:
    never = read_scores(done).query("metric == 'never'")
    assert len(never) == 6
    assert set(never["status"]) == {"failed"}
    assert set(never["reason"]) == {"it never works"}
    assert never["value"].isna().all()


def test_derived_rows(done: Path) -> None:
    scores = read_scores(done)
    derived = scores[scores["metric"] == "relative"]
    assert derived["derived"].all()
    assert len(derived) == 6
    random = derived[(derived["model"] == "random") & (derived["post_processing"] == "raw")]
    assert random["value"].mean() == pytest.approx(1.0)
    assert derived["seconds"].isna().all()
    assert set(derived["level"]) == {91}


def test_details(done: Path) -> None:
    units = read_details(done, "stub_size", "units")
    assert list(units.columns[:5]) == ["dataset", "protocol", "model", "post_processing", "seed"]
    one = units[(units["model"] == "mine") & (units["post_processing"] == "raw") & (units["metric"] == "size")]
    value = one["numerator"].sum() / one["denominator"].sum()
    scores = read_scores(done).query("model == 'mine' and post_processing == 'raw' and metric == 'size'")
    assert value == pytest.approx(scores["value"].iloc[0])
    assert one["seed"].isna().all()
    batches = read_details(done, "stub_size", "batches")
    assert len(batches) == 6 * 6
    with pytest.raises(InputError, match="'units'"):
        read_details(done, "stub_size", "unit")
    with pytest.raises(InputError, match="'stub_size'"):
        read_details(done, "stub_siz", "units")


def test_splits_and_manifest(done: Path) -> None:
    split = pd.read_parquet(done / "splits.parquet")
    assert list(split.columns) == ["dataset", "split", "row", "sample", "train", "test", "heldout"]
    assert len(split) == N
    assert split["sample"].iloc[7] == "cell_7"
    assert set(split["split"]) == set(read_scores(done)["split"])
    manifest = json.loads((done / "manifest.json").read_text())
    assert manifest["format"] == 2
    assert manifest["state"] == "complete"
    assert manifest["protocols"][0]["tasks"]["knn"]["k"] == 251
    assert manifest["splits"][0]["parts"]["test"]["samples"] == int(split["test"].sum())
    assert {entry["label"] for entry in manifest["embeddings"]} == {"random", "mine"}
    mine = next(entry for entry in manifest["embeddings"] if entry["label"] == "mine")
    assert mine["provenance"][0]["source"] == "obsm:X_emb"
    run_record = manifest["runs"][0]
    assert run_record["state"] == "finished"
    assert run_record["versions"]["numpy"] == np.__version__
    assert {"started", "finished", "platform", "cpu", "command"} <= set(run_record)
    assert set(manifest["columns"]) == set(COLUMNS)
    assert manifest["screens"][0]["n"] == N
    assert any("made of nothing" in text for text in manifest["warnings"])


def test_csv_is_the_same_table(done: Path) -> None:
    table = pd.read_csv(done / "scores.csv", float_precision="round_trip")
    assert tuple(table.columns) == COLUMNS
    scores = read_scores(done)
    np.testing.assert_array_equal(table["value"], scores["value"])
    assert list(table["cell_key"].fillna("")) == list(scores["cell_key"])


def test_embeddings_are_kept_once(done: Path, screen_file: Path) -> None:
    plan = make_plan(config(screen_file, done))
    store = Store(done)
    baseline = [job for job in plan.embeddings if job.spec.label == "random"]
    assert len(baseline) == 2
    # A shuffled embedding is the numbers of its rows, not a copy of them.
    for job in baseline:
        assert (done / "embeddings" / f"{job.key}.index.npy").is_file()
        assert not (done / "embeddings" / f"{job.key}.npy").exists()
    shuffled = [take_rows(store.load_embedding(job.key, N)) for job in baseline]
    assert shuffled[0].dtype == np.float32
    assert not np.array_equal(shuffled[0], shuffled[1])
    np.testing.assert_array_equal(np.sort(shuffled[0], axis=0), np.sort(shuffled[1], axis=0))
    assert not list((done / "embeddings").glob("*.work"))


def test_a_second_run_computes_nothing(screen_file: Path, tmp_path: Path, log: Path) -> None:
    first = run(screen_file, tmp_path / "out")
    lines = log.read_text().splitlines()
    # mine: 2 deterministic and 4 seeded cells; random: 4 and 4; stub_plain once for all of random.
    assert len(lines) == 2 + 4 + 4 + 4 + 1
    before = stamps(tmp_path / "out")
    second = run(screen_file, tmp_path / "out")
    assert log.read_text().splitlines() == lines
    assert (second.n_computed, second.n_reused) == (0, 14)
    assert stamps(tmp_path / "out") == before
    pd.testing.assert_frame_equal(first.scores, second.scores)


def test_adding_an_embedding_keeps_the_others(screen_file: Path, tmp_path: Path, log: Path) -> None:
    out = tmp_path / "out"
    run(screen_file, out)
    before = stamps(out)
    log.write_text("")
    third = run(screen_file, out, embeddings=["random@of=stub_plain", "mine=obsm:X_emb", "third=stub_plain"])
    assert third.n_computed == 2 + 4
    assert {name: stamp for name, stamp in stamps(out).items() if name in before} == before
    # Its embedding was there, under the baseline.
    assert sorted(set(log.read_text().split())) == ["0", "1", "stub_noise", "stub_size"]
    # A run that names the fourth alone keeps the rows of the others too.
    fourth = run(screen_file, out, embeddings=["fourth=stub_seeded"], baseline=False)
    assert set(fourth.scores["model"]) == {"random", "mine", "third", "fourth"}
    same_scores(
        fourth.scores[fourth.scores["model"] != "fourth"].reset_index(drop=True),
        third.scores.reset_index(drop=True),
    )
    assert fourth.exit_status == 1
    details = read_details(out, "stub_size", "units")
    assert set(details["model"]) == {"random", "mine", "third", "fourth"}


def test_one_and_two_workers(screen_file: Path, tmp_path: Path) -> None:
    models = ["random@of=stub_plain", "mine=obsm:X_emb", "stub_seeded"]
    one = run(screen_file, tmp_path / "one", embeddings=models)
    two = run(screen_file, tmp_path / "two", embeddings=models, workers=2)
    processes = {json.loads(path.read_text())["process"] for path in (tmp_path / "two" / "cells").glob("*.json")}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert two.n_computed == one.n_computed
    same_scores(one.scores, two.scores)
    for table in ("units", "batches"):
        pd.testing.assert_frame_equal(
            read_details(tmp_path / "one", "stub_size", table), read_details(tmp_path / "two", "stub_size", table)
        )


def test_two_labels_of_one_embedding_share_their_cells(screen_file: Path, tmp_path: Path, log: Path) -> None:
    outcome = run(
        screen_file,
        tmp_path / "out",
        embeddings=["one=stub_plain", "other=stub_plain"],
        baseline=False,
        tasks=["stub_size"],
    )
    assert log.read_text().splitlines().count("stub_size 0") == 2
    assert any("one and other are the same embedding" in text for text in outcome.warnings)
    size = outcome.scores.query("metric == 'size' and post_processing == 'raw'")
    assert list(size["model"]) == ["one", "other"]
    assert len(set(size["value"])) == 1


def test_an_unexpected_error_is_a_row_and_is_tried_again(
    screen_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    settings = {"tasks": ["stub_trouble"], "embeddings": ["stub_plain"], "baseline": False, "post_processing": ["raw"]}
    monkeypatch.setenv("STUB_TROUBLE", "raise")
    first = run(screen_file, out, **settings)
    assert first.exit_status == 1
    assert first.n_errors == 1
    rows = first.scores.set_index("metric")
    assert rows.loc["fine", "reason"] == "RuntimeError: a fault in [bold]two[/bold] lines"
    assert rows.loc["silent", "status"] == "failed"
    cell = json.loads(next((out / "cells").glob("*.json")).read_text())
    assert "prepare_trouble" in cell["traceback"]
    monkeypatch.setenv("STUB_TROUBLE", "none")
    second = run(screen_file, out, **settings)
    assert second.n_computed == 1
    rows = second.scores.set_index("metric")
    assert rows.loc["fine", "value"] == 1.0
    assert rows.loc["silent", "reason"] == "the metric gave neither a score nor a reason"
    assert rows.loc["broken", "status"] == "failed"
    assert rows.loc["broken", "reason"].startswith("KeyError")
    # What is done but has no score is not tried again.
    assert run(screen_file, out, **settings).n_computed == 0


@pytest.mark.parametrize(
    ("kind", "retries", "tries", "errors"),
    [("once", 1, 2, 0), ("once", 0, 1, 1), ("raise", 1, 2, 1), ("raise", 3, 4, 1), ("value", 3, 1, 1)],
)
def test_errors_that_may_pass_are_tried_again(
    screen_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: Path,
    kind: str,
    retries: int,
    tries: int,
    errors: int,
) -> None:
    monkeypatch.setenv("STUB_TROUBLE", kind)
    monkeypatch.setenv("STUB_MARK", str(tmp_path / "mark"))
    outcome = run(
        screen_file,
        tmp_path / "out",
        tasks=["stub_trouble"],
        embeddings=["stub_plain"],
        baseline=False,
        post_processing=["raw"],
        retries=retries,
        workers=1 if kind == "raise" else 2,
    )
    assert log.read_text().split().count("stub_trouble") == tries
    assert (outcome.n_errors, outcome.n_computed, outcome.exit_status) == (errors, 1, 1)
    assert any("it is tried again" in text for text in outcome.warnings) == (tries > 1)
    assert outcome.scores.set_index("metric").loc["fine", "status"] == ("failed" if errors else "ok")


def test_workers_that_die(screen_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
    monkeypatch.setenv("STUB_TROUBLE", "die")
    monkeypatch.setenv("STUB_MARK", str(tmp_path / "mark"))
    outcome = run(
        screen_file,
        tmp_path / "out",
        tasks=["stub_trouble", "stub_size", "stub_once"],
        embeddings=["stub_plain"],
        baseline=False,
        post_processing=["raw"],
        workers=2,
    )
    rows = outcome.scores.set_index(["metric", "subset"]).sort_index()
    assert rows.loc[("size", ""), "status"] == "ok"
    assert log.read_text().split().count("stub_trouble") == 3
    assert rows.loc[("fine", ""), "reason"].startswith("the worker process ended 3 times: SIGKILL")
    assert outcome.n_errors == 1
    assert log.read_text().split().count("stub_once") == 2
    assert rows.loc[("again", ""), "value"] == 1.0
    assert any("stub_once: the worker process ended" in text for text in outcome.warnings)


def test_a_broken_embedding(screen_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"embeddings": ["stub_broken", "stub_plain"], "baseline": False}
    out = tmp_path / "out"
    first = run(screen_file, out, **settings)
    broken = first.scores[(first.scores["model"] == "stub_broken") & ~first.scores["derived"]]
    assert set(broken["reason"]) == {"the embedding could not be made: RuntimeError: out of luck"}
    assert set(broken["metric"]) == {"size", "extremes", "never", "noise"}
    plain = first.scores[(first.scores["model"] == "stub_plain") & (first.scores["metric"] == "size")]
    assert set(plain["status"]) == {"ok"}
    monkeypatch.setenv("STUB_BROKEN", "fine")
    second = run(screen_file, out, **settings)
    assert second.n_computed == first.n_errors
    assert set(second.scores.query("model == 'stub_broken' and metric == 'size'")["status"]) == {"ok"}


def test_an_embedding_that_cannot_be_had_is_finished(
    screen_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    monkeypatch.setenv("STUB_BROKEN", "not computable")
    settings = {"embeddings": ["stub_broken"], "baseline": False}
    outcome = run(screen_file, tmp_path / "out", **settings)
    assert outcome.exit_status == 1
    assert outcome.n_errors == 0
    assert "too few genes" in outcome.scores["reason"].iloc[0]
    assert run(screen_file, tmp_path / "out", **settings).n_computed == 0
    assert log.read_text().splitlines() == ["stub_broken"]


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_input_that_shows_late(
    screen_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setenv("STUB_BROKEN", "input")
    with pytest.raises(InputError, match="does not suit") as why:
        run(screen_file, tmp_path / "out", embeddings=["stub_broken"], baseline=False, workers=workers)
    assert why.value.remedy == "take another"


def test_warnings_of_libraries_are_kept(screen_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_TROUBLE", "warn")
    outcome = run(screen_file, tmp_path / "out", tasks=["stub_trouble"], embeddings=["stub_plain"], baseline=False)
    assert any("UserWarning: look out" in text for text in outcome.warnings)


def test_peak_memory_is_that_of_the_cell(screen_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_TROUBLE", "memory")
    outcome = run(
        screen_file,
        tmp_path / "out",
        tasks=["stub_trouble", "stub_size"],
        embeddings=["stub_plain"],
        baseline=False,
        post_processing=["raw"],
    )
    peaks = outcome.scores.query("metric in ['fine', 'size']").set_index("metric")["peak_memory_mb"]
    assert peaks["fine"] - peaks["size"] > 200


@pytest.mark.parametrize(("policy", "expected"), [("missing", 0), ("always", 14)])
def test_overwrite(screen_file: Path, tmp_path: Path, policy: str, expected: int) -> None:
    first = run(screen_file, tmp_path / "out")
    second = run(screen_file, tmp_path / "out", overwrite=policy)
    assert second.n_computed == expected
    same_scores(first.scores, second.scores)


def test_overwrite_never(screen_file: Path, tmp_path: Path) -> None:
    run(screen_file, tmp_path / "out", overwrite="never")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="14 of the 14 cells"):
        run(screen_file, tmp_path / "out", overwrite="never")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


def test_a_run_can_be_repeated_from_its_folder(done: Path, screen_file: Path, tmp_path: Path) -> None:
    from txeval.run import load_config

    again = load_config(done / "run.yaml", {"out": tmp_path / "again"})
    outcome = execute(make_plan(again), progress=NullProgress())
    same_scores(outcome.scores, read_scores(done))


def test_without_a_folder(screen_file: Path) -> None:
    with pytest.raises(InputError, match="no results folder"):
        execute(make_plan(config(screen_file)))
