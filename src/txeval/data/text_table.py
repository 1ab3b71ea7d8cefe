"""Tables as text: CSV, TSV and their kin, as spreadsheets, R and pandas write them.

One reader for embeddings and labels (relationships only find their separator here). It finds separator, decimal sign
and a header without a heading for the row names, and refuses a file whose lines disagree with its header.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from txeval.compute.arrays import Strings
from txeval.errors import InputError

__all__ = ["TextTable", "check_headings", "find_separator", "identifier_text", "names_column", "open_table"]

#: Lines that separator and decimal sign are found from.
_LOOKED_AT = 50

_COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
_POINT_NUMBER = re.compile(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?")
_IDENTIFIER = re.compile(
    r"unnamed:? ?0|index|id|names?|(?:cell|sample|obs|barcode|well|row|inst)s?(?:[ _.-]?(?:ids?|names?|index|key))?",
    re.IGNORECASE,
)
_CUT = "write the table again: every line needs as many fields as the header"


@dataclass(frozen=True)
class TextTable:
    """A table of text with a header, checked line by line.

    Attributes
    ----------
    separator, decimal
        As found: "," "\\t" ";" or " ", and "." or ",".
    fields
        Headings, distinct; "" for row names without one.
    n
        Lines below the header.
    """

    path: Path
    separator: str
    decimal: str
    fields: tuple[str, ...]
    n: int

    def column(self, number: int) -> Strings:
        """(n,) texts of a column as they are in the file."""
        return np.asarray(self._read(usecols=[number], dtype=str, keep_default_na=False)[number], dtype=object)

    def head(self) -> pd.DataFrame:
        """The first 1,000 lines as text."""
        return pd.DataFrame(self._read(nrows=1000, dtype=str, keep_default_na=False))

    def frame(self, *, text: Sequence[int] = ()) -> pd.DataFrame:
        """All of it; columns are numbers where all of their values are, but those of `text`."""
        kinds = dict.fromkeys(text, str)
        found = self._read(dtype=kinds, keep_default_na=False, na_values=[""], low_memory=False)
        return pd.DataFrame(found).set_axis(list(self.fields), axis=1)

    def numbers(self, columns: Sequence[int], rows: int) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
        """Blocks of `rows` lines of some columns, (m, k) float64.

        Raises
        ------
        InputError
            For a field that is no number, with its line.
        """
        start = 0
        for chunk in self._read(usecols=list(columns), chunksize=rows, low_memory=False):
            for number in columns:
                self._check_numbers(chunk[number], self.fields[number], start)
            yield chunk[list(columns)].to_numpy(dtype=np.float64)
            start += len(chunk)

    def _check_numbers(self, values: pd.Series[Any], name: str, start: int) -> None:
        if pd.api.types.is_numeric_dtype(values.dtype):
            return
        wrong = np.flatnonzero((pd.to_numeric(values, errors="coerce").isna() & values.notna()).to_numpy())
        if len(wrong):
            row = int(wrong[0])
            raise InputError(
                f"{self.path}: column {name!r} holds {values.iloc[row]!r} in data row {start + row + 1}, which is no"
                " number",
                remedy=f"repair it, or if the column holds the sample names: {self.path}@names={name}",
            )

    def _read(self, **how: Any) -> Any:
        try:
            return pd.read_csv(
                self.path,
                sep=self.separator,
                decimal=self.decimal,
                header=None,
                names=range(len(self.fields)),
                skiprows=_lines_before(self.path),
                encoding="utf-8-sig",
                compression="gzip" if _is_packed(self.path) else None,
                index_col=False,
                **how,
            )
        except (ValueError, OSError, EOFError, zlib.error) as why:
            raise InputError(f"{self.path}: cannot be read as a table ({_reason(why)})", remedy=_CUT) from None


def _reason(why: Exception) -> str:
    return " ".join(str(why).split()) or type(why).__name__


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix.lower() == ".gz" or file.read(2) == b"\x1f\x8b"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    try:
        with gzip.open(path) if _is_packed(path) else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as why:
                    raise InputError(
                        f"{path}: line {number:,} is not UTF-8 text (byte 0x{line[why.start]:02x})",
                        remedy="save the table as UTF-8",
                    ) from None
                if "\0" in text:
                    raise InputError(f"{path}: line {number:,} holds a null character", remedy="it is no text file")
                if text.strip():
                    yield number, text
    except (OSError, EOFError, zlib.error) as why:
        raise InputError(f"{path}: cannot be read as a table ({_reason(why)})", remedy="copy it again") from None


def _lines_before(path: Path) -> int:
    """Lines up to the header, blank ones included."""
    return next((number for number, _ in _lines(path)), 0)


def _fields(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator)) if '"' in line else line.split(separator)


def find_separator(lines: Sequence[str]) -> str:
    """What separates the fields of a table: what splits its lines into equally many, the header perhaps one less."""

    def score(separator: str) -> tuple[bool, int]:
        counts = [len(_fields(line, separator)) for line in lines]
        below = counts[1:] or counts[:1]
        return len(set(below)) == 1 and 0 <= below[0] - counts[0] <= 1 and below[0] > 1, counts[0]

    return max(("\t", ";", ",", " "), key=score)


def open_table(path: Path) -> TextTable:
    """Open a table and compare every line with its header.

    Raises
    ------
    InputError
        The file is empty, is no UTF-8 text, has no header, two headings of one name, or a line with more or fewer
        fields than the header says.
    """
    lines = _lines(path)
    some = list(itertools.islice(lines, _LOOKED_AT))
    if not some:
        raise InputError(f"{path}: the file is empty", remedy="give a header line and a line for each sample")
    separator = find_separator([text for _, text in some])
    header = [field.strip() for field in _fields(some[0][1], separator)]
    rows = [(number, _fields(text, separator)) for number, text in some[1:]]
    if rows and len(rows[0][1]) == len(header) + 1:
        # R's write.table gives row names no heading.
        header = ["", *header]
    width = len(header)
    n = 0
    for number, text in itertools.chain(some[1:], lines):
        found = len(_fields(text, separator)) if '"' in text else text.count(separator) + 1
        if found != width:
            raise InputError(
                f"{path}: line {number:,} has {found:,} fields, and the header {width:,} (separated by {separator!r})",
                remedy=_CUT,
            )
        n += 1
    if width > 1 and all(_POINT_NUMBER.fullmatch(name) for name in header[1:]):
        raise InputError(
            f"{path}: its first line holds numbers ({', '.join(header[:3])}), no headings",
            remedy="put a header line on top",
        )
    check_headings(header, path)
    cells = [field.strip() for _, fields in rows for field in fields]
    decimal = "."
    if separator != "," and any(map(_COMMA_NUMBER.fullmatch, cells)) and not any(map(_POINT_NUMBER.fullmatch, cells)):
        decimal = ","
    return TextTable(path, separator, decimal, tuple(header), n)


def check_headings(fields: Sequence[str], path: Path) -> None:
    """Raise InputError where two columns have the same heading."""
    name, count = Counter(fields).most_common(1)[0] if fields else ("", 0)
    if count > 1:
        raise InputError(f"{path}: {count} columns are called {name!r}", remedy="rename them")


def identifier_text(value: Any) -> str:
    """A sample name as text, whatever type it was stored in: 100000, 100000.0 and "100000" are one name.

    Examples
    --------
    >>> identifier_text(7.0), identifier_text(b"c1"), identifier_text("007")
    ('7', 'c1', '007')
    """
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def names_column(head: pd.DataFrame, fields: Sequence[str], known: pd.Index[Any], path: Path) -> int | None:
    """Number of the column that holds the samples' names: that whose values are names of `known`, whatever its heading.

    Where none is, the first column where it holds text or its heading says that it identifies samples.

    Raises
    ------
    InputError
        Several columns hold names of samples.
    """
    # A set, since a screen may have millions of names and a table a thousand columns.
    names = set(known)
    matches = []
    for number in range(len(fields)):
        texts = {identifier_text(value) for value in head.iloc[:, number]}
        matches.append(len(texts & names) if len(texts) == len(head) else 0)
    most = max(matches, default=0)
    if most > 0.5 * min(len(head), len(known)):
        best = [fields[number] for number, count in enumerate(matches) if count == most]
        if len(best) > 1:
            raise InputError(
                f"{path}: the columns {' and '.join(map(repr, best))} both hold names of samples",
                remedy=f"say which: {path}@names={best[0]}",
            )
        return matches.index(most)
    if not fields:
        return None
    first = pd.Series(head.iloc[:, 0])
    numeric = pd.to_numeric(first, errors="coerce").notna()
    if not fields[0] or _IDENTIFIER.fullmatch(fields[0]) or (len(first) and not numeric.any()):
        return 0
    return None
