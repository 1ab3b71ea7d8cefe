"""The baselines without information: shuffled rows of an embedding, and uniform noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from txeval.compute.arrays import row_blocks
from txeval.compute.random import stream
from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext
from txeval.embed.inner import OF, about_inner, inner_fingerprint, make_inner, sample_order
from txeval.embed.rows import NpyRows, pick_rows, write_npy
from txeval.errors import InputError

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = ["EMBEDDERS", "Shuffled", "Uniform"]


class Shuffled:
    """Rows of another embedding, dealt to the samples at random: the paper's random baseline."""

    info = EmbedderInfo(
        name="random",
        summary="Baseline: another embedding (PCA by default) with its rows shuffled.",
        stochastic=True,
        # What is shuffled may have learnt from the train split.
        uses_train=True,
        options={"of": OF},
        citation="Bendidi et al. 2024",
        role="floor",
    )

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The embedding that is shuffled determines the result."""
        return inner_fingerprint("random", screen, options)

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Shuffle; a sample's row depends on the seed and the samples, not on their order in the file."""
        made = make_inner("random", screen, options, context)
        order, ordered_by = sample_order(screen)
        deal = stream(context.seed, "random").permutation(screen.n)
        index = np.empty(screen.n, dtype=np.int64)
        index[order] = order[deal]
        provenance = {
            "method": "rows of another embedding, shuffled over all kept samples",
            "ordered_by": ordered_by,
            **about_inner("random", screen, options, made),
        }
        return Embedding(pick_rows(made.values, index), provenance)


class Uniform:
    """Uniform noise: the random vectors of the reference code."""

    info = EmbedderInfo(
        name="random_uniform",
        summary="Baseline: independent uniform numbers between 0 and 1.",
        stochastic=True,
        options={"dim": (512, "number of dimensions")},
        role="floor",
    )

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Nothing beside samples, seed and dimensions matters."""
        if options["dim"] < 1:
            raise InputError(f"embedding random_uniform: dim is {options['dim']}", remedy="use at least 1")
        return {}

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Draw, sample by sample in the order of their names."""
        self.fingerprint(screen, options)
        order, ordered_by = sample_order(screen)
        rng = stream(context.seed, "random_uniform")
        d = options["dim"]
        path = context.folder / "random_uniform.npy"
        with write_npy(path, (screen.n, d)) as out:
            for part in row_blocks(screen.n, d, context.max_elements):
                out[order[part]] = rng.random((part.stop - part.start, d), dtype=np.float32)
        return Embedding(NpyRows(path), {"method": "uniform numbers between 0 and 1", "ordered_by": ordered_by})


EMBEDDERS = (Shuffled(), Uniform())
