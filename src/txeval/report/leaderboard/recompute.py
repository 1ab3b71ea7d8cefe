"""Some cells of a results folder computed once more, from a screen and embeddings that are at hand."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import yaml

from txeval.errors import InputError
from txeval.report.leaderboard.check import Finding
from txeval.run import NullProgress, RunConfig, Store, build_config, execute, make_plan
from txeval.run.merging import differing_scores

__all__ = ["recompute"]

#: What says where a run was computed, not what.
_PLACE = ("out", "executor", "scheduler", "cluster", "workers", "max_memory", "device", "overwrite")


def recompute(folder: Path, n: int, allow: Callable[[RunConfig], None]) -> Iterator[Finding]:
    """Compute cells anew, drawn at random from those of the newest plan, and compare their scores.

    Parameters
    ----------
    n
        How many; no more than there are.
    allow
        Raises InputError for a configuration that runs what the user may not want to run.

    Raises
    ------
    InputError
        The screen or an embedding is not at hand, or is another one.
    """
    store = Store(folder)
    records = store.plans(strict=True)
    if not records:
        raise InputError(f"{folder} has no plan", remedy="run the same command again")
    record = records[-1]
    with tempfile.TemporaryDirectory(prefix="txeval-recompute-") as room:
        protocol = Path(room) / "protocol.yaml"
        protocol.write_text(yaml.safe_dump(record["protocol"]), encoding="utf-8")
        values = {name: value for name, value in record["config"].items() if name not in _PLACE}
        config = build_config({**values, "protocol": str(protocol), "out": Path(room) / "results"}, where=str(folder))
        allow(config)
        plan = make_plan(config)
        stored = {cell.key: found for cell in plan.cells if (found := store.load_cell(cell.key)) is not None}
        there = [cell for cell in plan.cells if stored.get(cell.key, {}).get("state") == "done"]
        if not there:
            raise InputError(
                f"none of the {len(plan.cells)} cells that the screen and embeddings here give is in {folder}",
                remedy="use the same version of txeval, the same screen and the same embeddings",
            )
        # From the system's randomness: whoever made the folder cannot know which.
        drawn = np.random.default_rng().choice(len(there), min(n, len(there)), replace=False)
        cells = tuple(there[i] for i in sorted(drawn))
        execute(dataclasses.replace(plan, cells=cells), progress=NullProgress())
        again = Store(Path(room) / "results")
        faults = []
        for cell in cells:
            found = again.load_cell(cell.key)
            if found is None or found["state"] != "done":
                faults.append(f"{cell.text}: it could not be computed here")
            else:
                faults += [f"{cell.text}: {what}" for what in differing_scores(stored[cell.key], found)]
        for fault in faults:
            yield Finding("fault", f"computed anew, {fault}", "find out why they differ before it is published")
        if not faults:
            yield Finding("ok", f"{len(cells)} of {len(there)} cells, drawn at random, have the same scores anew")
