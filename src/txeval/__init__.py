"""How good is a representation of transcriptomes for perturbation analysis?

The names below are loaded when they are first used, so that `import txeval` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from txeval._version import __version__

if TYPE_CHECKING:
    from txeval import metrics, postprocess
    from txeval.data import Roles, Screen, open_screen, split
    from txeval.errors import InputError, NotComputable, TxevalError
    from txeval.protocol import Protocol, load_protocol
    from txeval.report.notebook import Results, open_results
    from txeval.run import RunConfig, read_scores

__all__ = [
    "InputError",
    "NotComputable",
    "Protocol",
    "Results",
    "Roles",
    "RunConfig",
    "Screen",
    "TxevalError",
    "__version__",
    "load_protocol",
    "metrics",
    "open_results",
    "open_screen",
    "postprocess",
    "read_scores",
    "split",
]

_HOME = {
    "InputError": "txeval.errors",
    "NotComputable": "txeval.errors",
    "TxevalError": "txeval.errors",
    "Protocol": "txeval.protocol",
    "load_protocol": "txeval.protocol",
    "Roles": "txeval.data",
    "Screen": "txeval.data",
    "open_screen": "txeval.data",
    "split": "txeval.data",
    "Results": "txeval.report.notebook",
    "open_results": "txeval.report.notebook",
    "RunConfig": "txeval.run",
    "read_scores": "txeval.run",
}


def __getattr__(name: str) -> Any:
    if name in ("metrics", "postprocess"):
        return importlib.import_module(f"txeval.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'txeval' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
