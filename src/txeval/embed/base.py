"""What an embedding is, and what makes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from txeval.compute.arrays import Ints, Rows

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = ["Embedder", "EmbedderInfo", "Embedding", "EmbeddingContext", "EmbeddingSpec"]


@dataclass(frozen=True)
class EmbeddingSpec:
    """One requested embedding: `LABEL=SOURCE@option=value,option=value` on the command line.

    Attributes
    ----------
    label
        Name in every output; defaults to the source.
    source
        An embedder's name (`pca`), or where a precomputed one is (`obsm:X_pca`, `file.npy`,
        `other.h5ad#obsm/X_uce`, `X`).
    options
        Settings of the embedder.
    """

    label: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EmbedderInfo:
    """What a user wants to know of an embedder before choosing it.

    Attributes
    ----------
    stochastic
        Whether it gives another embedding for another seed; it is then made once per seed.
    uses_train
        Whether it learns from `EmbeddingContext.train_rows`, so that another split gives another embedding.
    options
        Option name -> (default, one line of help). The type of the default is the type that is accepted; a default
        of None accepts any.
    version
        Raised when the same input gives another result than before.
    model_reader
        Of an embedder that trains a model and gives its folder (`Embedding.model`): the embedder whose option `model`
        reads that folder. "": no model is kept.
    role
        "floor" or "ceiling" of what an embedding can reach: shown apart, never ranked; "" for a model.
    """

    name: str
    summary: str
    stochastic: bool = False
    uses_train: bool = False
    options: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    needs: str = ""
    licence: str = ""
    citation: str = ""
    version: int = 1
    model_reader: str = ""
    role: str = ""


@dataclass(frozen=True)
class EmbeddingContext:
    """What an embedder may use beside the screen.

    Attributes
    ----------
    folder
        Where it may keep files; nothing in it is read by anybody else.
    train_rows
        Row numbers (into the kept samples) of the train split, for embedders that learn.
    others
        Makes another embedding of the same screen: for embedders built on one, such as the random baseline.
    progress
        Called with (done, total, text).
    """

    folder: Path
    seed: int = 0
    train_rows: Ints | None = None
    others: Callable[[EmbeddingSpec], Embedding] | None = None
    device: str = "cpu"
    max_elements: int | None = None
    progress: Callable[[int, int, str], None] = lambda done, total, text: None


@dataclass(frozen=True)
class Embedding:
    """An embedding of the kept samples of a screen.

    Attributes
    ----------
    values
        (n, d), any floating type, rows in the order of the kept samples; memory-mapped where it is large.
    provenance
        Plain data: source, settings, what was aligned how, what was filled in; printed in the manifest. Its `notes`
        stand in every score of the embedding, its `warnings` are printed by the run.
    model
        Folder of the model that was trained for it; None: there is none.
    """

    values: Rows
    provenance: Mapping[str, Any] = field(default_factory=dict)
    model: Path | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        n, d = self.values.shape
        return int(n), int(d)


@runtime_checkable
class Embedder(Protocol):
    """Makes embeddings. A class with these three members, registered under the entry-point group
    `txeval.embedders`, is all that a new model needs.
    """

    info: EmbedderInfo

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Everything beside screen and seed that determines the result, as plain data; checks the options."""
        ...

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Embed every kept sample of a screen, in its order."""
        ...
