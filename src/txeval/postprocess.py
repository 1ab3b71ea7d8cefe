"""Post-processing of embeddings: fitted on the controls, applied to every sample on the fly.

Every choice is an affine map per batch, so nothing post-processed is ever stored: `fit` keeps the maps, and
`PostProcessed` hands out mapped rows.
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from txeval.compute.arrays import BLOCK_ELEMENTS, F32, F64, Bools, Ints, Rows, row_blocks, take_rows
from txeval.compute.jit import jit
from txeval.compute.memory import held_array, is_mapped, release
from txeval.compute.moments import GroupMoments, group_moments
from txeval.compute.products import ROWS, WIDTH, multiply, pack, panel_count, product
from txeval.compute.spread import no_spread
from txeval.errors import InputError, NotComputable, unknown

__all__ = ["POST_PROCESSINGS", "Fitted", "PostProcessed", "center_scaling", "centering", "fit", "map_bytes", "tvn"]

#: Names of the post-processings, in the order of the paper.
POST_PROCESSINGS: tuple[str, ...] = ("raw", "centering", "center_scaling", "tvn")

_FORMAT = 2
_EPS32 = float(np.finfo(np.float32).eps)

#: Up to this size the maps of all batches are kept, and multiplied with, in float64.
_FLOAT64_MAP_BYTES = 256_000_000

#: Larger ones are float32 where that changes whitened controls by at most this (root mean square), their deviation
#: being 1. Values of an embedding are rounded to float32 in the first place, and whitening amplifies that too: this is
#: a few times what is lost in any case.
_ROUNDING = 1e-5

#: Controls that it is measured on.
_SAMPLE = 1024

#: Values of controls that are read, and whose products are summed, at a time.
_SUMMED_ELEMENTS = 2**18

#: Above this size, that of a block of rows, maps lie in a file and are read batch by batch.
_HELD_BYTES = 4 * BLOCK_ELEMENTS

#: float64 values of the rows of one batch that are mapped together: they stay in a core's cache.
_GROUP_ELEMENTS = 2**17

#: Arrays that may be large.
_MAPS = ("matrices", "factors")

_ARRAYS = ("fallback_batches", "center", "scale", "base", "matrices", "factors", "first_factor", "matrix_of")


def map_bytes(n_batches: int, d: int) -> int:
    """Bytes of memory that the maps of `tvn` take at most."""
    return min(n_batches * panel_count(d) * WIDTH * d * 8, _HELD_BYTES)


def _none() -> npt.NDArray[Any]:
    return np.zeros(0)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted post-processing: one affine map per batch.

    `raw`: y = x. `centering`, `center_scaling`: y = (x - center_b) * scale_b. `tvn`: y = (x - center) M_b,
    where M_b is stored as it is or, for batches with few controls, as base (I - F_b^T F_b) / sqrt(shrinkage):
    with fewer controls than half the features, their covariance has so low a rank that the factor is
    smaller than the matrix.

    Attributes
    ----------
    name
        One of `POST_PROCESSINGS`.
    n_features, n_batches, n_controls
        Sizes of what it was fitted on.
    params
        `coral` and `shrinkage` for `tvn`.
    fallback_batches
        Codes of the batches with too few controls, which got the statistics of all controls.
    center, scale
        (n_batches, d) float64, or (1, d) for `tvn`; `scale` is empty where there is none.
    base
        (d, d) float64: scaling, rotation and whitening by all controls.
    matrices
        (k, panels, d, WIDTH) whole maps M_b, packed as `txeval.compute.products` does, in the type that rows are
        multiplied in: float64, or float32 where they are large and rounding is harmless (see `_ROUNDING`). Above the
        size of a block they lie in a file, and so do factors.
    factors, first_factor
        (r, d), likewise; batch b has rows first_factor[b] to first_factor[b + 1].
    matrix_of
        (n_batches,) number of a batch's matrix, -1 where it has factors.
    """

    name: str
    n_features: int
    n_batches: int
    n_controls: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    fallback_batches: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    center: F64 = field(default_factory=_none)
    scale: F64 = field(default_factory=_none)
    base: F64 = field(default_factory=_none)
    matrices: npt.NDArray[np.floating[Any]] = field(default_factory=_none)
    factors: npt.NDArray[np.floating[Any]] = field(default_factory=_none)
    first_factor: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    matrix_of: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that determines the result of `apply`."""
        digest = hashlib.sha256(repr(self._header()).encode())
        for name in _ARRAYS:
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return digest.hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of memory that its maps take."""
        arrays = (getattr(self, name) for name in _ARRAYS)
        return sum(int(array.nbytes) for array in arrays if not is_mapped(array))

    @cached_property
    def _base_panels(self) -> npt.NDArray[np.floating[Any]]:
        return pack(self.base, self.matrices.dtype)

    def _header(self) -> tuple[Any, ...]:
        sizes = (self.n_features, self.n_batches, self.n_controls)
        return (_FORMAT, self.name, *sizes, *sorted(self.params.items()))

    def apply(self, block: npt.NDArray[Any], batch_codes: Ints) -> F32:
        """Map rows (m, d) of the batches (m,) to post-processed float32 rows (m, d); `raw` may return its input."""
        x = np.ascontiguousarray(block, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise InputError(f"rows of shape {x.shape} for a post-processing of {self.n_features} features")
        if self.name == "raw":
            return x
        codes = np.ascontiguousarray(batch_codes, dtype=np.int64)
        if len(codes) != len(x):
            raise InputError(f"{len(codes)} batch labels for {len(x)} rows")
        if len(codes) and (codes.min() < 0 or codes.max() >= self.n_batches):
            raise InputError(f"a batch code is outside 0 .. {self.n_batches - 1}")
        out = np.empty_like(x)
        if self.name != "tvn":
            _shift_and_scale(x, codes, self.center, self.scale, out)
            return out
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=self.n_batches))
        step = max(1, _GROUP_ELEMENTS // (self.n_features * ROWS)) * ROWS
        for batch in np.unique(codes):
            start, end = int(ends[batch - 1]) if batch else 0, int(ends[batch])
            for first in range(start, end, step):
                rows = order[first : min(first + step, end)]
                centred = np.empty((len(rows), self.n_features), dtype=self.matrices.dtype)
                _centre(x, rows, self.center[0], centred)
                _put(self._map(centred, int(batch)), rows, out)
            self._release(int(batch))
        return out

    def _map(self, centred: npt.NDArray[np.floating[Any]], batch: int) -> npt.NDArray[np.floating[Any]]:
        """Centred rows (m, d) of one batch, mapped by `tvn`."""
        number = int(self.matrix_of[batch])
        if number >= 0:
            return multiply(centred, self.matrices[number], self.n_features)
        factor = self._factor(batch)
        whitened = multiply(centred, self._base_panels, self.n_features)
        whitened -= product(product(whitened, factor.T), factor)
        whitened /= whitened.dtype.type(np.sqrt(self.params["shrinkage"]))
        return whitened

    def _factor(self, batch: int) -> npt.NDArray[np.floating[Any]]:
        return self.factors[self.first_factor[batch] : self.first_factor[batch + 1]]

    def _release(self, batch: int) -> None:
        """Give the memory of a batch's map back where it lies in a file."""
        number = int(self.matrix_of[batch])
        release(self.matrices[number] if number >= 0 else self._factor(batch))

    def save(self, path: str | Path) -> None:
        """Write it as an .npz file, atomically."""
        path = Path(path)
        arrays: dict[str, Any] = {
            "format": np.int64(_FORMAT),
            "name": np.str_(self.name),
            "sizes": np.array([self.n_features, self.n_batches, self.n_controls], dtype=np.int64),
            "coral": np.bool_(self.params.get("coral", False)),
            "shrinkage": np.float64(self.params.get("shrinkage", np.nan)),
        }
        arrays |= {name: getattr(self, name) for name in _ARRAYS}
        partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:12]}.partial")
        try:
            with partial.open("wb") as handle:
                _write(handle, arrays)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Fitted:
        """Read what `save` wrote, large maps when they are used; InputError where the file is something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                if int(file["format"]) != _FORMAT:
                    raise KeyError("format")
                name = str(file["name"])
                n_features, n_batches, n_controls = (int(size) for size in file["sizes"])
                params = {"coral": bool(file["coral"]), "shrinkage": float(file["shrinkage"])} if name == "tvn" else {}
                arrays = {key: file[key] for key in _ARRAYS if key not in _MAPS}
                arrays |= {key: mapped if (mapped := _mapped(path, key)) is not None else file[key] for key in _MAPS}
        except (OSError, KeyError, ValueError, EOFError, struct.error, zipfile.BadZipFile) as why:
            raise InputError(f"{path} holds no fitted post-processing ({why})", remedy="delete it") from None
        return cls(name, n_features, n_batches, n_controls, params, **arrays)


#: A local header of a zip file: its fixed part, whose last numbers are the lengths of what follows, and what says that
#: a member may be larger than 4 GiB.
_HEADER, _LARGE_MEMBER = struct.Struct("<26xHH"), 20

#: Values begin at a multiple of this in the file, so that they can be mapped.
_ALIGNED = 64


def _write(handle: IO[bytes], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write what `numpy.savez` writes, with the values of every array at a multiple of `_ALIGNED`."""
    with zipfile.ZipFile(handle, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            start = handle.tell() + _HEADER.size + len(member.filename) + _LARGE_MEMBER + 4
            fill = -start % _ALIGNED
            # A field of a kind that no reader knows.
            member.extra = struct.pack("<HH", 0xFFFF, fill) + bytes(fill)
            with archive.open(member, "w", force_zip64=True) as out:
                np.lib.format.write_array(out, np.asarray(array), allow_pickle=False)


def _mapped(path: str | Path, name: str) -> npt.NDArray[Any] | None:
    """An array of a file that `_write` wrote, mapped; None where it is not large."""
    with zipfile.ZipFile(path) as archive, Path(path).open("rb") as handle:
        member = archive.getinfo(f"{name}.npy")
        if member.file_size <= _HELD_BYTES or member.compress_type != zipfile.ZIP_STORED:
            return None
        handle.seek(member.header_offset)
        handle.seek(sum(_HEADER.unpack(handle.read(_HEADER.size))), os.SEEK_CUR)
        np.lib.format.read_magic(handle)
        shape, _, dtype = np.lib.format.read_array_header_1_0(handle)
        return np.asarray(np.memmap(path, dtype=dtype, mode="r", offset=handle.tell(), shape=shape))


@jit
def _centre(x: Any, rows: Any, center: Any, out: Any) -> None:
    for i in range(len(rows)):
        for j in range(x.shape[1]):
            out[i, j] = np.float64(x[rows[i], j]) - center[j]


@jit
def _put(values: Any, rows: Any, out: Any) -> None:
    for i in range(len(rows)):
        for j in range(values.shape[1]):
            out[rows[i], j] = values[i, j]


@jit
def _shift_and_scale(x: Any, codes: Any, center: Any, scale: Any, out: Any) -> None:
    # In float64, since the difference of two large float32 values keeps few digits.
    scaled = scale.shape[0] > 0
    for i in range(x.shape[0]):
        b = codes[i]
        if scaled:
            for j in range(x.shape[1]):
                out[i, j] = (x[i, j] - center[b, j]) * scale[b, j]
        else:
            for j in range(x.shape[1]):
                out[i, j] = x[i, j] - center[b, j]


@dataclass(frozen=True)
class PostProcessed:
    """Rows of an embedding, post-processed as they are read.

    Attributes
    ----------
    values
        (n, d) embedding.
    fitted
        The maps.
    batch_codes
        (n,) batch of each row.
    """

    values: Rows
    fitted: Fitted
    batch_codes: Ints

    def __post_init__(self) -> None:
        if len(self.batch_codes) != self.values.shape[0]:
            raise InputError(f"{len(self.batch_codes)} batch labels for {self.values.shape[0]} samples")

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        n, d = self.values.shape
        return int(n), int(d)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> F32:
        """Post-processed rows of a slice or of an array of row numbers, (m, d) float32."""
        return self.fitted.apply(take_rows(self.values, rows), self.batch_codes[rows])


def fit(
    name: str,
    X: Rows,
    is_control: Bools,
    batch_codes: Ints,
    n_batches: int,
    *,
    coral: bool = True,
    shrinkage: float = 0.5,
    max_elements: int | None = None,
) -> Fitted:
    """Fit a post-processing on the controls of an embedding, reading them by blocks.

    Parameters
    ----------
    name
        One of `POST_PROCESSINGS`.
    X
        (n, d) embedding.
    is_control
        (n,) bool.
    batch_codes
        (n,) batch 0 .. n_batches - 1 of each sample.
    coral
        `tvn`: whether to align the covariance of each batch's controls.
    shrinkage
        `tvn`: what is added to the diagonal of these covariances, above 0.
    max_elements
        Bound on the values of one block.

    Raises
    ------
    NotComputable
        Where there is no control, or just one where a deviation is needed.
    InputError
        For an unknown name, arrays that do not fit together, or controls with NaN or infinite values.
    """
    if name not in POST_PROCESSINGS:
        raise unknown("post-processing", name, POST_PROCESSINGS)
    n, d = (int(size) for size in X.shape)
    is_control = _as_bools(is_control, n)
    codes = np.asarray(batch_codes, dtype=np.int64)
    if codes.shape != (n,):
        raise InputError(f"{codes.size} batch labels for {n} samples")
    if n and (codes.min() < 0 or codes.max() >= n_batches):
        raise InputError(f"a batch code is outside 0 .. {n_batches - 1}")
    params = {"coral": bool(coral), "shrinkage": float(shrinkage)} if name == "tvn" else {}
    if name == "raw":
        return Fitted(name, d, n_batches, int(is_control.sum()))
    if name == "tvn" and coral and not (np.isfinite(shrinkage) and shrinkage > 0):
        raise InputError(f"shrinkage is {shrinkage!r}", remedy="use a number above 0, such as the default 0.5")

    controls = np.flatnonzero(is_control)
    # By batch, and within a batch in the order of the file.
    controls = controls[np.argsort(codes[controls], kind="stable")]
    needed = 1 if name == "centering" else 2
    if len(controls) < needed:
        raise NotComputable(f"{name} is fitted on controls: {len(controls)} there, at least {needed} needed")
    at_once = min(max_elements or BLOCK_ELEMENTS, _SUMMED_ELEMENTS)
    moments = group_moments(X, controls, codes[controls], n_batches, max_elements=at_once)
    if not (np.isfinite(moments.mean).all() and np.isfinite(moments.squares).all()):
        raise InputError("the embedding of the controls holds NaN or infinite values", remedy="remove or fill them")
    present = np.bincount(codes, minlength=n_batches) > 0
    few = moments.count < needed
    common: dict[str, Any] = {
        "name": name,
        "n_features": d,
        "n_batches": n_batches,
        "n_controls": len(controls),
        "params": params,
    }
    if name != "tvn":
        _, mean, squares = moments.pooled()
        center = np.where(few[:, None], mean, moments.mean)
        scale = np.zeros((0, d))
        if name == "center_scaling":
            count = np.maximum(moments.count, 1)[:, None]
            deviation = np.sqrt(np.where(few[:, None], squares / len(controls), moments.squares / count))
            scale = 1.0 / _or_one(deviation, center)
        return Fitted(**common, fallback_batches=np.flatnonzero(few & present), center=center, scale=scale)
    whitening = _whitening(X, controls, moments, at_once)
    if not coral:
        maps: dict[str, Any] = {
            "matrices": pack(whitening.base)[None],
            "matrix_of": np.zeros(n_batches, dtype=np.int64),
        }
        return Fitted(**common, center=whitening.mean[None], **maps)
    aligned = _coral(X, controls, moments, whitening, shrinkage, at_once)
    return Fitted(**common, fallback_batches=np.flatnonzero(few & present), center=whitening.mean[None], **aligned)


def _or_one(deviation: F64, mean: F64) -> F64:
    """Deviations with 1 for those that float32 values of this mean cannot tell from zero."""
    return np.where(no_spread(deviation, mean), 1.0, deviation)


@dataclass(frozen=True)
class _Whitening:
    mean: F64
    base: F64
    #: (d,) variance (ddof 0) of the controls along each whitened axis: 1, or about 0.
    variance: F64


def _whitening(X: Rows, controls: Ints, moments: GroupMoments, at_once: int) -> _Whitening:
    """z-score, rotation to principal components and second z-score of all controls, as one matrix."""
    n, mean, squares = moments.pooled()
    d = len(mean)
    deviation = _or_one(np.sqrt(squares / n), mean)
    correlation = np.zeros((d, d))
    for part in row_blocks(n, d, at_once):
        z = (take_rows(X, controls[part]).astype(np.float64) - mean) / deviation
        correlation += product(z.T, z)
    variances, axes = np.linalg.eigh(correlation / n)
    variances, axes = np.maximum(variances[::-1], 0.0), axes[:, ::-1]
    # The sign of an axis is free: its largest loading is made positive.
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(d)] < 0, -1.0, 1.0)
    # Below this the spread along an axis is the rounding of float32 values (d features, deviation 1 each).
    empty = variances <= d * _EPS32**2 * max(float(variances[0]), 1.0)
    spread = np.where(empty, 1.0, np.sqrt(variances))
    return _Whitening(mean, axes / deviation[:, None] / spread, variances / spread**2)


