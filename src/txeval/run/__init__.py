"""Runs: what is asked for, the plan, the workers, the results folder.

The names below are loaded when they are first used: reading scores needs no numerical library for computing them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from txeval.run.assemble import Assembled
    from txeval.run.config import RunConfig, build_config, load_config
    from txeval.run.execution import Outcome, execute
    from txeval.run.merging import merge
    from txeval.run.plan import Cell, EmbeddingJob, Plan, make_plan
    from txeval.run.progress import NullProgress, PlainProgress, Progress, RichProgress, make_progress
    from txeval.run.rows import COLUMNS, DESCRIPTIONS
    from txeval.run.store import Store, read_details, read_protocols, read_scores

__all__ = [
    "COLUMNS",
    "DESCRIPTIONS",
    "Assembled",
    "Cell",
    "EmbeddingJob",
    "NullProgress",
    "Outcome",
    "Plan",
    "PlainProgress",
    "Progress",
    "RichProgress",
    "RunConfig",
    "Store",
    "build_config",
    "execute",
    "load_config",
    "make_plan",
    "make_progress",
    "merge",
    "read_details",
    "read_protocols",
    "read_scores",
]

_HOME = {
    "assemble": ("Assembled",),
    "config": ("RunConfig", "build_config", "load_config"),
    "execution": ("Outcome", "execute"),
    "merging": ("merge",),
    "plan": ("Cell", "EmbeddingJob", "Plan", "make_plan"),
    "progress": ("NullProgress", "PlainProgress", "Progress", "RichProgress", "make_progress"),
    "rows": ("COLUMNS", "DESCRIPTIONS"),
    "store": ("Store", "read_details", "read_protocols", "read_scores"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"txeval.run.{module}"), name)
    raise AttributeError(f"module 'txeval.run' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
