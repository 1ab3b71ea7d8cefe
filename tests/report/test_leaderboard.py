"""Leaderboards: what may stand in one column, ranks with intervals, and the check of a submission."""

from __future__ import annotations

import csv
import http.client
import json
import math
import os
import shutil
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import score_rows
from hypothesis import given
from hypothesis import strategies as st
from sealing import reseal, rewrite

from txeval.cli import main
from txeval.data import simulate_screen
from txeval.errors import InputError
from txeval.report.leaderboard import check_submission, make_boards, rank_scores, write_site
from txeval.report.leaderboard.collect import Board, Source, public_source
from txeval.report.summary import summary
from txeval.run import NullProgress, Store, build_config, execute, make_plan

# Ranks


def test_rank_intervals_hold_all_true_ranks_together() -> None:
    """In at least 95 % of screens every interval holds the true rank, ties included."""
    rng = np.random.default_rng(1)
    truth = np.array([0.0, 0.0, 0.1, 0.3, 0.3, 0.9])
    best = np.array([1 + (truth > value).sum() for value in truth])
    worst = np.array([(truth >= value).sum() for value in truth])
    spread = np.array([0.02, 0.1, 0.05, 0.1, 0.03, 0.2])
    covered = 0
    for _ in range(600):
        value = rng.normal(truth, spread)
        ranks = rank_scores(list(value), list(value - 1.96 * spread), list(value + 1.96 * spread))
        # A tied score may have any rank that the tie has.
        covered += all(
            low <= last and first <= high
            for low, high, first, last in zip(ranks.low, ranks.high, best, worst, strict=True)
        )
    assert covered / 600 >= 0.95


def test_clear_differences_are_told_apart() -> None:
    ranks = rank_scores([0.1, 0.5, 0.9, 0.49], [0.09, 0.49, 0.89, 0.48], [0.11, 0.51, 0.91, 0.50])
    assert ranks.rank == (4, 2, 1, 3)
    assert list(zip(ranks.low, ranks.high, strict=True)) == [(4, 4), (2, 3), (1, 1), (2, 3)]


def test_what_has_no_interval_is_told_apart_from_nothing() -> None:
    ranks = rank_scores([0.1, 0.9, 0.5], [math.nan, 0.89, 0.49], [math.nan, 0.91, 0.51])
    assert (ranks.low[0], ranks.high[0]) == (1, 3)
    assert (ranks.low[1], ranks.high[1]) == (1, 2)


scores_ = st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 0.5)), min_size=1, max_size=8)


@given(scores_, st.randoms(use_true_random=False))
def test_ranks_do_not_depend_on_the_order_and_turn_with_the_direction(rows: list[Any], random: Any) -> None:
    def ranked(items: list[Any], *, sign: int = 1) -> list[tuple[int, int, int]]:
        value = [sign * v for v, _ in items]
        low = [v - w for v, (_, w) in zip(value, items, strict=True)]
        high = [v + w for v, (_, w) in zip(value, items, strict=True)]
        found = rank_scores(value, low, high, higher_is_better=sign > 0)
        return list(zip(found.rank, found.low, found.high, strict=True))

    mixed = rows[:]
    random.shuffle(mixed)
    assert sorted(zip(rows, ranked(rows), strict=True)) == sorted(zip(mixed, ranked(mixed), strict=True))
    assert ranked(rows) == ranked(rows, sign=-1)
    for rank, low, high in ranked(rows):
        assert 1 <= low <= rank <= high <= len(rows)


# Boards


def source(name: str, scores: pd.DataFrame, **manifest: Any) -> Source:
    models = [
        {"dataset": dataset, "label": model, "content": f"{model}-content"}
        for dataset, model in scores[["dataset", "model"]].drop_duplicates().itertuples(index=False)
    ]
    return Source(Path(name), name, scores, {"embeddings": models, "tasks": [], **manifest})


def cell(
    board: Board, model: str, metric: str, subset: str = "", version: str | None = None, task: str | None = None
) -> Any:
    [row] = [row for row in board.rows if row.label == model]
    [key] = [
        column.key
        for column in board.columns
        if (column.metric, column.subset) == (metric, subset)
        and version in (None, column.version)
        and task in (None, column.task)
    ]
    return row.cells.get(key)


