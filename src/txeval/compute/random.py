"""Random streams that depend on what is drawn, never on the order in which it is drawn."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["stream", "stream_seed"]


def stream_seed(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed from a seed and the names of what it is for."""
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Give an independent generator for (seed, names).

    The same arguments give the same stream in every process, so a result does not depend on which
    worker computes it or on what was computed before.

    Examples
    --------
    >>> float(stream(0, "probe").random()) == float(stream(0, "probe").random())
    True
    """
    return np.random.default_rng(stream_seed(seed, *names))
