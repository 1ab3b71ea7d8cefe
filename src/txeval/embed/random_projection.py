"""Random projection of the expression: what an untrained linear map keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from txeval.compute.arrays import F32, Strings
from txeval.compute.random import stream
from txeval.data.expression import LogNormExpression
from txeval.data.scale import require_scale
from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext
from txeval.embed.rows import NpyRows, write_npy
from txeval.errors import InputError, unknown

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = ["EMBEDDERS", "RandomProjection", "projection"]

_INPUTS = ("lognorm", "as_is")


def projection(genes: Strings, components: int, seed: int) -> F32:
    """Gaussian weights (g, components) with variance 1 / components, drawn for each gene by its name.

    Distances keep their expectation (Johnson and Lindenstrauss). A gene's weights depend on its name, on how often that
    came before, and on the seed: not on the order of the other genes.
    """
    out = np.empty((len(genes), components), dtype=np.float32)
    seen: dict[str, int] = {}
    for row, gene in zip(out, genes, strict=True):
        name = str(gene)
        seen[name] = seen.get(name, -1) + 1
        row[:] = stream(seed, "random_projection", name, seen[name]).standard_normal(components, dtype=np.float32)
    return out / np.float32(np.sqrt(components))


class RandomProjection:
    """Expression times a matrix of random numbers: a baseline that learns nothing, but keeps distances."""

    info = EmbedderInfo(
        name="random_projection",
        summary="Baseline: random linear projection of log-normalised expression.",
        stochastic=True,
        options={
            "components": (256, "number of dimensions"),
            "input": ("lognorm", "lognorm (normalised to 10,000, then log1p) or as_is"),
        },
        needs="an expression matrix",
        citation="Johnson and Lindenstrauss 1984",
    )

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check options and scale; they, the screen and the seed determine the result."""
        if options["input"] not in _INPUTS:
            raise unknown("input", str(options["input"]), _INPUTS, where="embedding random_projection")
        if options["components"] < 1:
            raise InputError(
                f"embedding random_projection: components is {options['components']}", remedy="use at least 1"
            )
        if options["input"] == "lognorm":
            require_scale(screen, {"counts", "normalized", "log1p"}, step="a random projection with input=lognorm")
        return {}

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Project by blocks into a memory-mapped file."""
        self.fingerprint(screen, options)
        weights = projection(screen.genes, options["components"], context.seed)
        path = context.folder / "random_projection.npy"
        with write_npy(path, (screen.n, options["components"])) as out:
            for part, block in self._blocks(screen, options, context):
                out[part] = block @ weights
                context.progress(part.stop, screen.n, "random projection")
        return Embedding(
            NpyRows(path), {"method": "random Gaussian projection", "input": options["input"], "genes": screen.n_genes}
        )

    def _blocks(
        self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext
    ) -> Iterator[tuple[slice, Any]]:
        if options["input"] == "lognorm":
            return LogNormExpression(screen).blocks(np.arange(screen.n), max_elements=context.max_elements)
        return screen.blocks(max_elements=context.max_elements)


EMBEDDERS = (RandomProjection(),)
