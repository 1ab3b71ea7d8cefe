"""One way to compile kernels: cached on disk where a cache can be written, without the global lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["jit"]

F = TypeVar("F", bound=Callable[..., Any])

#: Sums may be reordered so that loops vectorise; NaN and infinities keep their meaning.
_FLAGS = {"reassoc", "contract", "nsz", "arcp"}


def jit(function: F, *, no_nan: bool = False, inlined: bool = False) -> F:
    """Compile a function of arrays and numbers with numba (typed as the function itself).

    With `no_nan` its values are promised not to be NaN, so that a minimum vectorises too.

    A function of floats that others of its kind call must be `inlined`: else whether it is merged into its caller, and
    so how its sums are rounded, depends on whether it was compiled just now or comes from the cache on disk, and the
    first process after an installation gets other last digits than all later ones.
    """
    options: dict[str, Any] = {
        "nogil": True,
        "fastmath": _FLAGS | {"nnan"} if no_nan else _FLAGS,
        "error_model": "numpy",
        "inline": "always" if inlined else "never",
    }
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # A read-only installation without a home directory has no place for numba's cache.
        compiled = numba.njit(**options)(function)
    return cast(F, compiled)
