"""The plan of a run: every cell (embedding x post-processing x task x seed), and what determines it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from txeval.compute.arrays import Bools, Ints
from txeval.compute.intervals import UNITS_VERSION
from txeval.data import Screen, open_screen
from txeval.data.relations import load_relations, relations_digest
from txeval.data.split import split
from txeval.embed import embedding_fingerprint, resolve
from txeval.embed.base import EmbeddingSpec
from txeval.errors import InputError
from txeval.protocol import ABOUT, Protocol
from txeval.run.config import RunConfig, check_config
from txeval.run.rows import canonical_json, plain
from txeval.tasks.base import Metric, Params, Task
from txeval.tasks.registry import get_task, metrics_of

__all__ = ["Cell", "CellGroup", "EmbeddingJob", "Plan", "PlannedTask", "make_plan", "split_screen"]

#: Relative cost of a cell (CPU seconds at 2 million samples) where nothing has been measured yet. Only the order
#: of the work and the first estimate of the remaining time depend on it.
COSTS: Mapping[str, float] = {
    "relationships": 2,
    "consistency": 40,
    "knn": 105,
    "batch_mixing": 165,
    "reconstruction": 195,
    "linear_probe": 2000,
}
DEFAULT_COST = 100.0

#: Raised when ceilings are computed otherwise than before.
CEILING_VERSION = 2


@dataclass(frozen=True)
class EmbeddingJob:
    """One embedding of the screen, for one seed where it depends on one.

    Attributes
    ----------
    key
        Digest of what determines it; the store keeps it under this name.
    added
        Whether it is the baseline that nobody asked for by name.
    """

    key: str
    spec: EmbeddingSpec
    seed: int | None
    added: bool = False

    @property
    def text(self) -> str:
        """What to call it in messages."""
        return self.spec.label if self.seed is None else f"{self.spec.label}, seed {self.seed}"


@dataclass(frozen=True)
class Cell:
    """The unit of work: one task on one post-processed embedding for one seed.

    Attributes
    ----------
    key
        SHA-256 of everything that determines its scores.
    family
        The same without the seed: cells that differ in the seed alone share it.
    seed
        None where neither the embedding nor the task depends on one.
    metrics
        Names of the metrics that it computes.
    ceiling
        Whether it scores halves of the perturbations against each other; see `Task.ceiling`.
    fit_key
        Digest of everything that determines the fitted post-processing.
    """

    key: str
    family: str
    embedding: EmbeddingJob
    post_processing: str
    post_params: Mapping[str, Any]
    fit_key: str
    task: str
    params: Params
    metrics: tuple[str, ...]
    seed: int | None
    ceiling: bool = False

    @property
    def model(self) -> str:
        """Label of the embedding."""
        return self.embedding.spec.label

    @property
    def text(self) -> str:
        """What to call it in messages."""
        return " / ".join([self.model, self.post_processing, self.task]) + (
            "" if self.seed is None else f" / seed {self.seed}"
        )


@dataclass(frozen=True)
class CellGroup:
    """Cells of one task that share a pass over the expression; the worker keeps each of them."""

    cells: tuple[Cell, ...]

    @property
    def key(self) -> str:
        """Key of the first cell."""
        return self.cells[0].key

    @property
    def task(self) -> str:
        """Their task."""
        return self.cells[0].task

    @property
    def embedding(self) -> EmbeddingJob:
        """Embedding of the first cell."""
        return self.cells[0].embedding

    @property
    def text(self) -> str:
        """What to call them in messages."""
        return f"{self.cells[0].text}, and {len(self.cells) - 1} more"


@dataclass(frozen=True)
class PlannedTask:
    """A task with its parameters and metrics, a digest of all that is not the embedding's, and one of its relations."""

    task: Task
    params: Params
    metrics: tuple[Metric, ...]
    digest: str
    relations: str = ""


