"""Experiments that are runs with many embeddings of one kind: likelihoods of scVI, and growing training sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from txeval.embed import resolve
from txeval.embed.base import EmbedderInfo, EmbeddingSpec
from txeval.embed.trained_on import NAME as TRAINED_ON
from txeval.errors import InputError, unknown

__all__ = ["LIKELIHOODS", "default_sizes", "likelihood_embeddings", "scaling_embeddings", "spec_text"]

#: Likelihoods of Figure 1 of the paper.
LIKELIHOODS = ("zinb", "nb", "poisson")

#: Names of the likelihoods for people.
TITLES = {"zinb": "ZINB", "nb": "NB", "poisson": "Poisson"}


def likelihood_embeddings(model: EmbeddingSpec, likelihoods: Sequence[str]) -> list[EmbeddingSpec]:
    """One embedding per likelihood, all else equal.

    Raises
    ------
    InputError
        The model has no option `likelihood`, or there is no such likelihood.
    """
    if "likelihood" not in resolve(model).info.options:
        raise InputError(f"{model.source} has no option likelihood", remedy="use scvi or transfer-scvi")
    if "likelihood" in model.options:
        raise InputError(
            f"--model {model.source} fixes the likelihood that the experiment varies",
            remedy="leave it out, or choose with --likelihoods",
        )
    for name in likelihoods:
        if name not in LIKELIHOODS:
            raise unknown("likelihood", name, LIKELIHOODS)
    return [
        EmbeddingSpec(f"{model.label} {TITLES[name]}", model.source, {**model.options, "likelihood": name})
        for name in dict.fromkeys(likelihoods)
    ]


def default_sizes(train: int, smallest: int = 100) -> list[int]:
    """Sizes up to the train split, each twice the one before and none below `smallest`; 0 stands for all of it."""
    found = [train >> times for times in range(4, 0, -1)]
    return [*(size for size in found if size >= smallest), 0]


def scaling_embeddings(
    model: EmbeddingSpec, sizes: Sequence[int], train: int, *, steps: int | None = None
) -> list[EmbeddingSpec]:
    """One embedding per size of the training set.

    Parameters
    ----------
    sizes
        Numbers of training samples; 0: all.
    train
        Number of samples of the train split.
    steps
        Number of minibatches that each is trained on, to the next whole epoch; None: the epochs of the model, so that
        a small training set is also a short training.

    Raises
    ------
    InputError
        A size is above that of the train split, or the model does not learn or counts no epochs.
    """
    info = resolve(model).info
    made: dict[int, EmbeddingSpec] = {}
    for size in sizes:
        if size < 0 or size > train:
            raise InputError(
                f"--sizes: {size:,} samples, and the train split has {train:,}",
                remedy=f"ask for at most {train:,}, or for all",
            )
        many = size or train
        options = dict(model.options) if steps is None else {**model.options, **_epochs(info, model, many, steps)}
        inner = replace(model, options=options)
        label = f"{model.label}, {many:,} samples"
        made[many] = EmbeddingSpec(label, TRAINED_ON, {"of": spec_text(inner), "samples": size if size < train else 0})
    return [made[many] for many in sorted(made)]


def _epochs(info: EmbedderInfo, model: EmbeddingSpec, samples: int, steps: int) -> Mapping[str, Any]:
    if "max_epochs" not in info.options or "batch_size" not in info.options:
        raise InputError(
            f"{model.source} has no options max_epochs and batch_size, so its steps cannot be set",
            remedy="leave --steps out",
        )
    if "max_epochs" in model.options:
        raise InputError("--steps and max_epochs contradict each other", remedy="give one of the two")
    batch = int(model.options.get("batch_size", info.options["batch_size"][0]))
    epochs = max(1, math.ceil(steps / math.ceil(samples / batch)))
    made: dict[str, Any] = {"max_epochs": epochs}
    if "kl_warmup" in info.options and "kl_warmup" not in model.options:
        # A warm-up that the training never reaches the end of would leave a larger set with another objective.
        made["kl_warmup"] = max(1, epochs // 2)
    return made


def spec_text(spec: EmbeddingSpec) -> str:
    """What a user would write for a spec, so that `parse_spec` reads it back."""
    label = "" if spec.label == spec.source else f"{spec.label}="
    options = ",".join(f"{name}={_text(value)}" for name, value in spec.options.items())
    return f"{label}{spec.source}" + (f"@{options}" if options else "")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
