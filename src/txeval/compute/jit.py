"""One way to compile kernels: cached on disk where a cache can be written, without the global lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["jit", "prefetch", "prefetch_once"]

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


def _fetcher(locality: int) -> Callable[..., Any]:
    @cast(Callable[[Any], Callable[..., Any]], intrinsic)
    def fetch(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
            # To read, how long to be kept, data.
            flags = [ir.Constant(number, value) for value in (0, locality, 1)]
            function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
            builder.call(function, [builder.inttoptr(arguments[0], pointer), *flags])
            return context.get_dummy_value()

        return types.void(types.uintp), generate

    return fetch


#: Have the line of memory at an address brought into the caches while other work goes on.
prefetch = _fetcher(3)

#: The same for what is read only once: it does not push other things out of the caches.
prefetch_once = _fetcher(0)
