"""The baselines without information: shuffled rows of an embedding, and uniform noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from txeval.compute.arrays import Ints, row_blocks
from txeval.compute.random import stream
from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext, EmbeddingSpec
from txeval.embed.rows import NpyRows, pick_rows, write_npy
from txeval.embed.spec import parse_spec
from txeval.errors import InputError

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = ["EMBEDDERS", "Shuffled", "Uniform"]


def _sample_order(screen: Screen) -> tuple[Ints, str]:
    """Samples in an order that does not depend on that of the file, where their names allow it."""
    if screen.has_unique_names:
        return np.argsort(screen.sample_names.astype(str), kind="stable"), "sample name"
    return np.arange(screen.n), "position in the file, since sample names are not unique"


class Shuffled:
    """Rows of another embedding, dealt to the samples at random: the paper's random baseline."""

    info = EmbedderInfo(
        name="random",
        summary="Baseline: another embedding (PCA by default) with its rows shuffled.",
        stochastic=True,
        # What is shuffled may have learnt from the train split.
        uses_train=True,
        options={"of": ("pca", "what is shuffled: any SOURCE, with its own @option=value if need be")},
        citation="Bendidi et al. 2024",
    )

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The embedding that is shuffled determines the result."""
        from txeval.embed.registry import embedding_fingerprint

        return {"of": embedding_fingerprint(_inner(screen, options), screen, 0)}

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Shuffle; a sample's row depends on the seed and the samples, not on their order in the file."""
        from txeval.embed.registry import make_embedding

        inner = _inner(screen, options)
        if context.others is not None:
            made = context.others(inner)
        else:
            made = make_embedding(inner, screen, replace(context, folder=context.folder / "of"))
        order, ordered_by = _sample_order(screen)
        deal = stream(context.seed, "random").permutation(screen.n)
        index = np.empty(screen.n, dtype=np.int64)
        index[order] = order[deal]
        provenance: dict[str, Any] = {
            "method": "rows of another embedding, shuffled over all kept samples",
            "of": {"source": inner.source, "options": dict(inner.options), **made.provenance},
            "ordered_by": ordered_by,
        }
        if _is_default(options) and screen.scale != "counts":
            provenance["warnings"] = [
                f"the random baseline shuffles a PCA of the {screen.scale} values as they are, since {screen.where}"
                " holds no counts"
            ]
        return Embedding(pick_rows(made.values, index), provenance)


def _is_default(options: Mapping[str, Any]) -> bool:
    return bool(options["of"] == "pca")


def _inner(screen: Screen, options: Mapping[str, Any]) -> EmbeddingSpec:
    """The embedding that is shuffled."""
    if _is_default(options):
        # A baseline must exist for every screen; which PCA it is stands in the provenance.
        return EmbeddingSpec("pca", "pca", {} if screen.scale == "counts" else {"input": "as_is"})
    inner = parse_spec(options["of"])
    if inner.source == "random":
        raise InputError("embedding random: it cannot shuffle itself", remedy="name another source, such as of=pca")
    return inner


class Uniform:
    """Uniform noise: the random vectors of the reference code."""

    info = EmbedderInfo(
        name="random_uniform",
        summary="Baseline: independent uniform numbers between 0 and 1.",
        stochastic=True,
        options={"dim": (512, "number of dimensions")},
    )

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Nothing beside samples, seed and dimensions matters."""
        if options["dim"] < 1:
            raise InputError(f"embedding random_uniform: dim is {options['dim']}", remedy="use at least 1")
        return {}

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Draw, sample by sample in the order of their names."""
        self.fingerprint(screen, options)
        order, ordered_by = _sample_order(screen)
        rng = stream(context.seed, "random_uniform")
        d = options["dim"]
        path = context.folder / "random_uniform.npy"
        with write_npy(path, (screen.n, d)) as out:
            for part in row_blocks(screen.n, d, context.max_elements):
                out[order[part]] = rng.random((part.stop - part.start, d), dtype=np.float32)
        return Embedding(NpyRows(path), {"method": "uniform numbers between 0 and 1", "ordered_by": ordered_by})


EMBEDDERS = (Shuffled(), Uniform())