def own(boards: list[Board]) -> list[Board]:
    return [board for board in boards if board.protocol != "as published"]


def test_a_board_has_the_numbers_of_the_summary_and_shows_every_hole() -> None:
    scores = score_rows.screen_scores()
    [board] = own(make_boards([source("a", scores)]))
    expected = summary(scores)
    for row in expected.itertuples(index=False):
        found = cell(board, row.model, row.metric, row.subset, task=row.task)
        assert (found.value == pytest.approx(row.value)) or (math.isnan(found.value) and math.isnan(row.value))
    hole = cell(board, "scVI", "recall", "CORUM")
    assert math.isnan(hole.value) and "3 perturbed genes" in hole.reason and hole.rank == 0
    assert {row.label: row.kind for row in board.rows}["random"] == "baseline"
    assert next(row for row in board.rows if row.label == "scVI").missing(board.columns) == 2


def test_versions_protocols_splits_and_settings_never_share_a_column() -> None:
    rows = [
        score_rows.row(0.1, txeval_version="1.0", model="a"),
        score_rows.row(0.2, txeval_version="2.0", model="b"),
        score_rows.row(0.3, txeval_version="1.0", model="c", protocol_fingerprint="p2"),
        score_rows.row(0.4, txeval_version="1.0", model="d", split="other"),
        score_rows.row(0.5, txeval_version="1.0", model="e", screen_fingerprint="s2"),
    ]
    boards = own(make_boards([source("a", score_rows.scores(*rows))]))
    assert sorted(row.label for board in boards for row in board.rows) == ["a", "b", "c", "d", "e"]
    assert len(boards) == 4
    mixed = next(board for board in boards if len(board.columns) == 2)
    assert [column.version for column in mixed.columns] == ["1.0", "2.0"]
    assert cell(mixed, "a", "top1", version="1.0").value == 0.1
    second = cell(mixed, "a", "top1", version="2.0")
    assert second is None or math.isnan(second.value)
    assert mixed.notes

    settings = [{"protocol": "paper", "task": "knn", "digest": name} for name in ("one", "two")]
    two = [
        source("a", score_rows.scores(score_rows.row(0.1, model="a")), tasks=settings[:1]),
        source("b", score_rows.scores(score_rows.row(0.2, model="b")), tasks=settings[1:]),
    ]
    [board] = own(make_boards(two))
    assert [column.settings for column in board.columns] == ["one", "two"]


def test_without_an_interval_nothing_is_claimed() -> None:
    rows = [score_rows.row(0.9, low=0.8, high=0.95, model="sure"), score_rows.row(0.99, model="unsure")]
    [board] = own(make_boards([source("a", score_rows.scores(*rows))]))
    assert {row.label: row.among_best() for row in board.rows} == {"sure": 1, "unsure": 0}


def test_folders_are_merged_and_the_same_score_is_taken_once() -> None:
    first = score_rows.scores(score_rows.row(0.1, model="a", seed=0), score_rows.row(None, model="b"))
    second = score_rows.scores(score_rows.row(0.1, model="a", seed=0), score_rows.row(0.3, model="b"))
    [board] = own(make_boards([source("x", first), source("y", second)]))
    assert cell(board, "b", "top1").value == 0.3
    assert cell(board, "a", "top1").n_seeds == 1
    assert {row.label: row.folders for row in board.rows} == {"a": ("x + y",), "b": ("x + y",)}

    second.loc[0, "value"] = 0.2
    with pytest.raises(InputError, match=r"0\.1 in x and 0\.2 in y"):
        make_boards([source("x", first), source("y", second)])


def test_one_label_for_two_embeddings_is_two_rows() -> None:
    one, two = (source(name, score_rows.scores(score_rows.row(v))) for name, v in (("x", 0.1), ("y", 0.2)))
    two.manifest["embeddings"][0]["content"] = "another"
    [board] = own(make_boards([one, two]))
    assert sorted(row.label for row in board.rows) == ["pca · x", "pca · y"]