def _coral(
    X: Rows,
    controls: Ints,
    moments: GroupMoments,
    whitening: _Whitening,
    shrinkage: float,
    at_once: int,
) -> dict[str, Any]:
    """Per batch (C_b + shrinkage I)^(-1/2), C_b the covariance (ddof 1) of its whitened controls.

    One batch is read at a time: neither B scatter matrices in memory nor differences of large moments.
    """
    n_batches, d = moments.mean.shape
    base, panels = whitening.base, pack(whitening.base)
    n = len(controls)
    few = moments.count < 2
    # With so few controls the factor is no larger than the matrix, and the batch keeps it.
    factored = ~few & (2 * moments.count <= d)
    matrix_of = np.where(factored, -1, np.cumsum(~factored & ~few) - 1 + few.any())
    matrix_of[few] = 0
    first_factor = np.concatenate([[0], np.cumsum(np.where(factored, moments.count, 0))])
    size = n_batches * panel_count(d) * WIDTH * d * 8
    # A batch's root amplifies rounding by at most 1 / sqrt(shrinkage).
    harmless = size > _FLOAT64_MAP_BYTES and _rounding(X, controls, whitening, panels) <= _ROUNDING * np.sqrt(shrinkage)
    dtype = np.float32 if harmless else np.float64
    n_matrices = int(few.any()) + int((~factored & ~few).sum())
    matrices = held_array((n_matrices, panel_count(d), d, WIDTH), dtype, _HELD_BYTES)
    factors = held_array((int(first_factor[-1]), d), dtype, _HELD_BYTES)
    if few.any():
        # Whitened controls are uncorrelated, so that the covariance of all is diagonal.
        matrices[0] = pack(base / np.sqrt(whitening.variance * n / (n - 1) + shrinkage))
    ends = np.cumsum(moments.count)
    for batch in np.flatnonzero(~few):
        m = int(moments.count[batch])
        rows = controls[ends[batch] - m : ends[batch]]
        if factored[batch]:
            place = factors[first_factor[batch] : first_factor[batch + 1]]
            white = _whitened(X, rows, moments.mean[batch], panels)
            place[:] = _root_factor(white / np.sqrt(m - 1), shrinkage)
        else:
            place = matrices[matrix_of[batch]]
            place[:] = pack(_aligned(X, rows, moments.mean[batch], base, panels, shrinkage, at_once))
        release(place)
    return {
        "base": base,
        "matrices": matrices,
        "factors": factors,
        "first_factor": first_factor,
        "matrix_of": matrix_of,
    }


