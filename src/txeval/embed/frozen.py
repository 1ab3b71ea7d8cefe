"""What the embedders with ready-made weights share: options, devices, and the way of a screen through a model."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from txeval.compute.arrays import F32, Ints
from txeval.compute.machine import resolve_device
from txeval.data.matrix import open_store, var_of
from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext
from txeval.embed.checkpoints import UNTRAINED, KeyReport, file_digest
from txeval.embed.genes import GeneMatch, read_aliases
from txeval.embed.rows import NpyRows, write_npy
from txeval.errors import InputError

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = [
    "SHARED_OPTIONS",
    "Encode",
    "Forward",
    "Item",
    "Source",
    "aliases_of",
    "batches",
    "choice",
    "complete",
    "describe",
    "digests",
    "embed_sequences",
    "gene_names",
    "inference",
    "pad",
    "pick_device",
    "positive",
    "sample_keys",
]

#: One sample as the model reads it: arrays of one length (tokens, and values where there are any).
Item: TypeAlias = tuple[npt.NDArray[Any], ...]
#: Counts of the matched genes (m, t) and row numbers (m,) -> what the model reads of each; None: nothing is there.
Encode: TypeAlias = Callable[[Any, Ints], "list[Item | None]"]
#: Samples and the length to pad them to -> (m, d).
Forward: TypeAlias = Callable[[Sequence[Item], int], F32]
#: Blocks of rows with the slice of the screen that they are.
Source: TypeAlias = Callable[[], "Iterator[tuple[slice, Any]]"]

#: Samples whose tokens are held at a time, to be sorted by length.
WINDOW = 512

#: Numbers in the widest activation of one call of a model. On the CPU larger ones leave the caches and are slower.
ACTIVATIONS = {"cpu": 8_000_000, "cuda": 512_000_000}

SHARED_OPTIONS: Mapping[str, tuple[Any, str]] = {
    "weights": ("", "folder with the files of the model; default: $TXEVAL_WEIGHTS/NAME"),
    "genes": ("", "var column with the gene names that the model understands; default: the gene names of the screen"),
    "aliases": ("", "file of other gene names (.tsv or .csv with the columns alias and gene, .json or .pkl)"),
    "min_gene_overlap": (0.2, "smallest fraction of the screen's genes that the model has to know"),
    "batch_size": (0, "most samples in one call of the model; 0: as many as suit the device"),
    "device": ("", "auto, cpu or cuda; default: the device of the run"),
    "precision": ("float32", "float32; on cuda also bfloat16 or float16"),
}


def complete(info: EmbedderInfo, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the defaults filled in, and the shared ones checked."""
    options = {name: given.get(name, default) for name, (default, _) in info.options.items()}
    if not 0 <= options["min_gene_overlap"] <= 1:
        raise InputError(
            f"{info.name}: min_gene_overlap is {options['min_gene_overlap']}", remedy="give a fraction from 0 to 1"
        )
    positive(info.name, options, "batch_size", least=0)
    return options


def positive(model: str, options: Mapping[str, Any], *names: str, least: float = 1) -> None:
    """Refuse options below the least value that makes sense."""
    for name in names:
        if not options[name] >= least:
            raise InputError(f"{model}: option {name} is {options[name]}", remedy=f"use at least {least:g}")


def choice(model: str, options: Mapping[str, Any], name: str, allowed: Sequence[str]) -> str:
    """Value of an option that has to be one of a few."""
    value = str(options[name])
    if value not in allowed:
        raise InputError(f"{model}: option {name} is {value!r}", remedy=f"choose one of: {', '.join(allowed)}")
    return value


def pick_device(wanted: str, precision: str = "float32") -> torch.device:
    """The device to compute on; see `txeval.compute.machine.resolve_device`.

    Raises
    ------
    InputError
        There is no such device, or half precision is asked for elsewhere than on cuda.
    """
    device = torch.device(resolve_device(wanted))
    if precision not in ("float32", "bfloat16", "float16"):
        raise InputError(f"precision is {precision!r}", remedy="choose one of: float32, bfloat16, float16")
    if precision != "float32" and device.type != "cuda":
        raise InputError(f"precision {precision} is for cuda only; the device is {device}", remedy="use float32")
    return device


@contextmanager
def inference(device: torch.device, precision: str = "float32") -> Iterator[None]:
    """No gradients; half precision where asked for."""
    half: Any = nullcontext()
    if precision != "float32":
        half = torch.autocast(device.type, dtype=getattr(torch, precision))
    with torch.inference_mode(), half:
        yield


def gene_names(screen: Screen, column: str) -> list[str]:
    """Names of the columns of a screen: its gene names, or a column of `var`."""
    if not column:
        return [str(name) for name in screen.genes]
    store = open_store(screen.path)
    try:
        return [str(name) for name in store.column(var_of(screen.where), column, role="column of gene names")]
    finally:
        store.close()


def _alias_file(options: Mapping[str, Any]) -> Path | None:
    return Path(options["aliases"]).expanduser() if options["aliases"] else None


def aliases_of(options: Mapping[str, Any]) -> dict[str, str] | None:
    """The user's table of other gene names, if one is given."""
    path = _alias_file(options)
    return None if path is None else read_aliases(path)


