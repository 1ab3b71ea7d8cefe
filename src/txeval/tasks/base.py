"""What a level is: a frozen specification, a preparation step and metrics on what was prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from txeval.compute.arrays import F64, Bools, Ints, Rows, Strings
from txeval.compute.intervals import CONTROLS, Interval, Units
from txeval.compute.random import stream
from txeval.data.samples import Samples
from txeval.errors import NotComputable

__all__ = [
    "Ceiling",
    "Expression",
    "Metric",
    "Params",
    "Prepared",
    "Samples",
    "Score",
    "Sizes",
    "Task",
    "TaskInputs",
    "TaskResult",
    "batch_and_perturbation",
    "crossed_units",
    "run_task",
]

#: What a task hands to its metrics: any object of its own.
Prepared = Any

Params = Any


class Expression(Protocol):
    """Log-normalised expression of the kept samples, read by row blocks."""

    @property
    def genes(self) -> Strings:
        """(g,) gene names."""
        ...

    @property
    def note(self) -> str:
        """How the values were made from what the file holds."""
        ...

    def blocks(self, rows: Ints, *, max_elements: int | None = None) -> Iterator[tuple[slice, Any]]:
        """Blocks of the given rows, in their order: (slice into `rows`, float32 array (m, g))."""
        ...

    def gene_means(self, rows: Ints, *, scale: str) -> Any:
        """(g,) float64 mean per gene over rows, on `scale` "counts" or "lognorm"; NotComputable for other values."""
        ...


@dataclass(frozen=True)
class TaskInputs:
    """Everything that one cell of the plan may read.

    Attributes
    ----------
    embedding
        (n, d) post-processed embedding, rows on demand, in the order of `samples`.
    splits
        Row numbers per split name: "train", "test", "heldout".
    expression
        None where the screen has no expression matrix that serves.
    relations
        Database name -> frame with two columns of gene names.
    params
        The task's own frozen parameters.
    first_half
        (n,) flags, of a ceiling: which samples are the first half of their perturbation; see `in_turn`.
    kept
        Name, what fills a folder -> that folder, made once for all cells of a run that name it; None: nothing is kept.
    sample_order
        Gives all samples in an order that does not depend on that of the file (by name); None: the order of the file.
    """

    embedding: Rows
    samples: Samples
    splits: Mapping[str, Ints]
    params: Params
    seed: int = 0
    expression: Expression | None = None
    relations: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    device: str = "cpu"
    threads: int = 1
    first_half: Bools | None = None
    kept: Callable[[str, Callable[[Path], None]], Path] | None = None
    sample_order: Callable[[], Ints] | None = None

    def by_name(self, rows: Ints) -> Ints:
        """Rows in the order of `sample_order`: a draw by position then does not depend on the order of the file."""
        if self.sample_order is None:
            return rows
        place = np.empty(self.samples.n, dtype=np.int64)
        place[self.sample_order()] = np.arange(self.samples.n)
        return rows[np.argsort(place[rows])]

    def in_turn(self, asked: str) -> list[tuple[Ints, Ints]]:
        """Train rows and rows of the split `asked`: what is learnt from and what is scored, the scores pooled.

        Returns
        -------
        One pair; under `first_half` two: each half of the asked samples joins train, and the other half is asked.
        """
        train, rows = self.splits["train"], self.splits[asked]
        if self.first_half is None:
            return [(train, rows)]
        first = self.first_half[rows]
        # A half without samples asks nothing, and what joins train must be samples that the other half can find.
        return [
            (np.unique(np.concatenate([train, rows[joins]])), rows[~joins])
            for joins in (first, ~first)
            if not joins.all()
        ]

    def rng(self, *names: str | int) -> np.random.Generator:
        """Random stream for (seed, names)."""
        return stream(self.seed, *names)


def batch_and_perturbation(samples: Samples, rows: Ints) -> tuple[tuple[Strings, Strings], tuple[Ints, Ints]]:
    """Labels and codes of the units of some samples: batches, and perturbations with the controls apart.

    The controls of every batch are a level of their own: that there are controls is the design of a screen and not a
    draw of one more perturbation, so they vary with the batches alone.

    Returns
    -------
    (labels, codes)
        (batches, perturbations) each; see `crossed_units`.
    """
    names = np.asarray(samples.perturbations).astype(str)
    batches = np.asarray(samples.batches).astype(str)
    batch = samples.batch[rows]
    level = np.where(samples.is_control[rows], len(names) + batch, samples.perturbation[rows])
    controls = np.asarray([CONTROLS + name for name in batches], dtype=str)
    return (batches, np.concatenate([names, controls])), (batch, level.astype(np.int64))


def crossed_units(
    labels: tuple[Strings, Strings],
    codes: tuple[Ints, Ints],
    numerator: F64,
    denominator: F64 | None = None,
    *,
    offset: float = 0.0,
    scale: float = 1.0,
    alone: F64 | None = None,
) -> Units:
    """Contributions of samples by the levels of `batch_and_perturbation`."""
    return Units.crossed(
        ("batch", "perturbation"), labels, codes, numerator, denominator, offset=offset, scale=scale, alone=alone
    )


@dataclass(frozen=True)
class Sizes:
    """Sizes that the memory of a level follows from.

    Attributes
    ----------
    n, d, genes
        Samples, columns of the embedding, measured genes.
    perturbations, batches
        Labels of the screen.
    train, test, heldout
        Samples of each split.
    """

    n: int
    d: int
    genes: int
    perturbations: int
    batches: int
    train: int
    test: int
    heldout: int

    @classmethod
    def of(cls, samples: Samples, splits: Mapping[str, Ints], genes: int, d: int) -> Sizes:
        """Count them."""
        parts = {name: len(splits.get(name, ())) for name in ("train", "test", "heldout")}
        return cls(samples.n, d, genes, len(samples.perturbations), len(samples.batches), **parts)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number, or the reason why there is none.

    Attributes
    ----------
    subset
        What part of the metric it is, such as the name of a database; "" for the whole.
    chance, chance_low, chance_high
        What a representation without information would get, and its 95 % range where known.
    n_samples, n_groups
        How much went in; `group` names what a group is.
    left_out
        Reason -> how many were left out for it.
    units
        Contributions per resampling unit, for intervals and comparisons.
    interval
        Where it is not the one that follows from `units`.
    """

    value: float | None = None
    reason: str = ""
    subset: str = ""
    chance: float | None = None
    chance_low: float | None = None
    chance_high: float | None = None
    n_samples: int | None = None
    n_groups: int | None = None
    group: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    units: Units | None = None
    interval: Interval | None = None

    def __post_init__(self) -> None:
        if self.value is not None and not np.isfinite(self.value):
            why = (
                f"no finite value came out ({self.value}): the embedding under this post-processing holds numbers that "
                "overflow when they are summed, or nothing that varies"
            )
            object.__setattr__(self, "reason", self.reason or why)
            object.__setattr__(self, "value", None)
        if self.value is None and not self.reason:
            raise ValueError("a score without a value needs a reason")


