"""Text from data, made safe for what it is shown in."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["clean", "csv_text"]

# What spreadsheets take for the beginning of a formula.
_FORMULA = re.compile(r"[=+\-@\t\r]")


def clean(text: object) -> str:
    """Text from data without control characters, so that a label cannot steer a terminal."""
    return "".join(
        char if unicodedata.category(char)[0] != "C" else f"\\x{ord(char):02x}" for char in str(text).replace("\n", " ")
    )


def csv_text(frame: pd.DataFrame) -> str:
    r"""Write a frame as CSV: numbers with full precision, empty where there is no value, labels that do nothing.

    Control characters are written as `\x1b`, line breaks as spaces; text that a spreadsheet would take for a formula
    gets an apostrophe in front, which spreadsheets do not show.
    """
    import pandas as pd

    def safe(value: object) -> object:
        if not isinstance(value, str):
            return value
        text = clean(value)
        return f"'{text}" if _FORMULA.match(text) else text

    columns = {}
    for name in frame:
        column = frame[name]
        texts = not pd.api.types.is_numeric_dtype(column)
        columns[safe(name)] = column.astype(object).map(safe, na_action="ignore") if texts else column
    return pd.DataFrame(columns, index=frame.index).to_csv(index=False, lineterminator="\n")
