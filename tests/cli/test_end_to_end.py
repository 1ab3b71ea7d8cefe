"""The user story through the real command line, on a small simulated screen."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import pandas as pd
import pytest
import yaml

import txeval
from txeval.cli import main
from txeval.cli.commands.demo import _EveryLine
from txeval.data.simulate import simulate_screen

ROLES = ["--perturbation", "perturbation", "--control", "non-targeting", "--batch", "batch"]
QUICK = ["--tasks", "knn", "consistency", "relationships", "--seeds", "2", "--min-counts", "0", "--plain"]


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("screen") / "small.h5ad"
    simulate_screen(path, n_samples=900, n_genes=80, n_perturbations=14, n_batches=6)
    return path


@pytest.fixture(scope="module")
def relations(screen: Path) -> str:
    from txeval.data.simulate import relations_folder

    return str(relations_folder(screen))


@pytest.fixture(scope="module")
def results(screen: Path, relations: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two embeddings on three levels; level 5 has too few genes on purpose."""
    out = tmp_path_factory.mktemp("results") / "out"
    words = ["run", str(screen), *ROLES, *QUICK, "--embedding", "truth=obsm:X_truth", "noisy=obsm:X_noisy"]
    assert main([*words, "--relations", relations, "--out", str(out)]) == 1
    return out


