"""Floor: an embedding that knows the batch of every sample and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from txeval.compute.random import stream
from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext
from txeval.embed.inner import OF, about_inner, inner_fingerprint, make_inner, sample_order
from txeval.embed.rows import pick_rows

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = ["EMBEDDERS", "WithinBatch"]


class WithinBatch:
    """Rows of another embedding, dealt at random to the samples of the same batch, controls included."""

    info = EmbedderInfo(
        name="shuffled",
        summary="Floor: another embedding (PCA by default) with its rows shuffled within each batch.",
        stochastic=True,
        uses_train=True,
        options={"of": OF},
        role="floor",
    )

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The embedding that is shuffled determines the result."""
        return inner_fingerprint("shuffled", screen, options)

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Shuffle; a sample's row depends on the seed and the samples, not on their order in the file."""
        made = make_inner("shuffled", screen, options, context)
        order, ordered_by = sample_order(screen)
        deal = stream(context.seed, "shuffled").permutation(screen.n)
        batch = screen.samples.batch[order]
        index = np.empty(screen.n, dtype=np.int64)
        # Both list the samples batch by batch: one in their order, the other at random.
        index[order[np.argsort(batch, kind="stable")]] = order[deal[np.argsort(batch[deal], kind="stable")]]
        provenance = {
            "method": "rows of another embedding, shuffled within each batch",
            "ordered_by": ordered_by,
            **about_inner("shuffled", screen, options, made),
        }
        return Embedding(pick_rows(made.values, index), provenance)


EMBEDDERS = (WithinBatch(),)
