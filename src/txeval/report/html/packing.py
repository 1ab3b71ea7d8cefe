"""Numbers and text as parts of an HTML page: small, and never read as markup."""

from __future__ import annotations

import base64
import gzip
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Block", "Packer", "embedded_json", "plain_text"]

#: Code of a missing value in a packed column.
MISSING = 65535


def plain_text(value: object) -> str:
    """Text from data without control characters and lone surrogates; joiners of emoji and scripts stay."""
    return "".join(
        f"\\x{ord(char):02x}" if unicodedata.category(char) in ("Cc", "Cs", "Cn") else char
        for char in str(value).replace("\n", " ")
    )


def embedded_json(data: Any) -> str:
    r"""JSON for a `<script type="application/json">`: `<`, `>`, `&` and the separators U+2028, U+2029 are escaped.

    NaN and infinities become null.
    """
    text = json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if isinstance(data, np.ndarray):
        return _finite(data.tolist())
    if isinstance(data, np.generic):
        return _finite(data.item())
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return data


def _grid(known: npt.NDArray[np.float64]) -> float | None:
    """Step of the even grid that sorted distinct numbers lie on; None where there is none of few enough steps."""
    if len(known) < 2:
        return None
    span, gap = float(known[-1] - known[0]), float(np.diff(known).min())
    if gap < span / MISSING:
        return None
    steps = (known - known[0]) / gap
    if steps[-1] > MISSING - 1 or np.abs(steps - np.rint(steps)).max() > 1e-6:
        return None
    return float(span / np.rint(steps[-1]))


class Block:
    """Columns, each as 16-bit steps from its lowest value."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._columns: list[dict[str, Any]] = []

    def steps(self, name: str, values: npt.ArrayLike, *, digits: int | None = None) -> None:
        """Add numbers; NaN stays missing.

        Numbers on an even grid of up to 65,535 steps, such as shares of 1,000, come back as they are; others within
        (highest - lowest) / 131,068.

        Parameters
        ----------
        digits
            Decimals to round to before.
        """
        numbers = np.asarray(values, dtype=np.float64).ravel()
        if digits is not None:
            numbers = np.round(numbers, digits)
        finite = np.isfinite(numbers)
        known = np.unique(numbers[finite])
        low = float(known[0]) if len(known) else 0.0
        step = _grid(known) or (float(known[-1]) - low if len(known) else 0.0) / (MISSING - 1) or 1.0
        codes = np.full(len(numbers), MISSING, dtype="<u2")
        codes[finite] = np.rint((numbers[finite] - low) / step).astype("<u2")
        self._add(name, codes, low, step)

    def codes(self, name: str, values: npt.ArrayLike) -> None:
        """Add whole numbers from 0 to 65,534; negative ones are missing."""
        numbers = np.asarray(values, dtype=np.int64).ravel()
        if len(numbers) and numbers.max() >= MISSING:
            raise ValueError(f"{name}: {numbers.max()} is too large for 16 bits")
        self._add(name, np.where(numbers < 0, MISSING, numbers).astype("<u2"), 0.0, 1.0)

    def _add(self, name: str, codes: npt.NDArray[Any], offset: float, step: float) -> None:
        self._columns.append({"name": name, "n": len(codes), "offset": offset, "step": step})
        # Low and high bytes apart: the high ones repeat, and then pack well.
        octets = np.frombuffer(codes.tobytes(), dtype=np.uint8).reshape(-1, 2)
        self._parts.append(octets.T.tobytes())

    def packed(self) -> tuple[list[dict[str, Any]], str]:
        """Columns (name, n, offset, step), and all codes as base64 of gzip."""
        content = gzip.compress(b"".join(self._parts), compresslevel=6, mtime=0)
        return self._columns, base64.b64encode(content).decode("ascii")


class Packer:
    """Blocks of one page, each in a script element of its own that is unpacked when it is looked at."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, block: Block) -> dict[str, Any]:
        """Keep a block; what the page's data need to find it again."""
        columns, text = block.packed()
        self.texts.append(text)
        return {"block": len(self.texts) - 1, "columns": columns}

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(map(len, self.texts))

    def elements(self) -> Sequence[str]:
        """Script elements."""
        return [
            f'<script type="application/octet-stream;base64" id="block-{i}">{text}</script>'
            for i, text in enumerate(self.texts)
        ]