def digests(files: Sequence[Path], options: Mapping[str, Any]) -> dict[str, Any]:
    """Digest of every file that enters an embedding: what a fingerprint needs beside options, screen and seed."""
    out: dict[str, Any] = {"weights": {path.name: file_digest(path) for path in files}}
    path = _alias_file(options)
    if path is not None:
        if not path.is_file():
            raise InputError(f"there is no file of gene aliases {path}", remedy="check the path")
        out["aliases"] = file_digest(path)
    return out


def sample_keys(screen: Screen) -> list[str]:
    """What each sample's random stream is named by: its name where names are unique, else its row in the file."""
    if screen.has_unique_names:
        return [str(name) for name in screen.sample_names]
    return [f"row {row}" for row in screen.kept]


def pad(
    items: Sequence[Item], length: int, fills: Sequence[int], device: torch.device
) -> tuple[list[Tensor], Tensor | None]:
    """Stack samples to tensors (m, length).

    Returns
    -------
    tensors, real
        One tensor per array of an item; `real` (m, length) is True where there is no padding, None where there is none
        at all.
    """
    lengths = np.array([len(item[0]) for item in items])
    real = np.arange(length) < lengths[:, None]
    stacked = []
    for number, fill in enumerate(fills):
        array = np.full(real.shape, fill, dtype=items[0][number].dtype)
        array[real] = np.concatenate([item[number] for item in items])
        stacked.append(torch.from_numpy(array).to(device))
    return stacked, None if real.all() else torch.from_numpy(real).to(device)


def batches(lengths: Sequence[int], batch_size: int, width: int, activations: int) -> Iterator[list[int]]:
    """Groups of samples of similar length that fit in memory together.

    Parameters
    ----------
    batch_size
        Most samples in a group; 0: no limit but memory.
    width
        Numbers per token in the widest activation.
    activations
        Most numbers in it.
    """
    group: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        full = batch_size and len(group) >= batch_size
        if group and (full or (len(group) + 1) * lengths[number] * width > activations):
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def embed_sequences(
    source: Source,
    n: int,
    genes: GeneMatch,
    out: F32,
    *,
    encode: Encode,
    forward: Forward,
    width: int,
    device: torch.device,
    batch_size: int = 0,
    chunk: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    name: str = "",
) -> Ints:
    """Take samples through a model of sequences, by blocks; what is held at a time does not grow with their number.

    Parameters
    ----------
    out
        (n, d), filled here; rows of samples without anything to read become zero.
    width
        Numbers per token in the model's widest activation.
    chunk
        For models whose result depends on the padding: samples `i` and `j` are padded to one length where
        `i // chunk == j // chunk`. 0: padding does not matter.

    Returns
    -------
    (k,) int64
        Rows without anything to read.
    """
    unusable: list[int] = []
    window: list[tuple[int, Item]] = []
    size = chunk or WINDOW

    def flush() -> None:
        lengths = [len(item[0]) for _, item in window]
        longest = max(lengths, default=0)
        for group in batches(
            [longest] * len(window) if chunk else lengths, batch_size, width, ACTIVATIONS[device.type]
        ):
            to = longest if chunk else max(lengths[i] for i in group)
            out[[window[i][0] for i in group]] = forward([window[i][1] for i in group], to)
        window.clear()

    for rows, block in source():
        # A block may begin anywhere in a window, and hold many.
        edges = [rows.start, *range((rows.start // size + 1) * size, rows.stop, size), rows.stop]
        for low, high in itertools.pairwise(edges):
            part = genes.collapse(block[low - rows.start : high - rows.start])
            for row, item in zip(range(low, high), encode(part, np.arange(low, high)), strict=True):
                if item is None:
                    unusable.append(row)
                    out[row] = 0
                else:
                    window.append((row, item))
            if high % size == 0:
                flush()
                progress(high, n, name)
    flush()
    progress(n, n, name)
    return np.asarray(unusable, dtype=np.int64)


def describe(
    screen: Screen,
    context: EmbeddingContext,
    info: EmbedderInfo,
    dim: int,
    fill: Callable[[F32], Ints],
    *,
    files: Sequence[Path],
    keys: KeyReport,
    genes: GeneMatch,
    device: torch.device,
    unusable_rows: str = "zeros",
    note: str = "",
    more: Mapping[str, Any] | None = None,
) -> Embedding:
    """Make an embedding file, and the record of what went into it.

    Parameters
    ----------
    fill
        Fills the matrix (n, dim) and returns the rows of unusable samples.
    unusable_rows
        What these rows hold.
    """
    path = context.folder / f"{info.name}.npy"
    started = time.perf_counter()
    with write_npy(path, (screen.n, dim)) as out:
        unusable = fill(out)
    provenance: dict[str, Any] = {
        "weights": {"files": {str(file): file_digest(file) for file in files}, "tensors": keys.plain()},
        "genes": genes.report(),
        "unusable": {"count": len(unusable), "rows": unusable.tolist(), "filled_with": unusable_rows},
        "device": str(device),
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started, 3),
        **(more or {}),
    }
    untrained = any((file.parent / UNTRAINED).is_file() for file in files)
    provenance["untrained"] = untrained
    provenance["notes"] = ["untrained: the weights are random, for tests"] * untrained + [note] * bool(note)
    return Embedding(NpyRows(path), provenance)