@dataclass(frozen=True)
class Metric:
    """One metric of a task, as data.

    Attributes
    ----------
    name, task
        Identifiers used in rows; `task` names the task whose preparation it reads.
    label
        Column title.
    summary
        One sentence: what it measures.
    compute
        Prepared -> one Score or several with different `subset`. None for a derived metric.
    derive
        For metrics that combine rows of several cells: frame of score rows -> frame of new rows.
    low, high
        Range of possible values.
    headline
        Shown in the summary table, unless the protocol says which are.
    multiple_of
        Of a derived metric: the metric of the same task of which each of its rows is a multiple, so that the units
        of that one are its units too.
    asked
        Parameters of the task -> whether they ask for the metric; None: always. One that is not asked for has no row.
    """

    name: str
    task: str
    label: str
    summary: str
    compute: Callable[[Prepared], Score | Sequence[Score]] | None = None
    derive: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    higher_is_better: bool = True
    low: float = 0.0
    high: float = 1.0
    headline: bool = False
    multiple_of: str = ""
    asked: Callable[[Params], bool] | None = None
    version: int = 1


@dataclass(frozen=True)
class Ceiling:
    """How a level scores what the noise of the data allows: half of each perturbation's samples against the other.

    Attributes
    ----------
    inputs
        TaskInputs -> those under which the level gives its ceiling; raises NotComputable.
    summary
        What is held against what, as a remark of every score.
    metrics
        Metrics that then mean something; None for all.
    """

    inputs: Callable[[TaskInputs], TaskInputs]
    summary: str
    metrics: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Task:
    """One level of the benchmark, as data.

    Attributes
    ----------
    level
        1 to 6 for the levels of the paper; plug-ins may use any number.
    question, limits
        One sentence each: what it asks, what it cannot tell.
    params
        Frozen dataclass of parameters; its defaults are the `paper` protocol.
    prepare
        TaskInputs -> Prepared; raises NotComputable where no metric of the task can be computed.
    stochastic
        Whether the result depends on the seed under given parameters and number of samples.
    details
        Prepared -> tables to keep: name ("perturbations", "genes", ...) -> frame.
    needs_expression
        Whether it reads the expression matrix (the cell is then keyed on it).
    ceiling
        How it scores the ceiling; None where it has none.
    memory
        Sizes, parameters -> bytes that it needs for what it makes, whatever the size of its blocks (memory-mapped
        embeddings, labels and codes do not count); None: blocks are all.
    together, shares
        Inputs of several cells of one screen, split and parameters (and seed) -> what is prepared for each, as
        `prepare` would alone, sharing one pass over the expression; and the parameters under which that pays.
    """

    name: str
    level: int
    title: str
    question: str
    limits: str
    params: type
    prepare: Callable[[TaskInputs], Prepared]
    metrics: tuple[Metric, ...]
    stochastic: Callable[[Params, int], bool]
    details: Callable[[Prepared], Mapping[str, pd.DataFrame]] | None = None
    needs_expression: bool = False
    needs_relations: bool = False
    ceiling: Ceiling | None = None
    memory: Callable[[Sizes, Params], int] | None = None
    together: Callable[[Sequence[TaskInputs]], Sequence[Prepared | NotComputable]] | None = None
    shares: Callable[[Params], bool] = lambda params: False
    version: int = 1


