"""A results folder as the views read it: scores, protocols, and what each unit contributed to each score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from txeval.compute.intervals import Units
from txeval.errors import NotComputable
from txeval.report.contributions import Place
from txeval.report.tables import mark_untrained
from txeval.run.store import Store
from txeval.tasks.registry import list_tasks, metrics_of

__all__ = ["ResultsFolder"]


class ResultsFolder:
    """A results folder.

    Parameters
    ----------
    folder
        Where it is.
    scores
        Its rows, as `txeval.read_scores` gives them.
    protocols
        Name -> the protocol as plain data.

    Attributes
    ----------
    scores
        The rows, with labels that say which models were never trained.
    """

    def __init__(self, folder: Path, scores: pd.DataFrame, protocols: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder = folder
        self.scores = mark_untrained(scores)
        self._protocols = protocols
        self._stored_label = dict(zip(self.scores["model"], scores["model"], strict=True))
        self._units: dict[tuple[str, str], dict[Place, dict[int, Units]] | NotComputable] = {}

    @classmethod
    def open(cls, folder: Path | str, scores: pd.DataFrame | None = None) -> ResultsFolder:
        """Read a folder.

        Parameters
        ----------
        scores
            Its rows, where they are at hand.

        Raises
        ------
        InputError
            It holds no results.
        """
        from txeval.run import read_protocols, read_scores

        rows = read_scores(folder) if scores is None else scores
        return cls(Path(folder), rows, read_protocols(folder))

    def has(self, protocol: str) -> bool:
        """Whether the folder has scores under a protocol of this name."""
        return protocol in self._protocols

    def choice(self, protocol: str) -> str:
        """How the protocol chooses post-processings for the summary: "best" or "cross_fitted"."""
        return str(self._protocols.get(protocol, {}).get("choice", "best"))

    def headline(self, protocol: str) -> Mapping[str, Sequence[str]]:
        """Task -> metrics that the protocol wants in the summary; tasks that are absent say so themselves."""
        found: Mapping[str, Sequence[str]] = self._protocols.get(protocol, {}).get("headline", {})
        return found

    def seeds(self, place: Place) -> Sequence[Units]:
        """Units of a score, one for each seed.

        Raises
        ------
        NotComputable
            The folder does not hold them, or not for every seed that has a score.
        """
        rows = self._rows(place)
        source, factors = self._source(place, rows)
        found = self._of_metric(place.task, source).get(
            place._replace(metric=source, model=self._stored_label.get(place.model, place.model)), {}
        )
        wanted = [-1 if pd.isna(seed) else int(seed) for seed in rows["seed"]]
        if not found or any(seed not in found for seed in wanted):
            raise NotComputable("no contributions of units are stored for this score")
        made = [found[seed] for seed in wanted]
        return [
            units
            if factor == 1.0
            else dataclasses.replace(units, offset=units.offset * factor, scale=units.scale * factor)
            for units, factor in zip(made, factors, strict=True)
        ]

    def _rows(self, place: Place) -> pd.DataFrame:
        scores = self.scores
        keep = scores["status"] == "ok"
        for name, value in place._asdict().items():
            keep &= scores[name] == value
        rows = scores[keep]
        if rows.empty:
            raise NotComputable("there is no such score")
        return rows.sort_values("seed")

    def _source(self, place: Place, rows: pd.DataFrame) -> tuple[str, list[float]]:
        """Metric whose units these are, and what each seed's are to be multiplied by."""
        base = next(
            (
                metric.multiple_of
                for task in list_tasks()
                if task.name == place.task
                for metric in metrics_of(task)
                if metric.name == place.metric
            ),
            "",
        )
        if not base:
            return place.metric, [1.0] * len(rows)
        under = self._rows(place._replace(metric=base))
        values = dict(zip(under["seed"].fillna(-1), under["value"], strict=True))
        pairs = zip(rows["value"], (values.get(seed) for seed in rows["seed"].fillna(-1)), strict=True)
        factors = [float(value / below) for value, below in pairs if below]
        if len(factors) < len(rows):
            raise NotComputable(f"no contributions of units are stored: some seeds have no {base}")
        return base, factors

    def _of_metric(self, task: str, metric: str) -> dict[Place, dict[int, Units]]:
        if (task, metric) not in self._units:
            try:
                self._units[task, metric] = self._read(task, metric)
            except NotComputable as why:
                self._units[task, metric] = why
        found = self._units[task, metric]
        if isinstance(found, NotComputable):
            raise found
        return found

    def _read(self, task: str, metric: str) -> dict[Place, dict[int, Units]]:
        try:
            frame = Store(self.folder).read_units(task, metric)
        except FileNotFoundError:
            raise NotComputable(f"the folder holds no contributions of units for {task}") from None
        made: dict[Place, dict[int, Units]] = {}
        frame["seed"] = frame["seed"].fillna(-1).astype("int64")
        keys = ["dataset", "protocol", "subset", "model", "post_processing", "seed"]
        for key, part in frame.groupby(keys, observed=True, sort=False):
            dataset, protocol, subset, model, post, seed = map(str, key)
            place = Place(dataset, protocol, task, metric, subset, model, post)
            made.setdefault(place, {})[int(seed)] = Units.from_frame(part)
        return made
