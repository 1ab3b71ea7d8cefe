"""Grids as a workbook (XLSX)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from txeval.errors import InputError
from txeval.report.layout import Cell, Grid

__all__ = ["to_xlsx"]

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_SHEET_CHARACTERS = 31


def to_xlsx(grids: Iterable[Grid], path: Path) -> None:
    """Write one sheet per grid: title, table, notes; numbers as numbers, every text as text, never as a formula.

    Raises
    ------
    InputError
        openpyxl is not installed, or the file cannot be written.
    """
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.styles import Font
    except ImportError:
        raise InputError(
            "XLSX files need openpyxl, which is not installed", remedy="pip install 'txeval[report]'"
        ) from None
    book = Workbook(write_only=True)
    taken: set[str] = set()
    for grid in grids:
        sheet = book.create_sheet(_sheet_name(grid.title, taken))
        sheet.freeze_panes = None

        def made(content: Any, *, bold: bool = False, sheet: Any = sheet) -> Any:
            cell = WriteOnlyCell(sheet, value=_allowed(content) if isinstance(content, str) else content)
            if isinstance(content, str):
                # A label that begins with "=" is a label.
                cell.data_type = "s"
            if bold:
                cell.font = Font(bold=True)
            return cell

        sheet.append([made(grid.title, bold=True)])
        sheet.append([])
        sheet.append([made(text, bold=True) for text in (*grid.index, *(column.label for column in grid.columns))])
        for row in grid.rows:
            sheet.append(
                [*(made(name) for name in row.names), *(made(_value(cell), bold=cell.best) for cell in row.cells)]
            )
        sheet.append([])
        notes = ["Bold: best model of the row."] if any(c.best for r in grid.rows for c in r.cells) else []
        notes += [*grid.notes, *(f"[{number}] {reason}" for number, reason in enumerate(grid.reasons, start=1))]
        for note in notes:
            sheet.append([made(note)])
    try:
        book.save(path)
    except OSError as why:
        raise InputError(f"{path} cannot be written: {why.strerror}", remedy="give another file") from None


def _value(cell: Cell) -> str | float:
    if _NUMBER.fullmatch(cell.text) and not cell.marks and not cell.letter:
        return float(cell.text)
    marks = "".join(f"[{mark}]" for mark in cell.marks)
    return " ".join(part for part in (cell.text + marks, cell.letter) if part)


def _allowed(text: str) -> str:
    """Text without the control characters that XML cannot hold."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", text)


def _sheet_name(title: str, taken: set[str]) -> str:
    plain = re.sub(r"[\[\]:*?/\\']", " ", _allowed(title)).strip() or "table"
    name, number = plain[:_SHEET_CHARACTERS], 1
    while name.lower() in taken:
        number += 1
        name = f"{plain[: _SHEET_CHARACTERS - len(str(number)) - 1]} {number}"
    taken.add(name.lower())
    return name
