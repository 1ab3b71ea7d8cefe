"""A model that learns, given only a part of what it might learn from: for curves of score against training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from txeval.compute.arrays import Ints
from txeval.compute.random import stream
from txeval.embed.base import Embedder, EmbedderInfo, Embedding, EmbeddingContext, EmbeddingSpec
from txeval.embed.spec import parse_spec
from txeval.errors import InputError

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = ["EMBEDDERS", "NAME", "TrainedOn", "growing_part"]

NAME = "trained-on"


def growing_part(screen: Screen, rows: Ints, samples: int, seed: int) -> Ints:
    """Part of the train split that grows batch by batch.

    The batches come in an order that is drawn from the seed, the samples of each batch in an order drawn likewise; the
    first `samples` of this sequence are taken. So a larger part holds every smaller one of the same seed, and all of
    its batches are whole but for the last. Nothing depends on the order of the file where sample names are unique.

    Parameters
    ----------
    rows
        (m,) row numbers of the train split.
    samples
        How many to take, 1 .. m; 0: all.

    Returns
    -------
    (samples,) row numbers, increasing.

    Raises
    ------
    InputError
        There are not as many.
    """
    if samples == 0:
        return np.sort(rows)
    if not 0 < samples <= len(rows):
        raise InputError(
            f"{NAME}: samples is {samples:,}, and the train split has {len(rows):,}",
            remedy=f"ask for 1 to {len(rows):,}, or 0 for all",
        )
    batch = screen.samples.batch[rows]
    names = screen.samples.batches
    if screen.has_unique_names:
        rows = rows[np.argsort(screen.sample_names[rows].astype(str), kind="stable")]
        batch = screen.samples.batch[rows]
    present = sorted(set(batch.tolist()), key=lambda code: str(names[code]))
    taken: list[Ints] = []
    left = samples
    for place in stream(seed, NAME, "batches").permutation(len(present)):
        members = rows[batch == present[place]]
        order = stream(seed, NAME, "samples", str(names[present[place]])).permutation(len(members))
        taken.append(members[order[:left]])
        left -= len(taken[-1])
        if left == 0:
            break
    return np.sort(np.concatenate(taken))


class TrainedOn:
    """Another embedder, trained on a part of the train split; it embeds every sample."""

    info = EmbedderInfo(
        name=NAME,
        summary="Another embedder, trained on a part of the train split that grows batch by batch",
        stochastic=True,
        uses_train=True,
        options={
            "of": ("scvi", "what is trained: a SOURCE that learns from the train split, with its own @option=value"),
            "samples": (0, "how many samples of the train split it learns from; 0: all"),
        },
        needs="what the embedder needs that is trained",
        citation="Bendidi et al. 2024, Figure 2",
    )

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The embedder that is trained determines the result."""
        from txeval.embed.registry import check_options

        inner, embedder = _inner(options)
        if options["samples"] < 0:
            raise InputError(f"embedding {NAME}: samples is {options['samples']}", remedy="use 0 (all) or more")
        given = check_options(embedder.info, inner.options, label=f"{NAME}, of={inner.source}")
        return {
            "of": [embedder.info.name, embedder.info.version, given, dict(embedder.fingerprint(screen, given))],
        }

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Draw the part, train on it, embed every sample."""
        from txeval.embed.registry import make_embedding

        self.fingerprint(screen, options)
        inner, _ = _inner(options)
        every = np.arange(screen.n) if context.train_rows is None else context.train_rows
        rows = growing_part(screen, every, options["samples"], context.seed)
        folder = context.folder / "of"
        folder.mkdir(parents=True, exist_ok=True)
        made = make_embedding(inner, screen, replace(context, folder=folder, train_rows=rows))
        samples = screen.samples
        perturbed = rows[~samples.is_control[rows]]
        part = {
            "samples": len(rows),
            "of_samples": len(every),
            "controls": len(rows) - len(perturbed),
            "batches": sorted(str(samples.batches[code]) for code in set(samples.batch[rows].tolist())),
            "perturbations": len(set(samples.perturbation[perturbed].tolist())),
        }
        return Embedding(made.values, {**made.provenance, "trained_on_part": part, "of": inner.source})


def _inner(options: Mapping[str, Any]) -> tuple[EmbeddingSpec, Embedder]:
    """What is trained."""
    from txeval.embed.registry import resolve

    inner = parse_spec(options["of"])
    embedder = resolve(inner)
    if not embedder.info.uses_train or embedder.info.name in (NAME, "random"):
        raise InputError(
            f"embedding {NAME}: {inner.source} does not learn from the train split, so its size means nothing to it",
            remedy="name an embedder that does, such as of=scvi",
        )
    return inner, embedder


EMBEDDERS = (TrainedOn(),)