def test_published_values_stand_apart_and_are_not_ranked() -> None:
    rows = score_rows.scores(
        score_rows.row(0.07, dataset="Replogle 2022 subset", low=0.06, high=0.08),
        score_rows.row(0.05, dataset="Replogle 2022 subset", model="random"),
    )
    boards = make_boards([source("a", rows)])
    assert [board.protocol for board in boards] == ["paper", "as published"]
    published = [row for row in boards[0].rows if row.kind == "published"]
    assert len(published) == 9
    [column] = boards[0].columns
    by_label = {row.label: row.cells[column.key] for row in published}
    assert by_label["PCA"].value == 0.054
    assert all(entry.rank == entry.rank_low == 0 for entry in by_label.values())
    assert "0.0528" in by_label["scGPT finetuned"].remark or "0.053" in by_label["scGPT finetuned"].remark
    # Its own model is first of one, whatever the paper has.
    assert cell(boards[0], "pca", "top1").rank_high == 1
    assert len(boards[1].rows) == 9 and "L1000" in boards[1].dataset


def test_the_site_escapes_everything_and_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    label = "<script>alert(1)</script>\"'&\u202e"
    rows = score_rows.scores(
        score_rows.row(0.5, model=label, dataset="<b>d</b>", source="/home/me/secret/x.h5ad#obsm/X"),
        score_rows.row(None, model=label, dataset="<b>d</b>", metric="top5", reason="<img src=x onerror=1>"),
    )
    sources = [source("<i>f</i>", rows)]
    written = write_site(make_boards(sources), sources, tmp_path / "site", title="<u>t</u>")
    text = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    for bad in ("<script>alert", "<b>d", "<img", "<i>f", "<u>t", "/home/me"):
        assert bad not in text
    assert "&lt;script&gt;alert" in text and "x.h5ad#obsm/X" in text
    assert "http" not in text.replace("http-equiv", "")
    assert {path.name for path in written} == {"index.html", "scores.csv", "leaderboard.json"}
    with (tmp_path / "site" / "scores.csv").open(encoding="utf-8", newline="") as handle:
        found = list(csv.DictReader(handle))
    assert [row["model"] for row in found] == [label.replace("\u202e", "\\x202e")] * 2
    assert "secret" not in (tmp_path / "site" / "scores.csv").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "site" / "leaderboard.json").read_text(encoding="utf-8"))[0]["dataset"] == "<b>d</b>"


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    sources = [source("a", score_rows.screen_scores())]
    with pytest.raises(InputError, match="other files"):
        write_site(make_boards(sources), sources, tmp_path, title="t")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_sources_without_their_folders() -> None:
    assert public_source("/a/b/uce.h5ad#obsm/X_uce") == "uce.h5ad#obsm/X_uce"
    assert public_source(r"C:\me\x.npy") == "x.npy"
    assert public_source("obsm:X_pca") == "obsm:X_pca"


# A submission


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("submission")
    simulate_screen(folder / "s.h5ad", n_samples=300, n_genes=60, n_perturbations=8, unexpressed_targets=4)
    config = build_config(
        {
            "screen": folder / "s.h5ad",
            "roles": {"perturbation": "perturbation", "control": ["non-targeting"], "batch": "batch"},
            "embeddings": ["truth=obsm:X_truth"],
            "tasks": ["knn", "batch_mixing"],
            "post_processing": ["raw"],
            "seeds": 1,
            "min_counts": 0,
            "out": folder / "out",
        }
    )
    assert execute(make_plan(config), progress=NullProgress()).n_errors == 0
    return folder / "out"


def flip(path: Path) -> None:
    """Change one bit of the last byte but ten."""
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


def faults(folder: Path) -> list[str]:
    return [finding.what for finding in check_submission(folder) if finding.verdict == "fault"]


