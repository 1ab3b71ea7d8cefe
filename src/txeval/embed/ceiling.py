"""Ceiling: what the noise of the data itself allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext
from txeval.embed.inner import OF, about_inner, inner_fingerprint, make_inner

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = ["EMBEDDERS", "Ceiling"]


class Ceiling:
    """Another embedding as it is. What makes it a ceiling is how the tasks score it: see `Task.ceiling`."""

    info = EmbedderInfo(
        name="ceiling",
        summary="Ceiling: another embedding (PCA by default), half of each perturbation's samples held against the "
        "other half.",
        uses_train=True,
        options={"of": OF},
        role="ceiling",
    )

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The other embedding determines the result."""
        return inner_fingerprint("ceiling", screen, options)

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Give the other embedding."""
        made = make_inner("ceiling", screen, options, context)
        return Embedding(made.values, {"method": "another embedding", **about_inner("ceiling", screen, options, made)})


EMBEDDERS = (Ceiling(),)
