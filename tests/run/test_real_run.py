"""All levels on a real screen: killed and resumed, with two workers and with one, and with one embedding more."""

from __future__ import annotations

import signal
from pathlib import Path

import pandas as pd
import pytest
from run_helpers import execute, running, same_scores, stamps

from txeval.run import RunConfig, build_config, make_plan, read_scores

PROTOCOL = """
extends: paper
name: quick
tasks:
  linear_probe: {solver: lda}
  reconstruction: {decoder: least_squares}
  consistency: {draws: 50}
  relationships: {draws: 50, min_genes: 10, min_relations: 1}
"""


@pytest.fixture
def settings(data_dir: Path, tmp_path: Path) -> dict[str, object]:
    """Norman 2019 with PCA."""
    (tmp_path / "quick.yaml").write_text(PROTOCOL)
    return {
        "screen": data_dir / "norman2019_k562_crispra_500hvg.h5ad",
        "layer": "counts",
        "roles": {"perturbation": "perturbation", "control": "control", "batch": "gem_group"},
        "embeddings": ["pca@components=16"],
        "protocol": tmp_path / "quick.yaml",
        "tasks": ["batch_mixing", "linear_probe", "consistency", "knn", "relationships", "reconstruction"],
        "post_processing": ["tvn"],
        "seeds": 1,
        "min_counts": 0,
        "relations": data_dir / "relationships",
    }


def test_all_levels(settings: dict[str, object], tmp_path: Path) -> None:
    def with_(**changes: object) -> RunConfig:
        return build_config({**settings, **changes})

    undisturbed = execute(make_plan(with_(out=tmp_path / "one")))
    scores = undisturbed.scores
    assert undisturbed.n_errors == 0
    assert undisturbed.n_computed == 2 * 6
    assert set(scores["level"]) == {1, 2, 3, 4, 5, 6}
    # Every level has scores, or a reason in each row.
    assert set(scores.loc[scores["status"] == "ok", "level"]) == {1, 2, 3, 4, 5, 6}
    assert (scores.loc[scores["status"] == "failed", "reason"] != "").all()
    assert (scores.loc[scores["status"] == "ok", "value"].notna()).all()
    assert not scores["reason"].str.contains("Error").any()

    out = tmp_path / "two"
    with running(with_(out=out, workers=2), 3) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = stamps(out)
    resumed = execute(make_plan(with_(out=out)))
    assert resumed.n_reused == len(kept)
    assert resumed.n_computed + resumed.n_reused == undisturbed.n_computed
    assert {name: stamp for name, stamp in stamps(out).items() if name in kept} == kept
    same_scores(resumed.scores, scores)

    more = execute(make_plan(with_(out=out, embeddings=["more=random_uniform@dim=4"], tasks=["knn"], baseline=False)))
    assert more.n_computed == 1
    before = more.scores[more.scores["model"] != "more"].reset_index(drop=True)
    pd.testing.assert_frame_equal(before, resumed.scores)
    pd.testing.assert_frame_equal(read_scores(out), more.scores)
