from __future__ import annotations

from pathlib import Path

import pytest
from run_helpers import config, run

from txeval.errors import InputError
from txeval.run import make_plan

FLOORS = ["shuffled@of=stub_plain", "control_mean@of=stub_plain", "ceiling@of=stub_plain"]


def test_floors_come_first_and_a_level_without_a_ceiling_has_no_cell_for_it(screen_file: Path) -> None:
    plan = make_plan(config(screen_file, baselines=FLOORS))
    labels = list(dict.fromkeys(job.spec.label for job in plan.embeddings))
    assert labels == ["shuffled", "control_mean", "replicate ceiling (stub_plain)", "random", "mine"]
    assert {cell.model for cell in plan.cells} == set(labels) - {"replicate ceiling (stub_plain)"}
    assert {job.spec.label: job.added for job in plan.embeddings}["shuffled"]


def test_their_scores_are_kept_and_found_again(screen_file: Path, tmp_path: Path, log: Path) -> None:
    first = run(screen_file, tmp_path / "out", baselines=FLOORS)
    assert {"shuffled", "control_mean"} <= set(first.scores["model"])
    # One metric of the stub never works.
    failed = first.scores[first.scores["status"] != "ok"]
    assert set(failed["metric"]) == {"never"}
    again = run(screen_file, tmp_path / "out", baselines=FLOORS)
    assert again.n_computed == 0


def test_only_floors_and_ceilings_can_be_added(screen_file: Path) -> None:
    with pytest.raises(InputError, match="no embedder called 'shufled'"):
        make_plan(config(screen_file, baselines=["shufled"]))
    with pytest.raises(InputError, match="no floor or ceiling called 'pca'"):
        make_plan(config(screen_file, baselines=["pca"]))
