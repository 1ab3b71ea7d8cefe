"""What embedders share that are built on another embedding: floors and ceilings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from txeval.compute.arrays import Ints
from txeval.embed.base import Embedding, EmbeddingContext, EmbeddingSpec
from txeval.embed.spec import parse_spec
from txeval.errors import InputError

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = ["OF", "about_inner", "inner_fingerprint", "make_inner", "sample_order"]

#: Option that names the other embedding.
OF: tuple[Any, str] = ("pca", "which embedding: any SOURCE, with its own @option=value if need be")


def sample_order(screen: Screen) -> tuple[Ints, str]:
    """Samples in an order that does not depend on that of the file, where their names allow it, and what it is by."""
    if screen.has_unique_names:
        return np.argsort(screen.sample_names.astype(str), kind="stable"), "sample name"
    return np.arange(screen.n), "position in the file, since sample names are not unique"


def inner_spec(name: str, screen: Screen, options: Mapping[str, Any]) -> EmbeddingSpec:
    """The embedding that `name` is built on; InputError where that is itself built on another."""
    if options["of"] == OF[0]:
        # A baseline must exist for every screen; which PCA it is stands in the provenance.
        return EmbeddingSpec("pca", "pca", {} if screen.scale == "counts" else {"input": "as_is"})
    inner = parse_spec(options["of"])
    if inner.source in ("random", "shuffled", "control_mean", "ceiling"):
        problem = "it cannot be built on itself" if inner.source == name else f"it cannot be built on {inner.source}"
        raise InputError(f"embedding {name}: {problem}", remedy="name another source, such as of=pca")
    return inner


def inner_fingerprint(name: str, screen: Screen, options: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the result beside the screen and the seed."""
    from txeval.embed.registry import embedding_fingerprint

    return {"of": embedding_fingerprint(inner_spec(name, screen, options), screen, 0)}


def make_inner(name: str, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
    """Make the embedding that `name` is built on, or take the one of the run."""
    from txeval.embed.registry import make_embedding

    inner = inner_spec(name, screen, options)
    if context.others is not None:
        return context.others(inner)
    return make_embedding(inner, screen, replace(context, folder=context.folder / "of"))


def about_inner(name: str, screen: Screen, options: Mapping[str, Any], made: Embedding) -> dict[str, Any]:
    """Provenance of the embedding that `name` is built on, and what is odd about it."""
    inner = inner_spec(name, screen, options)
    about: dict[str, Any] = {"of": {"source": inner.source, "options": dict(inner.options), **made.provenance}}
    if options["of"] == OF[0] and screen.scale != "counts":
        about["warnings"] = [
            f"{name} is built on a PCA of the {screen.scale} values as they are, since {screen.where} holds no counts"
        ]
    return about
