"""float32 matrix products by the library that is fastest on this processor."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

__all__ = ["product", "uses_onednn"]


def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """a (m, d) times b^T (d, n), both float32, contiguous, on the CPU.

    Parameters
    ----------
    out
        (m, n) memory that may be used; the result need not be in it.
    """
    if uses_onednn():
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return result
    return torch.mm(a, b.t(), out=out)


@cache
def uses_onednn() -> bool:
    """Whether oneDNN multiplies instead of the BLAS library that torch was built with.

    That is MKL in the usual builds, and MKL has AVX-512 kernels for Intel's own processors only; those of oneDNN
    serve all that have the instructions, and are twice as fast on the others.
    """
    try:
        if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
            return False
        if "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"):
            return False
        a, b = torch.arange(39.0).reshape(3, 13), torch.arange(65.0).reshape(5, 13)
        found = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return bool(found.is_contiguous() and torch.equal(found, a @ b.t()))
    except (AttributeError, RuntimeError, OSError):
        return False
