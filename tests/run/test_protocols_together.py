"""Two protocols in one folder: each has the rows that it asks for and no others."""

from __future__ import annotations

from pathlib import Path

from run_helpers import run

from txeval.run import read_details, read_scores

ASKED = {"map", "map_significant", "mixing_and_biology", "recall_perturbed_mean"}


def test_rows_that_only_corrected_asks_for(screen_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for protocol in ("paper", "corrected"):
        done = run(
            screen_file,
            out,
            protocol=protocol,
            tasks=["batch_mixing", "knn"],
            embeddings=["random@of=stub_plain", "mine=obsm:X_emb"],
            baselines=["random"],
            post_processing=["raw"],
            seeds=1,
        )
        assert done.exit_status == 0
    scores = read_scores(out)
    paper, corrected = (scores[scores["protocol"] == name] for name in ("paper", "corrected"))
    assert not ASKED & set(paper["metric"])
    assert {"map", "map_significant", "mixing_and_biology"} <= set(corrected["metric"])
    assert (scores["status"] == "ok").all()
    joined = corrected[corrected["metric"] == "mixing_and_biology"]
    assert joined["derived"].all() and joined["notes"].str.contains("knn/map").all()
    assert {"map", "p_adjusted"} <= set(read_details(out, "knn", "retrieval"))


def test_mixing_without_level_4_says_what_it_needs(screen_file: Path, tmp_path: Path) -> None:
    done = run(
        screen_file,
        tmp_path / "out",
        protocol="corrected",
        tasks=["batch_mixing"],
        embeddings=["mine=obsm:X_emb"],
        baselines=["random@of=stub_plain"],
        post_processing=["raw"],
        seeds=1,
    )
    row = done.scores[(done.scores["metric"] == "mixing_and_biology") & (done.scores["model"] == "mine")].iloc[0]
    assert row["status"] == "failed" and "level 4" in row["reason"]