@dataclass(frozen=True)
class Plan:
    """All cells of a run, in the order in which they are best computed.

    Attributes
    ----------
    splits
        Row numbers (into the kept samples) of "train", "test" and "heldout".
    split_id, split_digest
        Name of the split in every row, and the digest of its rows.
    protocol_digest
        Digest of the protocol's parameters that determine scores.
    contents
        Label -> digest of what it stands for.
    warnings
        What is odd, or left out.
    """

    config: RunConfig
    screen: Screen
    splits: Mapping[str, Ints]
    split_id: str
    split_digest: str
    protocol_digest: str
    tasks: Mapping[str, PlannedTask]
    embeddings: tuple[EmbeddingJob, ...]
    cells: tuple[Cell, ...]
    contents: Mapping[str, str]
    warnings: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Digest of which rows the plan makes."""
        names = [[cell.key, cell.model] for cell in self.cells]
        return digest([self.screen.name, self.config.protocol.name, self.protocol_digest, names])[:16]

    def describe(self) -> dict[str, Any]:
        """Plain data that says what would be run, for people and for the manifest."""
        config, screen, samples = self.config, self.screen, self.screen.samples
        stochastic = {job.spec.label for job in self.embeddings if job.seed is not None}
        sources = {job.spec.label: job.spec for job in self.embeddings}
        made: dict[str, Any] = plain(
            {
                "dataset": screen.name,
                "screen": screen_record(screen),
                "samples": {
                    "n": samples.n,
                    "controls": int(samples.is_control.sum()),
                    "perturbations": len(set(samples.perturbation[~samples.is_control].tolist())),
                    "batches": len(samples.batches),
                },
                "protocol": {**config.protocol.to_dict(), "fingerprint": self.protocol_digest},
                "split": self.split_record(),
                "seeds": list(config.chosen_seeds),
                "post_processing": list(config.chosen_post_processing),
                "embeddings": [
                    {
                        "label": label,
                        "source": spec.source,
                        "options": dict(spec.options),
                        "stochastic": label in stochastic,
                        "fingerprint": self.contents[label],
                        "provenance": {},
                    }
                    for label, spec in sources.items()
                ],
                "tasks": {name: task_record(planned) for name, planned in self.tasks.items()},
                "cells": len({cell.key for cell in self.cells}),
                "cells_per_task": {
                    name: len({cell.key for cell in self.cells if cell.task == name}) for name in self.tasks
                },
                "warnings": self.warnings,
            }
        )
        return made

    def split_record(self) -> dict[str, Any]:
        """What the split is and how large its parts are."""
        samples = self.screen.samples
        parts = {}
        for name, rows in self.splits.items():
            perturbed = rows[~samples.is_control[rows]]
            parts[name] = {
                "samples": len(rows),
                "controls": len(rows) - len(perturbed),
                "batches": len(set(samples.batch[rows].tolist())),
                "perturbations": len(set(samples.perturbation[perturbed].tolist())),
            }
        return {"id": self.split_id, "digest": self.split_digest, **_split_params(self.config.protocol), "parts": parts}

    def split_table(self) -> pd.DataFrame:
        """One row per kept sample: split, row (number in the file), sample (name), train, test, heldout."""
        table = pd.DataFrame({"split": self.split_id, "row": self.screen.kept})
        names = self.screen.sample_names
        table["sample"] = "" if names is None else pd.Series(names).astype(str)
        for name, rows in self.splits.items():
            member: Bools = pd.Series(False, index=table.index).to_numpy(copy=True)
            member[rows] = True
            table[name] = member
        return table


def make_plan(config: RunConfig) -> Plan:
    """Open the screen, split it, look at every embedding, and list the cells.

    Raises
    ------
    InputError
        For everything that would stop the run later and can be known now.
    """
    check_config(config)
    screen = open_screen(
        config.screen,
        config.roles,
        layer=config.layer,
        scale=config.scale,
        min_counts=config.chosen_min_counts,
        name=config.name,
        max_elements=config.max_elements,
        labels=config.labels,
    )
    warnings = [str(item) for item in screen.report.get("warnings", [])]
    splits = split_screen(screen, config.protocol)
    warnings += [f"the {name} split is empty" for name, rows in splits.items() if len(rows) == 0]
    split_digest = _splits_digest(splits, screen.n)
    tasks = _tasks(config, split_digest, warnings)
    jobs = _jobs(config, screen, splits["train"])
    contents = {job.spec.label: job.key for job in reversed(jobs)}
    by_content: dict[str, list[str]] = {}
    for label, content in contents.items():
        by_content.setdefault(content, []).append(label)
    warnings += [
        f"{' and '.join(sorted(same))} are the same embedding" for same in by_content.values() if len(same) > 1
    ]
    scheme = _split_params(config.protocol)
    return Plan(
        config=config,
        screen=screen,
        splits=splits,
        split_id=f"{scheme['scheme']}-seed{scheme['seed']}-{split_digest[:8]}",
        split_digest=split_digest,
        protocol_digest=_protocol_digest(config),
        tasks=tasks,
        embeddings=tuple(jobs),
        cells=tuple(_cells(config, screen, tasks, jobs, contents)),
        contents=contents,
        warnings=list(dict.fromkeys(warnings)),
    )


def digest(content: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _fitted_content(screen: str, post_processing: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"screen": screen, "name": post_processing, "params": dict(params)}


def fit_key(screen: str, embedding: str, post_processing: str, params: Mapping[str, Any]) -> str:
    """Key of a fitted post-processing in the store, from the fingerprints of screen and embedding."""
    return digest({**_fitted_content(screen, post_processing, params), "embedding": embedding})


def screen_record(screen: Screen) -> dict[str, Any]:
    """What a screen is, as plain data."""
    made: dict[str, Any] = plain(
        {
            "path": str(screen.path),
            "name": screen.name,
            "fingerprint": screen.fingerprint,
            "layer": screen.layer,
            "scale": screen.scale,
            "scale_declared": screen.scale_declared,
            "scale_note": screen.scale_note,
            "roles": vars(screen.roles),
            "n": screen.n,
            "n_file": screen.n_file,
            "n_genes": screen.n_genes,
            "report": screen.report,
        }
    )
    return made


def task_record(planned: PlannedTask) -> dict[str, Any]:
    """What a task computes and how, as plain data."""
    task = planned.task
    return {
        "level": task.level,
        "title": task.title,
        "version": task.version,
        "params": dataclasses.asdict(planned.params),
        "metrics": [
            {"name": metric.name, "version": metric.version, "derived": metric.compute is None}
            for metric in planned.metrics
        ],
        "digest": planned.digest,
    }


def split_screen(screen: Screen, protocol: Protocol) -> dict[str, Ints]:
    """Row numbers of each split of the kept samples, as a protocol draws them."""
    samples = screen.samples
    return split(
        samples.perturbations[samples.perturbation],
        samples.batches[samples.batch],
        samples.is_control,
        **_split_params(protocol),
    )


def _split_params(protocol: Protocol) -> dict[str, Any]:
    given = protocol.split
    return {
        "scheme": given.get("scheme", "paper"),
        "seed": given.get("seed", 42),
        "train_fraction": given.get("train_fraction", 0.7),
    }


def _splits_digest(splits: Mapping[str, Ints], n: int) -> str:
    made = hashlib.sha256(str(n).encode())
    for name in sorted(splits):
        made.update(f"{name}:{len(splits[name])}:".encode())
        made.update(splits[name].astype("<i8").tobytes())
    return made.hexdigest()


def _protocol_digest(config: RunConfig) -> str:
    content = config.protocol.to_dict()
    for name in ABOUT:
        content.pop(name)
    content["post_processing"].pop("choices", None)
    content["quality_control"]["min_counts"] = config.chosen_min_counts
    return digest(_whole_numbers(content))[:16]


def _whole_numbers(value: Any) -> Any:
    """Numbers of equal value look equal: 1000.0 becomes 1000."""
    if isinstance(value, Mapping):
        return {key: _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _tasks(config: RunConfig, split_digest: str, warnings: list[str]) -> dict[str, PlannedTask]:
    planned = {}
    relations = ""
    for name in config.chosen_tasks:
        task = get_task(name)
        params = config.task_params(task)
        metrics = metrics_of(task, params)
        if task.needs_relations and not relations:
            relations = relations_digest(relations_of(config.relations, warnings))
        content = {
            "task": [name, task.version],
            "params": dataclasses.asdict(params),
            "metrics": [[metric.name, metric.version] for metric in metrics if metric.compute is not None],
            "split": split_digest,
            "relations": relations if task.needs_relations else None,
            "units": UNITS_VERSION,
        }
        planned[name] = PlannedTask(task, params, metrics, digest(content), relations if task.needs_relations else "")
    return planned


def relations_of(source: Path | None, warnings: list[str]) -> Mapping[str, pd.DataFrame]:
    """Databases of known relationships; none, with a warning, where nobody named any and none can be had."""
    if source is not None:
        return load_relations(source)
    try:
        return load_relations(None)
    except InputError as why:
        warnings.append(f"no database of known relationships: {why.problem}")
        return {}


def _jobs(config: RunConfig, screen: Screen, train: Ints) -> list[EmbeddingJob]:
    jobs = []
    asked = {spec.label for spec in config.embeddings}
    for spec in config.chosen_embeddings:
        seeds: Iterable[int | None] = config.chosen_seeds if resolve(spec).info.stochastic else [None]
        jobs += [
            EmbeddingJob(
                key=embedding_fingerprint(spec, screen, seed or 0, train_rows=train),
                spec=spec,
                seed=seed,
                added=spec.label not in asked,
            )
            for seed in seeds
        ]
    return jobs


def _cells(
    config: RunConfig,
    screen: Screen,
    tasks: Mapping[str, PlannedTask],
    jobs: Iterable[EmbeddingJob],
    contents: Mapping[str, str],
) -> list[Cell]:
    cells = []
    by_cost = sorted(tasks.items(), key=lambda item: COSTS.get(item[0], DEFAULT_COST))
    for job in jobs:
        is_ceiling = resolve(job.spec).info.role == "ceiling"
        for name, planned in by_cost:
            metrics = tuple(metric.name for metric in planned.metrics if metric.compute is not None)
            if is_ceiling:
                if planned.task.ceiling is None:
                    continue
                meant = planned.task.ceiling.metrics
                metrics = metrics if meant is None else tuple(metric for metric in metrics if metric in meant)
            stochastic = planned.task.stochastic(planned.params, screen.n)
            if job.seed is not None:
                seeds: list[int | None] = [job.seed]
            else:
                seeds = list(config.chosen_seeds) if stochastic else [None]
            for post in config.chosen_post_processing:
                fitted = _fitted_content(screen.fingerprint, post, config.post_params(post))
                family = {"task": planned.digest, "post_processing": fitted}
                if is_ceiling:
                    family["ceiling"] = {"version": CEILING_VERSION}
                cells += [
                    Cell(
                        key=digest({**family, "embedding": job.key, "seed": seed}),
                        family=digest({**family, "embedding": contents[job.spec.label]}),
                        embedding=job,
                        post_processing=post,
                        post_params=config.post_params(post),
                        fit_key=fit_key(screen.fingerprint, job.key, post, config.post_params(post)),
                        task=name,
                        params=planned.params,
                        metrics=metrics,
                        seed=seed,
                        ceiling=is_ceiling,
                    )
                    for seed in seeds
                ]
    return cells