def shown(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    capsys.readouterr()
    assert main(["show", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_every_planned_score_is_a_row(results: Path) -> None:
    scores = txeval.read_scores(results)
    assert set(scores["model"]) == {"random", "truth", "noisy"}
    assert set(scores["post_processing"]) == {"raw", "centering", "center_scaling", "tvn"}
    good = scores[scores["status"] == "ok"]
    assert set(good["task"]) == {"knn", "consistency"}
    assert good["value"].notna().all()
    failed = scores[scores["status"] == "failed"]
    assert set(failed["task"]) == {"relationships"}
    assert failed["reason"].str.contains("genes").all()
    assert failed["value"].isna().all()


def test_the_good_embedding_is_above_the_noisy_above_the_random(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(io.StringIO(shown(capsys, results, "--format", "csv")))
    share = table[table["task"] == "consistency"].set_index("model")["value"]
    assert share["truth"] > share["noisy"] > share["random"]


def test_the_summary_in_every_format(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, results)
    for part in (
        "small, protocol paper",
        "chance",
        "random",
        "truth",
        "noisy",
        "optimistic",
        "2 seeds",
        "Not computed",
    ):
        assert part in text
    assert re.search(r"\[1\] .*genes", text)
    assert "| level | metric | chance | random | noisy | truth |" in shown(capsys, results, "--format", "markdown")
    assert r"\toprule" in shown(capsys, results, "--format", "latex")


def test_full_tables_and_details(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = shown(capsys, results, "--table", "full")
    assert full.count("post-processing") >= 3
    assert "±" in full
    knn = shown(capsys, results, "--table", "knn", "--metric", "top1", "--details")
    assert "95 % interval" in knn
    assert "center_scaling" in knn
    assert main(["show", str(results), "--table", "kn"]) == 2
    assert "'knn'" in capsys.readouterr().err
    assert main(["show", str(results), "--metric", "top11"]) == 2
    assert "'top1'" in capsys.readouterr().err


def test_the_summary_agrees_with_the_scores(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = txeval.read_scores(results)
    table = pd.read_csv(io.StringIO(shown(capsys, results, "--format", "csv")))
    for row in table[table["value"].notna()].to_dict("records"):
        mine = scores[
            (scores["metric"] == row["metric"])
            & (scores["task"] == row["task"])
            & (scores["model"] == row["model"])
            & (scores["subset"] == ("" if pd.isna(row["subset"]) else row["subset"]))
        ]
        means = mine.groupby("post_processing")["value"].mean()
        assert row["value"] == pytest.approx(means.max())
        assert row["value"] == pytest.approx(means[row["post_processing"]])


def test_a_second_run_computes_nothing_and_a_third_embedding_only_itself(
    screen: Path, relations: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (results / "cells").glob("*.json")}
    words = ["run", str(screen), *ROLES, *QUICK, "--relations", relations, "--out", str(results)]
    models = ["--embedding", "truth=obsm:X_truth", "noisy=obsm:X_noisy"]
    assert main([*words, *models]) == 1
    assert re.search(r"^0 cells computed .* were there already", capsys.readouterr().out, flags=re.MULTILINE)
    assert main([*words, *models, "pca"]) == 1
    assert "12 cells computed" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in (results / "cells").glob("*.json")}
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 12
    assert main([*words, *models, "--overwrite", "never"]) == 2
    assert "never" in capsys.readouterr().err


def test_the_same_run_from_a_file_finds_the_same_cells(
    screen: Path, relations: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {
        "screen": os.path.relpath(screen, tmp_path),
        "roles": {"perturbation": "perturbation", "control": ["non-targeting"], "batch": "batch"},
        "embeddings": ["truth=obsm:X_truth", "noisy=obsm:X_noisy"],
        "tasks": ["knn", "consistency", "relationships"],
        "min_counts": 0,
        "seeds": 5,
        "relations": relations,
        "out": str(results),
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(content))
    assert main(["run", str(file), "--seeds", "2", "--plain"]) == 1
    assert "0 cells computed" in capsys.readouterr().out


def test_validate_says_what_there_is_and_writes_nothing(
    screen: Path, relations: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["validate", str(screen), *ROLES, "--embedding", "pca", "t=obsm:X_truth", "--min-counts", "0"]
    assert main([*words, "--relations", relations]) == 0
    text = capsys.readouterr().out
    for part in ("900 of 900", "6", "counts", "train", "heldout", "obsm:X_truth", "no score", "cells", "knn"):
        assert part in text
    assert list(tmp_path.iterdir()) == []


def test_one_batch_goes_on_and_says_what_that_costs(
    screen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "run",
        str(screen),
        *ROLES[:4],
        "--embedding",
        "t=obsm:X_truth",
        "--no-baseline",
        "--out",
        str(tmp_path / "o"),
    ]
    assert (
        main([*words, *QUICK[:1], "knn", "consistency", "--post-processing", "raw", "--min-counts", "0", "--plain"])
        == 1
    )
    scores = txeval.read_scores(tmp_path / "o")
    assert scores.loc[scores["task"] == "knn", "reason"].str.contains("batch").all()
    assert scores.loc[(scores["task"] == "consistency") & (scores["metric"] == "consistent"), "status"].eq("ok").all()
    assert "–[1]" in capsys.readouterr().out


def test_a_batch_without_controls_and_single_samples_go_on(
    screen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = anndata.read_h5ad(screen)
    obs = changed.obs
    first = obs["batch"].astype(str) == obs["batch"].astype(str).min()
    labels = obs["perturbation"].astype(str).to_numpy(copy=True)
    labels[(labels == "non-targeting") & first.to_numpy()] = "GENE_X"
    labels[0] = "SINGLE"
    obs["perturbation"] = labels
    path = tmp_path / "changed.h5ad"
    changed.write_h5ad(path)
    words = ["run", str(path), *ROLES, "--embedding", "t=obsm:X_truth", "--no-baseline", "--out", str(tmp_path / "o")]
    assert main([*words, "--tasks", "knn", "consistency", "--min-counts", "0", "--plain"]) == 0
    captured = capsys.readouterr()
    assert "1 of 6 batches have no controls" in captured.err
    scores = txeval.read_scores(tmp_path / "o")
    centred = scores[(scores["post_processing"] == "centering") & (scores["task"] == "knn")]
    assert centred["notes"].str.contains("control").all()
    consistency = scores[(scores["task"] == "consistency") & (scores["metric"] == "consistent")]
    assert consistency["left_out"].map(lambda text: sum(json.loads(text).values())).ge(1).all()


def test_merged_folders_show_both(
    screen: Path, relations: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(screen), *ROLES, *QUICK, "--relations", relations, "--no-baseline"]
    assert main([*words, "--embedding", "X", "--out", str(tmp_path / "b")]) == 1
    assert main(["merge", str(results), str(tmp_path / "b"), "--out", str(tmp_path / "both")]) == 0
    scores = txeval.read_scores(tmp_path / "both")
    assert {"random", "truth", "noisy", "X"} <= set(scores["model"])
    capsys.readouterr()
    assert main(["show", str(tmp_path / "both")]) == 0
    assert " X" in capsys.readouterr().out


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(screen: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        sys.executable,
        "-m",
        "txeval",
        "run",
        str(screen),
        *ROLES,
        "--embedding",
        "pca",
        "--tasks",
        "linear_probe",
    ]
    words += ["--seeds", "3", "--min-counts", "0", "--plain", "--out", str(out), "--post-processing", "raw"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((out / "cells").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "same command" in err
    assert "Traceback" not in err
    done = len(list((out / "cells").glob("*.json")))
    assert done >= 1
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{6 - done:,} cells computed" in again.stdout
    assert txeval.read_scores(out)["status"].eq("ok").all()


def test_every_line_of_a_simulated_demo_says_so() -> None:
    stream = io.StringIO()
    marked = _EveryLine(stream, "[SIMULATED DATA] ")
    for text in ("one\ntw", "o\n", "\n", "three"):
        marked.write(text)
    assert stream.getvalue().splitlines() == [f"[SIMULATED DATA] {line}" for line in ("one", "two", "", "three")]
