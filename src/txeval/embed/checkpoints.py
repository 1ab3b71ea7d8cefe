"""Files of trained models: found, identified and read without ever running what is in them."""

from __future__ import annotations

import contextlib
import csv
import fnmatch
import hashlib
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch

from txeval.embed.weights import find_weights
from txeval.errors import InputError

__all__ = [
    "UNTRAINED",
    "KeyReport",
    "check_keys",
    "file_digest",
    "find_file",
    "float_values",
    "load_columns",
    "load_json",
    "load_safe_pickle",
    "load_table",
    "load_tensors",
    "tensor_fault",
    "tensor_shape",
    "weights_folder",
    "write_whole",
]

T = TypeVar("T", int, float, str)

#: Name of a file beside random weights: whatever is made with these says that they were never trained.
UNTRAINED = "UNTRAINED.txt"

_DAMAGED = "the file is damaged or was cut short: download it again and compare its size or checksum"
_HOSTILE = (
    "files of trained models hold numbers and names only: do not use this one, and get it from its official source"
)


def weights_folder(given: str, model: str, source: str) -> Path:
    """Folder with the weights of a model: the one given, else where `txeval.embed.weights.find_weights` finds it.

    Raises
    ------
    InputError
        There is no such folder; the message says where the weights come from.
    """
    if given:
        folder = Path(given).expanduser()
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise InputError(f"the weights folder of {model}, {folder}, {what}", remedy=f"weights of {model}: {source}")
        return folder
    return find_weights(model)


def find_file(folder: Path, names: Sequence[str], what: str) -> Path:
    """First file in a folder that has one of several relative names; a name may hold wildcards.

    Raises
    ------
    InputError
        None is there, or a wildcard fits several.
    """
    for name in names:
        if any(mark in name for mark in "*?["):
            hits = sorted(path for path in folder.glob(name) if path.is_file())
            if len(hits) > 1:
                raise InputError(
                    f"{folder}: several files could be {what}: {', '.join(path.name for path in hits)}",
                    remedy="keep one of them in the folder",
                )
            if hits:
                return hits[0]
        elif (folder / name).is_file():
            return folder / name
    try:
        there = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    except OSError:
        there = []
    raise InputError(
        f"{folder}: {what} is missing: looked for {' or '.join(names)}",
        remedy=f"the folder holds: {', '.join(there[:20]) or 'nothing'}",
    )