def _aligned(
    X: Rows,
    rows: Ints,
    mean: F64,
    base: F64,
    panels: npt.NDArray[Any],
    shrinkage: float,
    at_once: int,
) -> F64:
    """Whitening and alignment of one batch as a matrix, from the rows of its controls."""
    m, d = len(rows), len(mean)
    if m <= d:
        factor = _root_factor(_whitened(X, rows, mean, panels) / np.sqrt(m - 1), shrinkage)
        return np.asarray((base - product(product(base, factor.T), factor)) / np.sqrt(shrinkage), dtype=np.float64)
    # In functions of their own, which give the memory of what lies between back.
    root = _inverse_root(_covariance(X, rows, mean, panels, at_once), shrinkage)
    return np.asarray(product(base, root), dtype=np.float64)


def _covariance(X: Rows, rows: Ints, mean: F64, panels: npt.NDArray[Any], at_once: int) -> F64:
    """Of whitened rows (ddof 1)."""
    m, d = len(rows), len(mean)
    out = np.zeros((d, d))
    for part in row_blocks(m, d, at_once):
        white = _whitened(X, rows[part], mean, panels)
        out += product(white.T, white)
    out /= m - 1
    return out


def _inverse_root(covariance: F64, shrinkage: float) -> F64:
    """(C + s I)^(-1/2) of a covariance matrix C."""
    variances, axes = np.linalg.eigh(covariance)
    half = axes / np.sqrt(np.sqrt(np.maximum(variances, 0.0) + shrinkage))
    return np.asarray(half @ half.T, dtype=np.float64)


