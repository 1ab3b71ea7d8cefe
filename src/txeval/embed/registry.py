"""Finds embedders: modules of this package, entry points of other packages, and places of precomputed embeddings."""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import numpy as np

from txeval.compute.arrays import Ints, row_blocks, take_rows
from txeval.embed.base import Embedder, EmbedderInfo, Embedding, EmbeddingContext, EmbeddingSpec
from txeval.embed.precomputed import Precomputed
from txeval.embed.spec import is_precomputed
from txeval.errors import InputError, unknown

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = ["check_options", "embedding_fingerprint", "list_embedders", "make_embedding", "resolve"]

GROUP = "txeval.embedders"

_WHERE = (
    "or name a precomputed one: obsm:KEY, X, layer:NAME, FILE.npy, FILE.npz, FILE.parquet, FILE.csv, "
    "FILE.h5ad#obsm/KEY, FILE.zarr#obsm/KEY"
)


@cache
def _built_in() -> dict[str, Embedder]:
    found: dict[str, Embedder] = {}
    package = importlib.import_module("txeval.embed")
    for module in pkgutil.iter_modules(package.__path__):
        for embedder in getattr(importlib.import_module(f"txeval.embed.{module.name}"), "EMBEDDERS", ()):
            found[embedder.info.name] = embedder
    return found


def _plugins() -> dict[str, EntryPoint]:
    return _plugins_on(tuple(sys.path))


@cache
def _plugins_on(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    # To look through what is installed takes longer than all else that is done for one embedding.
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _load(entry: EntryPoint) -> Embedder:
    package = f" of package {entry.dist.name}" if entry.dist is not None else ""
    origin = f"embedder {entry.name!r} (entry point {entry.value}{package})"
    try:
        found = entry.load()
        embedder = found() if isinstance(found, type) else found
    # A plug-in may fail in any way while it is imported.
    except Exception as why:
        raise InputError(
            f"{origin} cannot be loaded: {type(why).__name__}: {why}", remedy="install what it needs or remove it"
        ) from why
    if not isinstance(embedder, Embedder) or not isinstance(embedder.info, EmbedderInfo):
        raise InputError(
            f"{origin} is no embedder: it needs `info`, `fingerprint` and `embed`",
            remedy="see txeval.embed.base.Embedder",
        )
    return embedder


def list_embedders() -> list[EmbedderInfo]:
    """Every embedder by name; one that cannot be loaded is listed with the reason as its summary."""
    found = {name: embedder.info for name, embedder in _built_in().items()}
    for name in _plugins():
        try:
            info = resolve(EmbeddingSpec(name, name)).info
        except InputError as why:
            info = EmbedderInfo(name, f"not usable: {why.problem}")
        found[name] = info
    return [found[name] for name in sorted(found)]


def resolve(spec: EmbeddingSpec) -> Embedder:
    """Find what makes the requested embedding.

    Raises
    ------
    InputError
        For a name that does not exist (with the nearest), a plug-in that cannot be loaded, or a name that two have.
    """
    built_in, plugins = _built_in(), _plugins()
    if spec.source in built_in:
        if spec.source in plugins:
            raise InputError(
                f"two embedders are called {spec.source!r}: a built-in one and {plugins[spec.source].value}",
                remedy="rename the entry point",
            )
        return built_in[spec.source]
    if spec.source in plugins:
        return _load(plugins[spec.source])
    if is_precomputed(spec.source):
        return Precomputed(spec.source)
    error = unknown("embedder", spec.source, [*built_in, *plugins])
    raise InputError(error.problem, remedy=f"{error.remedy}; {_WHERE}")


def check_options(info: EmbedderInfo, options: Mapping[str, Any], *, label: str = "") -> dict[str, Any]:
    """Options with defaults filled in; InputError for an unknown name (with the nearest) or another type."""
    where = f"embedding {label or info.name}"
    for name, value in options.items():
        if name not in info.options:
            raise unknown("option", name, info.options, where=where)
        default = info.options[name][0]
        if not _fits(value, default):
            raise InputError(
                f"{where}: option {name} is {value!r}, a {type(value).__name__}",
                remedy=f"give a value of type {type(default).__name__}, such as {default!r}",
            )
    return {name: options.get(name, default) for name, (default, _) in info.options.items()}


def _fits(value: Any, default: Any) -> bool:
    if default is None:
        return True
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, int) and not isinstance(default, bool):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, type(default))


def make_embedding(spec: EmbeddingSpec, screen: Screen, context: EmbeddingContext) -> Embedding:
    """Make the requested embedding of the kept samples of a screen.

    Returns
    -------
    Embedding
        Checked: (n, d) with n kept samples, d >= 1, finite. Its provenance names embedder, options and seed.

    Raises
    ------
    InputError
        For what the user can put right.
    """
    embedder = resolve(spec)
    options = check_options(embedder.info, spec.options, label=spec.label)
    made = embedder.embed(screen, options, context)
    if not isinstance(embedder, Precomputed):  # which checks while it reads
        _check(made, screen, spec.label)
    provenance: dict[str, Any] = {"source": spec.source, "options": options, "embedder_version": embedder.info.version}
    if embedder.info.stochastic:
        provenance["seed"] = context.seed
    return Embedding(made.values, {**provenance, **made.provenance}, made.model)


def _check(made: Embedding, screen: Screen, label: str) -> None:
    shape = tuple(made.values.shape)
    if len(shape) != 2 or shape[0] != screen.n or shape[1] < 1:
        raise InputError(f"embedding {label} has shape {shape}, not one row for each of {screen.n} samples")
    for part in row_blocks(*made.shape):
        bad = np.argwhere(~np.isfinite(take_rows(made.values, part)))
        if len(bad):
            row, column = int(bad[0, 0]) + part.start, int(bad[0, 1])
            name = screen.sample_names[row]
            raise InputError(f"embedding {label} is not finite for sample {name!r}, column {column}")


def embedding_fingerprint(spec: EmbeddingSpec, screen: Screen, seed: int, *, train_rows: Ints | None = None) -> str:
    """Digest of everything that determines an embedding, so that equal digests mean equal embeddings.

    Of a precomputed one: its values for the kept samples, as float32, in the order of the screen; where it lies does
    not enter. Of a computed one: embedder, version, options, whatever the embedder adds, the screen, the seed where it
    is stochastic, and the train split where it learns from that.

    Raises
    ------
    InputError
        Everything that `make_embedding` would complain of before it starts to compute.
    """
    embedder = resolve(spec)
    options = check_options(embedder.info, spec.options, label=spec.label)
    added = dict(embedder.fingerprint(screen, options))
    if isinstance(embedder, Precomputed):
        content: dict[str, Any] = {"embedder": "precomputed", "added": added}
    else:
        content = {
            "embedder": embedder.info.name,
            "version": embedder.info.version,
            "options": options,
            "added": added,
            "screen": screen.fingerprint,
        }
        if embedder.info.stochastic:
            content["seed"] = int(seed)
        if embedder.info.uses_train:
            rows = b"" if train_rows is None else np.ascontiguousarray(train_rows, dtype=np.int64).tobytes()
            content["train"] = hashlib.sha256(rows).hexdigest()
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