@lru_cache(maxsize=64)
def _digest(path: str, size: int, changed: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, computed once per process for an unchanged file."""
    state = path.stat()
    return _digest(str(path.resolve()), state.st_size, state.st_mtime_ns)


# ---------------------------------------------------------------------------------------------------
# dictionaries


class _Dtype:
    """Stands for `numpy.dtype` while unpickling: keeps its name and byte order, and does nothing."""

    def __init__(self, name: object = "", *rest: object) -> None:
        self.name = name if isinstance(name, str) else ""
        self.order = "="

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "=", "|"):
            self.order = state[1]


def _scalar(kind: object, data: object = b"") -> int | float:
    """Stand for `numpy.core.multiarray.scalar`: the number in a few bytes."""
    if not isinstance(kind, _Dtype) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("not a number")
    if kind.name not in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        raise pickle.UnpicklingError(f"a value of type {kind.name!r}")
    number: int | float = np.frombuffer(data, np.dtype(f"{kind.order}{kind.name}"), count=1)[0].item()
    return number


def _encode(text: object, encoding: object = "") -> bytes:
    """Stand for `_codecs.encode`, by which old protocols write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("text in a strange encoding")
    return text.encode("latin1")


class _Forbidden(Exception):
    """A pickle asks for something that is neither a container nor a number."""


#: The only names that a pickle may call, and the functions above that are called instead.
_INERT = {
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _encode,
}


class _NumbersOnly(pickle.Unpickler):
    """Reads containers, text and numbers."""

    def find_class(self, module: str, name: str, /) -> Any:
        found = _INERT.get((module, name))
        if found is None:
            raise _Forbidden(f"{module}.{name}")
        return found

    def persistent_load(self, pid: Any, /) -> Any:
        raise _Forbidden(f"persistent object {pid!r}")


def load_safe_pickle(path: Path) -> Any:
    """Read a pickle of dictionaries, lists, text and numbers.

    Raises
    ------
    InputError
        The file is damaged, or would run code: the name it asks for is given, and is never called.
    """
    try:
        return _NumbersOnly(io.BytesIO(path.read_bytes())).load()
    except _Forbidden as why:
        raise InputError(f"{path}: reading it would call {why}", remedy=_HOSTILE) from None
    except OSError as why:
        raise InputError(f"{path}: cannot be read ({why.strerror})", remedy="check the file and its rights") from why
    except MemoryError:
        raise
    # Damaged pickles raise almost anything.
    except Exception as why:
        raise InputError(
            f"{path}: not a whole pickle file ({str(why) or type(why).__name__})", remedy=_DAMAGED
        ) from why


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    InputError
        The file is damaged or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as why:
        raise InputError(f"{path}: cannot be read ({why.strerror})", remedy="check the file and its rights") from why
    except ValueError as why:
        raise InputError(f"{path}: not a whole JSON file ({why})", remedy=_DAMAGED) from why


def load_table(path: Path, kind: type[T]) -> dict[str, T]:
    """Read a dictionary name -> value from a pickle or JSON file.

    Parameters
    ----------
    kind
        int, float or str: what every value has to be.

    Raises
    ------
    InputError
        The file is no such dictionary.
    """
    table = load_json(path) if path.suffix.lower() == ".json" else load_safe_pickle(path)
    if not isinstance(table, dict) or not table:
        raise InputError(f"{path}: not a dictionary but {type(table).__name__}", remedy="this is another file")
    out: dict[str, T] = {}
    for name, value in table.items():
        fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not isinstance(name, str) or not fits:
            raise InputError(
                f"{path}: the entry {name!r}: {str(value)[:60]!r} is not a name with a value of type {kind.__name__}",
                remedy="this is another file, or of another version of the model",
            )
        out[name] = kind(value)
    return out


def load_columns(path: Path, columns: Sequence[str], *, remedy: str) -> Iterator[tuple[str, ...]]:
    """Read some columns of a `.csv` or `.tsv` file, line by line.

    Raises
    ------
    InputError
        The file is missing, is no text, lacks a column, or has a line that is too short.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            head = next(reader, [])
            missing = [name for name in columns if name not in head]
            if missing:
                raise InputError(
                    f"{path}: no column {' or '.join(map(repr, missing))}; it has: {', '.join(head) or 'none'}",
                    remedy=remedy,
                )
            places = [head.index(name) for name in columns]
            for line in reader:
                if line and len(line) <= max(places):
                    raise InputError(f"{path}: line {reader.line_num} is not whole: {','.join(line)}", remedy=_DAMAGED)
                if line:
                    yield tuple(line[place] for place in places)
    except OSError as why:
        raise InputError(f"{path}: cannot be read ({why.strerror})", remedy="check the file and its rights") from why
    except (UnicodeDecodeError, csv.Error) as why:
        raise InputError(f"{path}: not a text file with columns ({why})", remedy=_DAMAGED) from why


# ---------------------------------------------------------------------------------------------------
# tensors


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as why:
        raise InputError(
            f"{path}: reading .safetensors files needs the package safetensors",
            remedy="pip install txeval[geneformer]",
        ) from why
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, RuntimeError) as why:
        raise InputError(f"{path}: not a whole safetensors file ({why})", remedy=_DAMAGED) from why


def _forbidden_global(text: str) -> str:
    """The name that `weights_only` refused, out of torch's message."""
    for mark in ("Unsupported global: GLOBAL ", "Unsupported class ", "GLOBAL "):
        if mark in text:
            return text.split(mark, 1)[1].split()[0].rstrip(".,;")
    return ""


def _number_types() -> list[Any]:
    """Reconstructors of numpy's numbers, such as a stored loss: as harmless as tensors, but unknown to torch."""
    try:
        from numpy._core import multiarray
    except ImportError:
        from numpy.core import multiarray  # type: ignore[no-redef]
    scalar: Any = multiarray.scalar
    kinds = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4")]
    return [np.dtype, *kinds, *((scalar, f"{module}.multiarray.scalar") for module in ("numpy._core", "numpy.core"))]


def _torch_file(path: Path) -> Any:
    allowed: Any = contextlib.nullcontext()
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 6):
        allowed = torch.serialization.safe_globals(_number_types())
    with allowed, warnings.catch_warnings():
        # torch warns of pickle protocols that it then refuses.
        warnings.simplefilter("ignore", UserWarning)
        # Only zip files can be memory-mapped; torch wrote another format before version 1.6.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def load_tensors(path: Path, *, inside: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint: safetensors, or a state dict saved by torch.

    Zip files of torch are memory-mapped: only what is used of them is read.

    Parameters
    ----------
    inside
        Keys under which a checkpoint may hold its state dict, such as `model_state_dict`.

    Raises
    ------
    InputError
        The file is damaged, is no state dict, or would run code (which is never done).
    """
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        found = _torch_file(path)
    except MemoryError:
        raise
    except pickle.UnpicklingError as why:
        name = _forbidden_global(str(why))
        if name:
            raise InputError(f"{path}: reading it would call {name}", remedy=_HOSTILE) from None
        # torch's own text advises to read the file without protection; that advice is not passed on.
        raise InputError(f"{path}: not a whole checkpoint, or not one of numbers only", remedy=_DAMAGED) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, struct.error, AttributeError) as why:
        reason = (str(why).splitlines() or [type(why).__name__])[0]
        raise InputError(f"{path}: not a whole checkpoint ({reason})", remedy=_DAMAGED) from why
    for key in inside:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found or not all(isinstance(value, torch.Tensor) for value in found.values()):
        kinds = sorted({type(value).__name__ for value in found.values()}) if isinstance(found, dict) else []
        raise InputError(
            f"{path}: not a state dict (name -> tensor) but {type(found).__name__}"
            + (f" with {', '.join(map(repr, list(found)[:5]))} of {', '.join(kinds)}" if kinds else ""),
            remedy="this is another file, or of another version of the model",
        )
    return {str(name): value for name, value in found.items()}


#: Types of numbers that weights come in; all are computed with as float32.
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

#: Values that are looked at together when they are checked.
_CHECKED = 1 << 24


def tensor_fault(value: torch.Tensor, shape: Sequence[int] | None = None, *, integer: bool = False) -> str:
    """What keeps a tensor from being the weights that a model wants, or "".

    Weights are float32, float64, float16 or bfloat16 numbers in a dense tensor with values; how its storage is laid
    out, and whether it is shared with another tensor, does not matter.

    Parameters
    ----------
    shape
        Shape that is wanted; None: any.
    integer
        Whether the model wants int64 numbers here, such as a counter.
    """
    if value.is_nested or value.layout != torch.strided:
        return f"is {'nested' if value.is_nested else str(value.layout).removeprefix('torch.')}, not dense"
    if value.is_meta:
        return "is without values (of the device meta)"
    if value.is_quantized:
        return f"is quantised ({str(value.dtype).removeprefix('torch.')})"
    if value.dtype not in ((torch.int64,) if integer else _FLOATS):
        return f"is {str(value.dtype).removeprefix('torch.')}, not {'int64' if integer else 'float32'}"
    if shape is not None and tuple(value.shape) != tuple(shape):
        return f"is {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}, not {tuple(shape)}"
    return ""


def tensor_shape(state: Mapping[str, torch.Tensor], name: str, dimensions: int, *, path: Path) -> tuple[int, ...]:
    """Shape of a tensor from which the sizes of a model are read.

    Raises
    ------
    InputError
        It is missing, no weights, empty, or has another number of dimensions.
    """
    value = state.get(name)
    fault = "is missing" if value is None else tensor_fault(value)
    if value is not None and not fault and (value.ndim != dimensions or not value.numel()):
        fault = f"is {tuple(value.shape)}, not of {dimensions} dimensions above 0"
    if value is None or fault:
        raise InputError(
            f"{path}: these are not the weights of this model; tensor {name} {fault}",
            remedy="the file is of another model or version",
        )
    return tuple(int(size) for size in value.shape)


def float_values(value: torch.Tensor, name: str, *, path: Path, remedy: str = _DAMAGED) -> torch.Tensor:
    """Values of a tensor that `check_keys` has passed, as contiguous float32; no copy where they are.

    Raises
    ------
    InputError
        One of them is not a finite float32 number.
    """
    # Contiguous: products of matrices that are laid out otherwise are rounded otherwise.
    found = value.detach().float().contiguous()
    flat = found.view(-1)
    for low in range(0, flat.numel(), _CHECKED):
        part = flat[low : low + _CHECKED]
        # Minimum and maximum pass NaN on and take no memory.
        if not torch.isfinite(torch.stack(part.aminmax())).all():
            bad = float(part[~torch.isfinite(part)][0])
            raise InputError(f"{path}: tensor {name} holds {bad}, which is not finite", remedy=remedy)
    return found


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that under its name it is either whole or not there.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    # torch reports a write that was cut short as a RuntimeError.
    except (OSError, RuntimeError) as why:
        reason = getattr(why, "strerror", None) or (str(why).splitlines() or [type(why).__name__])[0]
        raise InputError(f"cannot write {path} ({reason})", remedy="free some space or choose another folder") from why
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class KeyReport:
    """What became of the tensors of a checkpoint.

    Attributes
    ----------
    loaded
        Number of tensors used.
    unused
        Tensors of known parts that an embedding does not need.
    unexpected
        Tensors that belong to no known part.
    """

    loaded: int
    unused: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As plain data; unused tensors by the first part of their name."""
        return {
            "loaded": self.loaded,
            "missing": [],
            "unexpected": list(self.unexpected),
            "unused": sorted({name.split(".")[0] for name in self.unused}),
        }


