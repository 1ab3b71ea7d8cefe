"""Details tables of a results folder, one cell at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from txeval.run.store import Store

__all__ = ["Cells", "Details"]

_KEYS = ("dataset", "protocol", "model", "post_processing")

#: (dataset, protocol, model, post_processing)
Key = tuple[str, ...]


class Cells:
    """One details table: every cell is in row groups of its own, found through their statistics."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file
        self.columns = list(self._file.schema_arrow.names)
        self._groups: dict[Key, dict[int | None, list[int]]] = {}
        self._mixed: set[int] = set()
        numbers = {name: i for i, name in enumerate(self.columns)}
        for group in range(self._file.metadata.num_row_groups):
            for key, seed in self._constants(group, numbers):
                self._groups.setdefault(key, {}).setdefault(seed, []).append(group)

    def _constants(self, group: int, numbers: dict[str, int]) -> list[tuple[Key, int | None]]:
        about = self._file.metadata.row_group(group)
        found: list[Any] = []
        for name in (*_KEYS, "seed"):
            chunk = about.column(numbers[name])
            statistics = chunk.statistics
            if statistics is not None and statistics.has_min_max and statistics.min == statistics.max:
                found.append(statistics.min)
            elif statistics is not None and statistics.null_count == about.num_rows:
                found.append(None)
            else:
                frame = self._file.read_row_group(group, columns=[*_KEYS, "seed"]).to_pandas()
                rows = frame.drop_duplicates().itertuples(index=False, name=None)
                self._mixed.add(group)
                return [(tuple(map(str, row[:4])), None if pd.isna(row[4]) else int(row[4])) for row in rows]
        return [(tuple(map(str, found[:4])), found[4])]

    def seeds(self, key: Key) -> list[int | None]:
        """Seeds of one cell, the lowest first."""
        return sorted(self._groups.get(key, {}), key=lambda seed: -1 if seed is None else seed)

    def read(self, key: Key, columns: Sequence[str], seed: int | None = None) -> pd.DataFrame | None:
        """Rows of one cell and seed; None where there are none. Columns that the table lacks are left out."""
        groups = self._groups.get(key, {}).get(seed)
        if not groups:
            return None
        wanted = [name for name in columns if name in self.columns]
        if self._mixed.isdisjoint(groups):
            whole: pd.DataFrame = self._file.read_row_groups(groups, columns=wanted).to_pandas()
            return whole
        frame: pd.DataFrame = self._file.read_row_groups(groups, columns=[*_KEYS, "seed", *wanted]).to_pandas()
        same = frame["seed"].isna() if seed is None else frame["seed"] == seed
        for name, value in zip(_KEYS, key, strict=True):
            same &= frame[name] == value
        return frame.loc[same, wanted].reset_index(drop=True)

    def first(self, key: Key, columns: Sequence[str]) -> pd.DataFrame | None:
        """Rows of one cell under its lowest seed."""
        seeds = self.seeds(key)
        return self.read(key, columns, seeds[0]) if seeds else None

    def each(self, key: Key, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Rows of one cell, seed by seed."""
        for seed in self.seeds(key):
            found = self.read(key, columns, seed)
            if found is not None:
                yield found


class Details:
    """All details tables of a folder."""

    def __init__(self, folder: Path) -> None:
        self._store = Store(folder)
        self._files = ExitStack()
        self._open: dict[str, Cells | None] = {}

    def get(self, task: str, table: str) -> Cells | None:
        """One table; None where the folder does not have it."""
        name = f"{task}.{table}"
        if name not in self._open:
            try:
                self._open[name] = Cells(self._files.enter_context(self._store.open_details(task, table)))
            except FileNotFoundError:
                self._open[name] = None
        return self._open[name]
