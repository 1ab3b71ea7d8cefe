"""The steps: each module holds `STEPS`."""

from __future__ import annotations

import importlib
import pkgutil

from benchmarks.bench.measure import Step

__all__ = ["every_step"]


def every_step() -> dict[str, Step]:
    """All steps by name, in the order of the modules' names and within them."""
    found: dict[str, Step] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda item: item.name):
        for step in importlib.import_module(f"{__name__}.{module.name}").STEPS:
            if step.name in found:
                raise ValueError(f"two steps are called {step.name}")
            found[step.name] = step
    return found