def check_keys(
    state: Mapping[str, torch.Tensor],
    wanted: Mapping[str, Iterable[int]],
    *,
    path: Path,
    unused: Sequence[str] = (),
    hint: str = "",
) -> KeyReport:
    """Compare the tensors of a checkpoint with those the model wants.

    Parameters
    ----------
    wanted
        Name -> shape of every tensor that the model needs.
    unused
        Patterns (`decoder.*`) of tensors that belong to the model but are not needed.

    Raises
    ------
    InputError
        A tensor is missing, has another shape or holds no floating-point weights (see `tensor_fault`), or a tensor
        nobody expects lies in a part that is used: the computation would then not be the model's. Foreign tensors
        elsewhere are reported. Values are checked where they are read: `float_values`.
    """
    shapes = {name: tuple(int(size) for size in shape) for name, shape in wanted.items()}
    missing = [name for name in shapes if name not in state]
    # A tensor of the wrong kind may have no shape to speak of.
    wrong = {name: tensor_fault(state[name]) for name in shapes if name in state}
    kind = [f"{name} {fault}" for name, fault in wrong.items() if fault]
    other = [
        f"{name} {fault}"
        for name, shape in shapes.items()
        if not wrong.get(name, "missing") and (fault := tensor_fault(state[name], shape))
    ]
    parts = {name.split(".")[0] for name in shapes}
    known = [name for name in state if name not in shapes and any(fnmatch.fnmatchcase(name, p) for p in unused)]
    rest = [name for name in state if name not in shapes and name not in set(known)]
    inside = [name for name in rest if name.split(".")[0] in parts]
    problems = []
    for what, names in (
        ("missing", missing),
        ("of another kind", kind),
        ("of another shape", other),
        ("unexpected", inside),
    ):
        if names:
            problems.append(f"{len(names)} {what}: {', '.join(names[:5])}" + (", ..." if len(names) > 5 else ""))
    if problems:
        raise InputError(
            f"{path}: these are not the weights of this model; tensors {'; '.join(problems)}",
            remedy=hint or "the file is of another model or version",
        )
    return KeyReport(len(shapes), tuple(known), tuple(name for name in rest if name.split(".")[0] not in parts))
