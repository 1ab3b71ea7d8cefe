"""Products on an accelerator, with the digits that float32 and float64 have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["exact_products", "product_on"]

Array = npt.NDArray[Any]


@contextmanager
def exact_products() -> Iterator[None]:
    """Let no product of float32 matrices be rounded to TF32 within the block, whatever the process has chosen."""
    import torch

    backends = torch.backends.cuda.matmul
    before = backends.allow_tf32
    backends.allow_tf32 = False
    try:
        yield
    finally:
        backends.allow_tf32 = before


def product_on(device: str, a: Array, b: Array) -> Array:
    """a @ b of two float32 or two float64 matrices on a device of torch; "cpu" is numpy."""
    if device == "cpu":
        return np.asarray(a @ b)
    import torch

    with exact_products():
        left, right = (torch.from_numpy(np.ascontiguousarray(side)).to(device) for side in (a, b))
        return np.asarray((left @ right).cpu().numpy())