def _rounding(X: Rows, controls: Ints, whitening: _Whitening, panels: npt.NDArray[Any]) -> float:
    """Root mean square of what products in float32 change whitened controls by.

    It is measured, since it depends on more than the ratio of the largest to the smallest deviation along an axis: on
    how many axes are short, and on the order of the features.
    """
    rows = controls[:: -(-len(controls) // _SAMPLE)]
    d = len(whitening.mean)
    short = pack(whitening.base, np.float32)
    total = 0.0
    for part in row_blocks(len(rows), d, _GROUP_ELEMENTS):
        centred = _centred(X, rows[part], whitening.mean)
        rounded = multiply(centred.astype(np.float32), short, d)
        total += float(np.sum((rounded - multiply(centred, panels, d)) ** 2))
    return float(np.sqrt(total / (len(rows) * d)))


def _centred(X: Rows, rows: Ints, mean: F64) -> F64:
    """Rows less a mean."""
    x = take_rows(X, rows)
    out = np.empty(x.shape)
    _centre(x, np.arange(len(x)), mean, out)
    return out


def _whitened(X: Rows, rows: Ints, mean: F64, panels: npt.NDArray[Any]) -> F64:
    """Rows less a mean, in the axes of the whitening."""
    return np.asarray(multiply(_centred(X, rows, mean), panels, len(mean)), dtype=np.float64)


def _root_factor(white: F64, shrinkage: float) -> F64:
    """F (m, d) with (white^T white + s I)^(-1/2) = (I - F^T F) / sqrt(s), from the m x m Gram matrix.

    For an eigenvalue l of the Gram matrix, (1/sqrt(s) - 1/sqrt(l + s)) / l = 1 / (a b (a + b)) with a = sqrt(l + s) and
    b = sqrt(s), which is regular at l = 0.
    """
    variances, axes = np.linalg.eigh(white @ white.T)
    a, b = np.sqrt(np.maximum(variances, 0.0) + shrinkage), np.sqrt(shrinkage)
    return np.asarray(product((axes / np.sqrt(a * (a + b))).T, white), dtype=np.float64)


def centering(X: npt.ArrayLike, is_control: npt.ArrayLike, batch: npt.ArrayLike) -> F32:
    """Subtract from every sample the mean of its batch's controls.

    Parameters
    ----------
    X
        (n, d) embedding.
    is_control
        (n,) bool.
    batch
        (n,) labels.

    Returns
    -------
    (n, d) float32. A batch without controls gets the mean of all controls.

    Raises
    ------
    NotComputable
        Where there is no control.
    InputError
        Where shapes do not fit or a value is NaN or infinite.

    Examples
    --------
    >>> centering([[1.0], [3.0], [9.0]], [True, False, True], ["a", "a", "b"]).ravel().tolist()
    [0.0, 2.0, 0.0]
    """
    return _on_arrays("centering", X, is_control, batch)


def center_scaling(X: npt.ArrayLike, is_control: npt.ArrayLike, batch: npt.ArrayLike) -> F32:
    """z-score every sample with mean and population standard deviation of its batch's controls.

    Parameters and errors as in `centering`; two controls are needed in all. A feature with zero deviation is divided
    by 1, a batch with fewer than two controls gets the mean and deviation of all controls.

    Returns
    -------
    (n, d) float32.
    """
    return _on_arrays("center_scaling", X, is_control, batch)


def tvn(
    X: npt.ArrayLike,
    is_control: npt.ArrayLike,
    batch: npt.ArrayLike,
    *,
    coral: bool = True,
    shrinkage: float = 0.5,
) -> F32:
    """Typical Variation Normalization (Ando et al. 2017; with CORAL as in EFAAR, Celik et al. 2024).

    z-score on all controls, rotate to the principal components of the controls, z-score again on the controls, then per
    batch multiply by (C_b + shrinkage I)^(-1/2), C_b the covariance (ddof 1) of that batch's transformed controls.

    Parameters and errors as in `center_scaling`, and:

    coral
        False leaves out the step per batch.
    shrinkage
        Above 0.

    Returns
    -------
    (n, d) float32; the sign of an axis before the last step is free (largest loading positive). A batch with fewer than
    two controls gets C of all controls. An axis along which the controls do not vary is divided by 1.
    """
    return _on_arrays("tvn", X, is_control, batch, coral=coral, shrinkage=shrinkage)


def _on_arrays(name: str, X: npt.ArrayLike, is_control: npt.ArrayLike, batch: npt.ArrayLike, **params: Any) -> F32:
    values = np.asarray(X)
    if values.ndim != 2 or values.shape[1] == 0:
        raise InputError(f"an embedding of shape {values.shape}", remedy="give an array (n, d) with d >= 1")
    if values.dtype.kind not in "fiu":
        raise InputError(f"an embedding of type {values.dtype}", remedy="give real numbers")
    for part in row_blocks(*values.shape):
        bad = np.argwhere(~np.isfinite(values[part]))
        if len(bad):
            row, column = int(bad[0, 0]) + part.start, int(bad[0, 1])
            raise InputError(f"the embedding is {values[row, column]} in row {row}, column {column}", remedy="fill it")
    labels = np.asarray(batch)
    if labels.shape != (len(values),):
        raise InputError(f"batch labels of shape {labels.shape} for {len(values)} samples")
    if pd.isna(labels).any():
        raise InputError(f"{int(pd.isna(labels).sum())} batch labels are missing", remedy="give every sample a batch")
    batches, codes = np.unique(labels.astype(str) if labels.dtype == object else labels, return_inverse=True)
    fitted = fit(name, values, _as_bools(is_control, len(values)), codes, len(batches), **params)
    return fitted.apply(values.astype(np.float32, copy=False), codes)


def _as_bools(is_control: npt.ArrayLike, n: int) -> Bools:
    flags = np.asarray(is_control)
    if flags.shape != (n,):
        raise InputError(f"control flags of shape {flags.shape} for {n} samples")
    if flags.dtype != np.bool_:
        if flags.dtype.kind not in "iu" or not np.isin(flags, (0, 1)).all():
            raise InputError(
                f"control flags of type {flags.dtype}", remedy="give True for controls and False for others"
            )
        flags = flags.astype(np.bool_)
    return flags