@dataclass(frozen=True)
class TaskResult:
    """Scores by metric name, and tables of details."""

    scores: list[tuple[Metric, Score]]
    details: dict[str, pd.DataFrame]


def run_task(
    task: Task, inputs: TaskInputs, metrics: Sequence[Metric], prepared: Prepared | NotComputable = None
) -> TaskResult:
    """Compute metrics of one task.

    Parameters
    ----------
    task, inputs
        The level and what it reads.
    metrics
        Metrics to compute, of this task (plug-ins included).
    prepared
        What `Task.together` gave; None: the task prepares it.

    Returns
    -------
    A score or a reason for every metric that is asked for and not derived; never an exception for what a screen lacks.
    """
    wanted = [
        metric
        for metric in metrics
        if metric.compute is not None and (metric.asked is None or metric.asked(inputs.params))
    ]
    try:
        if isinstance(prepared, NotComputable):
            raise prepared
        if prepared is None:
            prepared = task.prepare(inputs)
    except NotComputable as why:
        return TaskResult([(metric, Score(reason=str(why))) for metric in wanted], {})
    scores: list[tuple[Metric, Score]] = []
    for metric in wanted:
        assert metric.compute is not None  # narrowed above
        try:
            found = metric.compute(prepared)
        except NotComputable as why:
            found = Score(reason=str(why))
        scores.extend((metric, score) for score in ([found] if isinstance(found, Score) else found))
    details = dict(task.details(prepared)) if task.details is not None else {}
    return TaskResult(scores, details)