def test_a_finished_run_can_be_submitted(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert faults(finished) == []
    assert main(["leaderboard", "check", str(finished)]) == 0
    said = capsys.readouterr().out
    assert "It can be submitted: it is whole and consistent." in said
    assert "no level 2 (linear_probe)" in said and "the protocol has 5" in said


def test_a_changed_score_is_found(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    scores = pd.read_parquet(folder / "scores.parquet")
    place = scores.index[(scores["status"] == "ok") & ~scores["derived"]][0]
    scores.loc[place, "value"] += 0.01
    scores.to_parquet(folder / "scores.parquet")
    with pytest.raises(InputError, match=r"scores\.parquet is damaged"):
        check_submission(folder)
    reseal(folder)
    assert any("are not those of their cells" in fault for fault in faults(folder))
    assert main(["leaderboard", "check", str(folder), str(finished)]) == 1
    assert "cannot be submitted" in capsys.readouterr().out


def test_scores_that_were_not_computed_so_are_found_by_computing_them_anew(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed score with all its digests made anew is consistent; only another computation tells."""
    assert main(["leaderboard", "check", str(finished), "--recompute", "2"]) == 0
    assert "drawn at random, have the same scores anew" in capsys.readouterr().out
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)

    def change(cell: dict[str, Any]) -> None:
        for row in cell["rows"]:
            if row["value"] is not None:
                row["value"] += 0.1

    for path in (folder / "cells").glob("*.json"):
        rewrite(path, change)
    Store(folder).assemble()
    assert faults(folder) == []
    assert main(["leaderboard", "check", str(folder), "--recompute", "1"]) == 1
    assert "FAULT  computed anew" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: next((f / "cells").glob("*.json")).unlink(), "missing or damaged"),
        (lambda f: (f / "splits.parquet").write_bytes(b"no"), "splits.parquet: it has 2 bytes"),
        (lambda f: flip(next((f / "embeddings").glob("*.npy"))), "its content is not what its digest says"),
        (lambda f: flip(f / "run.yaml"), "its content is not what its digest says"),
    ],
)
def test_a_folder_that_is_not_whole_is_found(finished: Path, tmp_path: Path, harm: Any, said: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    harm(folder)
    assert any(said in fault for fault in faults(folder))


def test_no_baseline_and_unequal_choice_are_found(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    scores = pd.read_parquet(folder / "scores.parquet")
    scores[scores["model"] != "random"].to_parquet(folder / "scores.parquet")
    reseal(folder)
    assert any("no random baseline" in fault for fault in faults(folder))
    more = scores[scores["model"] == "truth"].assign(post_processing="tvn")
    pd.concat([scores, more]).to_parquet(folder / "scores.parquet")
    reseal(folder)
    assert any("more to choose from" in fault for fault in faults(folder))


# The command


def test_build_and_serve(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site"
    assert main(["leaderboard", "build", str(finished), "--out", str(site), "--title", "Ours"]) == 0
    assert "1 models" in capsys.readouterr().out
    assert main(["leaderboard", "build", str(finished), "--out", str(site), "--title", "Ours"]) == 0

    from txeval.cli.serving import HOST, make_server

    (tmp_path / "secret").write_text("secret")
    (site / "link").symlink_to(tmp_path / "secret")
    (site / "folder").mkdir()
    (site / "folder" / "index.html").symlink_to(tmp_path / "secret")
    os.mkfifo(site / "fifo")
    with make_server(site, 0) as server:
        with pytest.raises(InputError, match="cannot be used"):
            make_server(site, server.server_address[1])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://{HOST}:{server.server_address[1]}"
        answer = urllib.request.urlopen(f"{base}/")
        assert "<h1>Ours</h1>" in answer.read().decode()
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        outside = ("/../out/manifest.json", "/%2e%2e/out/manifest.json", "/link", "/folder/", "/folder", "/fifo")
        for path in (*outside, "/nothing", "/%00", "/" + "a" * 5000):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(base + path)
        for host, status in (("evil.example", 421), ("", 421), (f"localhost:{server.server_address[1]}", 200)):
            connection = http.client.HTTPConnection(HOST, server.server_address[1])
            connection.request("GET", "/", headers={"Host": host})
            assert connection.getresponse().status == status
            connection.close()
        server.shutdown()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build", "nowhere"], "does not exist"),
        (["bild", "x"], "'build'"),
        (["check", "x", "--port", "1"], "serve"),
        (["serve", "nowhere"], "holds no site"),
        (["serve", "a", "b"], "one site"),
    ],
)
def test_wrong_requests_say_what_to_do(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_unknown_metrics_and_folders_given_twice(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "build", str(finished), "--metric", "top11"]) == 2
    assert "top1" in capsys.readouterr().err
    assert main(["leaderboard", "build", str(finished), str(finished)]) == 2
    assert "twice" in capsys.readouterr().err
