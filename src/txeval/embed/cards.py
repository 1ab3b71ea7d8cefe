"""Every model by what a user compares them by: how far it is supported, what it needs, what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from txeval.embed.registry import list_embedders

__all__ = ["SUPPORT", "ModelCard", "list_models"]

#: Level of support -> what it means.
SUPPORT: Mapping[str, str] = {
    "built in": "computed by txeval itself",
    "built in, with weights": "computed by txeval from the official files of the model (see `txeval weights`)",
    "plug-in": "by another package that is installed",
    "by command": "in an environment of its own, by the embedder `external` or as a file",
}


@dataclass(frozen=True)
class ModelCard:
    """What a user wants to know of a model before choosing it.

    Attributes
    ----------
    support
        Level of support, a key of `SUPPORT`.
    genes, scale
        Names of genes and scale of values that it needs.
    dimensions
        Of the embedding, and the option that sets them.
    weights
        Name of its weights; "" where it needs none.
    checked
        What its results were compared with.
    why
        Why it is not built in.
    """

    name: str
    support: str
    summary: str
    genes: str = ""
    scale: str = ""
    dimensions: str = ""
    licence: str = ""
    citation: str = ""
    weights: str = ""
    checked: str = ""
    why: str = ""


@cache
def _facts() -> Mapping[str, Mapping[str, Any]]:
    text = (resources.files("txeval.embed") / "catalogue" / "models.yml").read_text(encoding="utf-8")
    facts: dict[str, Mapping[str, Any]] = yaml.safe_load(text)
    return facts


def list_models() -> list[ModelCard]:
    """Every model: embedders (built-in ones and plug-ins), then those that run by command; each in order of names."""
    facts, cards = _facts(), []
    for info in list_embedders():
        known = {key: str(value) for key, value in facts.get(info.name, {}).items()}
        support = "plug-in"
        if info.name in facts:
            support = "built in, with weights" if known.get("weights") else "built in"
        if not known:
            known = {"scale": info.needs}
        cards.append(ModelCard(info.name, support, info.summary, licence=info.licence, citation=info.citation, **known))
    for name, content in sorted(facts.items()):
        if content.get("outside"):
            known = {key: str(value) for key, value in content.items() if key != "outside"}
            cards.append(ModelCard(name, "by command", **known))
    return cards
