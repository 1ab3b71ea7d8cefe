"""Floor: an embedding in which no perturbation does anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from txeval.compute.groups import group_means
from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext
from txeval.embed.inner import OF, about_inner, inner_fingerprint, make_inner
from txeval.embed.rows import PickedRows
from txeval.errors import NotComputable

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = ["EMBEDDERS", "ControlMean"]


class ControlMean:
    """Every sample gets the mean of the controls of its batch in another embedding."""

    info = EmbedderInfo(
        name="control_mean",
        summary="Floor: for every sample the mean of its batch's controls in another embedding (PCA by default).",
        uses_train=True,
        options={"of": OF},
        role="floor",
    )

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The embedding that is averaged determines the result."""
        return inner_fingerprint("control_mean", screen, options)

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Average the controls of each batch; a batch without controls gets the mean of all controls."""
        samples = screen.samples
        if not samples.is_control.any():
            raise NotComputable("the screen has no controls")
        made = make_inner("control_mean", screen, options, context)
        codes = np.where(samples.is_control, samples.batch, -1)
        counts, means = group_means(made.values, codes, len(samples.batches))
        none = counts == 0
        means = np.where(none[:, None], 0.0, means)
        means[none] = (counts[:, None] * means).sum(axis=0) / counts.sum()
        provenance = {
            "method": "mean of the controls of the sample's batch in another embedding",
            **about_inner("control_mean", screen, options, made),
        }
        present = np.unique(samples.batch)
        lacking = [str(name) for name in samples.batches[present[none[present]]]]
        if lacking:
            shown = ", ".join(lacking[:10]) + (f", and {len(lacking) - 10} more" if len(lacking) > 10 else "")
            provenance["notes"] = [f"batches without controls got the mean of all controls: {shown}"]
        return Embedding(PickedRows(means.astype(np.float32), samples.batch), provenance)


EMBEDDERS = (ControlMean(),)
