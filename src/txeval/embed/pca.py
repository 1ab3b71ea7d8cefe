"""Exact PCA of any number of samples, from block-wise accumulated moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import scipy.linalg
import scipy.sparse.linalg
from scipy import sparse

from txeval.compute.arrays import F64
from txeval.compute.devices import product_on
from txeval.compute.memory import allowed
from txeval.compute.moments import gram
from txeval.compute.random import stream
from txeval.data.expression import LogNormExpression
from txeval.data.scale import require_scale
from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext
from txeval.embed.rows import NpyRows, write_npy
from txeval.errors import InputError, unknown

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = ["EMBEDDERS", "INPUTS", "PCA", "principal_axes"]

#: What a PCA may be fitted on.
INPUTS = ("counts", "lognorm", "as_is")

#: Matrices of genes x genes in float64 that are in memory at once.
SCATTERS = 1.5

#: Up to here LAPACK's dense solver is at least as fast as Lanczos iteration.
_DENSE_GENES = 3000


def principal_axes(scatter: F64, components: int) -> tuple[F64, F64]:
    """Leading eigenvalues and eigenvectors of a scatter matrix.

    Parameters
    ----------
    scatter
        (g, g) symmetric, positive semi-definite.
    components
        How many are wanted, 1 .. g.

    Returns
    -------
    (values (k,) decreasing, axes (g, k))
        k <= components: axes along which nothing but rounding is left are not given. The loading of the largest size
        is positive on every axis.
    """
    g = len(scatter)
    if g <= _DENSE_GENES or components > g // 4:
        values, axes = scipy.linalg.eigh(scatter, subset_by_index=[g - components, g - 1])
    else:
        start = stream(0, "pca", g).standard_normal(g)
        values, axes = scipy.sparse.linalg.eigsh(scatter, k=components, which="LA", v0=start)
    order = np.argsort(values)[::-1]
    values, axes = values[order], axes[:, order]
    # Below this a component is the rounding of float32 values (g of them).
    real = values > values[0] * g * float(np.finfo(np.float32).eps) ** 2
    values, axes = values[real], axes[:, real]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    return values, axes * np.where(largest < 0, -1.0, 1.0)


class PCA:
    """Principal components of the expression of all kept samples.

    Exact: eigenvectors of the covariance matrix, whose sums are exact for counts. Fitted on all kept samples, since it
    uses no labels.
    """

    info = EmbedderInfo(
        name="pca",
        summary="Principal components of the expression matrix (exact).",
        options={
            "components": (256, "number of components; fewer where samples or genes do not give as many"),
            "input": ("counts", "counts (as in the paper), lognorm (normalised to 10,000, then log1p) or as_is"),
        },
        needs="an expression matrix; counts unless input says otherwise",
        citation="Bendidi et al. 2024",
    )

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check options and scale; they and the screen determine the result."""
        _check(screen, options)
        return {}

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Fit by blocks, then project by blocks into a memory-mapped file."""
        _check(screen, options)
        n, g = screen.n, screen.n_genes
        needed, free = int(g * g * 8 * SCATTERS), min(psutil.virtual_memory().available, allowed())
        if needed > free:
            raise InputError(
                f"PCA of {g:,} genes needs {needed / 1e9:.1f} GB for their covariances, {free / 1e9:.1f} GB are free",
                remedy="keep the most variable genes in the file, or give a precomputed embedding",
            )

        def blocks(text: str) -> Iterator[tuple[slice, Any]]:
            if options["input"] == "lognorm":
                found = LogNormExpression(screen).blocks(np.arange(n), max_elements=context.max_elements)
            else:
                found = screen.blocks(max_elements=context.max_elements)
            for part, block in found:
                yield part, block
                context.progress(part.stop, n, text)

        n_used, mean, scatter = gram((block for _, block in blocks("PCA: moments")), g, device=context.device)
        total = float(np.trace(scatter))
        if n_used < 2 or not total > 0:
            raise InputError(
                f"{screen.path}: PCA has nothing to find: all {n_used} samples have the same expression",
                remedy="check the matrix that was chosen",
            )
        wanted = options["components"]
        values, axes = principal_axes(scatter, min(wanted, g, n - 1))
        del scatter
        k = axes.shape[1]

        path = context.folder / "pca.npy"
        axes32, mean32 = axes.astype(np.float32), mean.astype(np.float32)
        # What the rounding of the mean takes away from every sample.
        correction = ((mean32.astype(np.float64) - mean) @ axes).astype(np.float32)
        with write_npy(path, (n, k)) as out:
            for part, block in blocks("PCA: projection"):
                # Centred before the product: after it, the digits of a small component would be gone.
                dense = block.toarray() if sparse.issparse(block) else block
                out[part] = product_on(context.device, dense - mean32, axes32) + correction
        share = values / total
        return Embedding(
            NpyRows(path),
            {
                "method": "exact PCA (eigenvectors of the covariance matrix)",
                "input": options["input"],
                "input_note": f"{screen.where}, {screen.scale} values",
                "fitted_on": f"all {n:,} kept samples, without labels",
                "components": k,
                "components_requested": wanted,
                "explained_variance": round(float(share.sum()), 6),
                "explained_variance_first_10": [round(float(value), 6) for value in share[:10]],
            },
        )


def _check(screen: Screen, options: Mapping[str, Any]) -> None:
    kind = options["input"]
    if kind not in INPUTS:
        raise unknown("input", str(kind), INPUTS, where="embedding pca")
    if options["components"] < 1:
        raise InputError(f"embedding pca: components is {options['components']}", remedy="use at least 1")
    allowed = {"counts": {"counts"}, "lognorm": {"counts", "normalized", "log1p"}, "as_is": None}[kind]
    if allowed is None:
        return
    try:
        require_scale(screen, allowed, step=f"PCA with input={kind}")
    except InputError as why:
        usable = "lognorm or input=as_is" if screen.scale in ("normalized", "log1p") else "as_is"
        raise InputError(why.problem, remedy=f"{why.remedy}; or ask for pca@input={usable}") from None


EMBEDDERS = (PCA(),)
