"""Simulated screens with a known truth, of any size."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp

from txeval.compute.arrays import F32, F64, Ints
from txeval.compute.random import stream
from txeval.compute.sampling import CountModel, sample_counts
from txeval.data.locate import Progress
from txeval.data.profile import Mode, Profile
from txeval.data.truth import Truth, relations_folder, replace_folder, run_file, table, truth_folder
from txeval.data.writing import open_writer
from txeval.errors import InputError, unknown

__all__ = ["CONTROL_LABEL", "Simulation", "Truth", "relations_folder", "simulate_screen", "truth_folder"]

#: Label of the non-targeting controls.
CONTROL_LABEL = "non-targeting"

#: Samples that share a random stream. Blocks are whole numbers of these, so no value depends on the block size.
_ROWS = 128
#: Streams that one thread works through at a time.
_PARTS = 8

_TRUTH_NOISE = 0.02
_NOISY_NOISE = 0.8
# Together the shifts of the other programs are about half as large as the one of the target's own program.
_OFF_PROGRAM = 0.55
_UNEXPRESSED_MEAN = 0.02
_TARGET_MEAN = 0.5
_CELL_LINE_SPREAD = 0.5
_RESPONSE_SPREAD = 0.3
# Continuous values: log2 intensities, as bulk arrays give them.
_CONTINUOUS_MEAN = (8.0, 2.0)
_CONTINUOUS_SPREAD = 0.5
_LANDMARKS = 978
_LANDMARKS_PER_GENE = 10
_INFERRED_NOISE = 0.1


@dataclass(frozen=True)
class Simulation:
    """What a simulated screen is like.

    In sample i of batch b and cell line c the activity of program p is z_ip = (strength of its perturbation on p)
    x (response of c) + N(0, `program_noise`). The log expression of gene g is base_g + shift of c + shift of b +
    sum_p z_ip loading_pg, and log `knock_down` more for the sample's own target. Counts are negative binomial around
    this share of the sample's library (variance mean + phi mean^2). Continuous values are the log expression in
    units of log2, with normal noise; of them the first 978 genes are measured and the others inferred, each from
    ten measured ones. A perturbation acts on the program of its target with graded strength and, less, on the others.

    Attributes
    ----------
    n_samples, n_genes, n_batches, n_cell_lines, n_programs
        Dimensions. A batch is of one cell line; lines go around the batches.
    n_perturbations
        Perturbations of expressed genes, spread over the programs.
    unexpressed_targets
        Further perturbations, of genes that are not expressed (mean count about 0.02): they do nothing.
    unmeasured_targets
        Further perturbations, of genes that are not among the `n_genes` (TARGET1, ...): they act on the programs as
        those of `n_perturbations` do, but no knock-down is seen. With them perturbations may outnumber genes.
    effect
        Strength of the strongest perturbation; the others go down to a quarter of it. 0: nothing has an effect.
    null_fraction
        Share of `n_perturbations`, and of `unmeasured_targets`, that do nothing, not even to their target.
    knock_down
        What an effective perturbation leaves of its target's expression; above 1 for activation.
    program_noise
        Standard deviation of the activities between samples alike.
    batch_effect
        Standard deviation of the shifts of the genes' log expression in a batch, graded from 0.4 to 1.6 times this
        over the batches; None: as in the real screen (without grades), or 0.2.
    control_fraction
        Share of non-targeting controls, at least two in each batch.
    depth
        Median total count of a sample; None: as in the real screen, or 5,000.
    dispersion
        phi of every gene; None: as in the real screen, or 0.1.
    mode
        "counts" or "continuous".
    seed
        Same seed and dimensions give the same content, whatever the block size and number of threads.
    """

    n_samples: int = 4000
    n_genes: int = 300
    n_perturbations: int = 40
    n_batches: int = 6
    n_cell_lines: int = 1
    n_programs: int = 8
    unexpressed_targets: int = 25
    unmeasured_targets: int = 0
    effect: float = 1.0
    null_fraction: float = 0.1
    knock_down: float = 0.25
    program_noise: float = 0.2
    batch_effect: float | None = None
    control_fraction: float = 0.1
    depth: float | None = None
    dispersion: float | None = None
    mode: Mode = "counts"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_samples", "n_genes", "n_perturbations", "n_batches", "n_cell_lines", "n_programs"):
            _whole(name, getattr(self, name), 1)
        _whole("unexpressed_targets", self.unexpressed_targets, 0)
        _whole("unmeasured_targets", self.unmeasured_targets, 0)
        _whole("seed", self.seed, 0)
        for name, low, high in (
            ("null_fraction", 0.0, 1.0),
            ("control_fraction", 0.0, 1.0),
            ("effect", 0.0, 10.0),
            ("batch_effect", 0.0, 10.0),
            ("program_noise", 0.0, 10.0),
            ("dispersion", 0.0, 100.0),
            ("knock_down", 0.0, 100.0),
            ("depth", 1.0, 1e8),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name} is {value!r}", remedy=f"give a number from {low:g} to {high:g}")
        if self.mode not in get_args(Mode):
            raise unknown("mode", str(self.mode), get_args(Mode))
        if self.n_cell_lines > self.n_batches:
            raise InputError(
                f"{self.n_cell_lines} cell lines in {self.n_batches} batches: a batch is of one line",
                remedy="ask for more batches or fewer cell lines",
            )
        targets = self.n_perturbations + self.unexpressed_targets
        if targets >= self.n_genes:
            raise InputError(
                f"{self.n_genes:,} genes are too few for {targets:,} target genes",
                remedy="ask for more genes, or fewer perturbations (n_perturbations, unexpressed_targets), or let "
                "some targets be genes that are not measured (unmeasured_targets)",
            )


def _whole(name: str, value: object, low: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < low:
        raise InputError(f"{name} is {value!r}", remedy=f"give a whole number, at least {low}")


def simulate_screen(
    out: Path | str,
    simulation: Simulation | None = None,
    *,
    like: Profile | None = None,
    max_elements: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Truth:
    """Simulate a perturbation screen (see `Simulation`) and write it block by block.

    `obs`: `perturbation` (the target gene's name, or "non-targeting"), `gene`, `batch`, `control` (bool), and
    `cell_line` where there are several. X: counts, CSR, in the smallest integer type that holds them; or continuous
    values, dense float32. `obsm`: `X_truth` (z with noise 0.02) and `X_noisy` (z with noise 0.8), without batch
    effects. `var`: `landmark`, of continuous values. The truth is written into a folder beside it (`truth_folder`).

    Parameters
    ----------
    out
        .h5ad file or .zarr folder; appears whole or not at all.
    simulation
        What it is like; None: made of `settings`, which are the fields of `Simulation`.
    like
        What was learnt from a real screen by `fit_profile`: mean and dispersion of the genes, library sizes, batch
        shifts. With as many genes as it has they keep their names; otherwise genes are drawn from it.
    max_elements
        Samples x genes that are made at a time.
    threads
        Threads that make values; None: up to 4, no more than the cores.
    progress
        Called with (samples done, samples, text).

    Raises
    ------
    InputError
        For dimensions that do not go together, and where the file cannot be written.
    """
    asked = Simulation(**settings) if simulation is None else simulation
    design = _Design(asked, like)
    out = Path(out)
    folder = truth_folder(out)
    truth = design.truth(out)
    writer = open_writer(
        out,
        genes=design.genes,
        layout="csr" if asked.mode == "counts" else "dense",
        dtype=None if asked.mode == "counts" else np.float32,
        obs=design.obs(),
        var=design.var(),
        uns={"simulated": True},
    )
    try:
        with writer, tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}-") as room:
            scratch = Path(room)
            shape = (design.n, design.q)
            signal, noisy = (
                np.lib.format.open_memmap(scratch / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
                for name in ("signal", "noisy")
            )
            for where, block, truth_rows, noisy_rows in _blocks(design, max_elements, threads):
                writer.append(block)
                signal[where], noisy[where] = truth_rows, noisy_rows
                if progress is not None:
                    progress(where.stop, design.n, "simulating a screen")
            # Plain arrays over the same pages: what writes them does not know memory maps.
            writer.obsm = {"X_truth": np.asarray(signal), "X_noisy": np.asarray(noisy)}
            truth.write(scratch / "truth")
            writer.finish()
            writer.obsm = {}
            replace_folder(scratch / "truth", folder)
            run_file(out).write_text(truth.run(), encoding="utf-8")
    except OSError as why:
        raise InputError(f"cannot write {out}: {why.strerror or why}", remedy="name another folder") from why
    return truth


class _Design:
    """Everything but the samples' own values: small enough to be held."""

    def __init__(self, asked: Simulation, like: Profile | None) -> None:
        if like is not None and like.mode != asked.mode:
            raise InputError(
                f"{like.source} holds {like.mode} values, but mode is {asked.mode!r}", remedy=f"ask for {like.mode}"
            )
        self.asked = asked
        self.like = like
        self.n, self.g, self.q = asked.n_samples, asked.n_genes, asked.n_programs
        self.seed = asked.seed
        self.continuous = asked.mode == "continuous"
        self.depth = float(asked.depth or (like.depth if like is not None and not self.continuous else 5000.0))
        self._make_genes()
        self._make_programs()
        self._make_effects()
        self._make_samples()
        self._make_batches()

    def _make_genes(self) -> None:
        """Means, spreads, and which genes are targets."""
        asked, like = self.asked, self.like
        rng = stream(self.seed, "simulate", "genes")
        width = max(4, len(str(self.g)))
        names = np.array([f"GENE{i + 1:0{width}d}" for i in range(self.g)], dtype=object)
        if like is None:
            chosen = None
            mean = (
                rng.normal(*_CONTINUOUS_MEAN, self.g)
                if self.continuous
                else rng.lognormal(0.0, _spread(self.g), self.g)
            )
            spread = np.full(self.g, _CONTINUOUS_SPREAD if self.continuous else 0.1)
            self.batch_spread = np.full(self.g, 0.2)
        else:
            g = len(like.genes)
            chosen = np.arange(g) if g == self.g else rng.integers(0, g, self.g)
            if g == self.g:
                names = _unique(like.genes)
            mean, spread, self.batch_spread = like.mean[chosen], like.spread[chosen], like.batch_spread[chosen]
        if asked.dispersion is not None and not self.continuous:
            spread = np.full(self.g, asked.dispersion)
        if asked.batch_effect is not None:
            self.batch_spread = np.full(self.g, asked.batch_effect)
        self.genes = names
        # Counts: the Poisson distribution is the limit of no dispersion.
        self.spread: F64 = spread if self.continuous else np.maximum(spread, 1e-6)
        mean = mean if self.continuous else mean * (self.depth / mean.sum())
        self.mean: F64 = mean
        self._choose_targets(rng)
        if not self.continuous:
            self.mean *= self.depth / self.mean.sum()

    def _choose_targets(self, rng: np.random.Generator) -> None:
        asked = self.asked
        order = rng.permutation(self.g)
        n_silent, n_expressed = asked.unexpressed_targets, asked.n_perturbations
        low = 0.05 if not self.continuous else -np.inf
        rare = [g for g in order.tolist() if self.mean[g] < low]
        # Where too few genes are rare enough, further ones are made so.
        rest = [g for g in order.tolist() if self.mean[g] >= low] if len(rare) < n_silent else []
        self.silent = np.sort(np.array((rare + rest)[:n_silent], dtype=np.int64))
        taken = np.zeros(self.g, dtype=bool)
        taken[self.silent] = True
        if self.continuous and n_silent:
            floor = 0.2 if self.like is None else float(min(self.mean.min(), 0.0))
            self.mean[self.silent] = floor
            self.spread[self.silent] = np.minimum(self.spread[self.silent], 0.1)
        elif n_silent:
            self.mean[self.silent] = np.minimum(self.mean[self.silent], _UNEXPRESSED_MEAN)
        free = order[~taken[order]]
        if self.continuous:
            targets = free[:n_expressed]
        else:
            high = free[self.mean[free] >= _TARGET_MEAN]
            if len(high) < n_expressed:
                others = free[self.mean[free] < _TARGET_MEAN]
                others = others[np.argsort(-self.mean[others], kind="stable")]
                high = np.concatenate([high, others])
            targets = high[:n_expressed]
        # Targets are named in sorted order, so that a gene's number says nothing about its program.
        self.targets = np.sort(targets)
        taken[self.targets] = True
        self.others = order[~taken[order]]
        n_measured = min(_LANDMARKS, self.g) if self.continuous else self.g
        self.measured = np.zeros(self.g, dtype=bool)
        self.measured[:n_measured] = True

    def _make_programs(self) -> None:
        rng = stream(self.seed, "simulate", "programs")
        n_expressed = len(self.targets)
        self.target_program = rng.permutation(np.arange(n_expressed) % self.q)
        program = np.full(self.g, -1)
        program[self.targets] = self.target_program
        members = self.others[: int(0.6 * len(self.others))]
        program[members] = rng.integers(0, self.q, len(members))
        loading = rng.uniform(0.4, 1.0, self.g) * np.where(rng.random(self.g) < 0.75, 1.0, -1.0)
        self.inside = np.flatnonzero(program >= 0)
        self.program = program[self.inside]
        self.loading: F64 = loading[self.inside].round(6)
        if self.continuous and not self.measured.all():
            n, m = int(np.sum(~self.measured)), int(self.measured.sum())
            per = min(_LANDMARKS_PER_GENE, m)
            columns = rng.integers(0, m, (n, per))
            weights = rng.normal(0.0, 1.0 / math.sqrt(per), (n, per))
            pointers = np.arange(0, n * per + 1, per)
            self.inferred: Any = sp.csr_matrix((weights.ravel(), columns.ravel(), pointers), shape=(n, m)).T.tocsr()
            self.inferred_mean, self.inferred_spread = self.mean[~self.measured], self.spread[~self.measured]

    def _make_effects(self) -> None:
        asked = self.asked
        rng = stream(self.seed, "simulate", "effects")
        size = self._sizes(rng, len(self.targets))
        sign = np.where(rng.random(self.q) < 0.5, -1.0, 1.0)
        shifts = [self._directed(rng, size, sign, self.target_program)]
        # A stream of their own: without them a screen is what it was.
        rest = stream(self.seed, "simulate", "unmeasured")
        unseen = asked.unmeasured_targets
        unseen_program = rest.permutation(np.arange(unseen) % self.q)
        unseen_size = self._sizes(rest, unseen)
        shifts += [np.zeros((len(self.silent), self.q)), self._directed(rest, unseen_size, sign, unseen_program)]
        # Row 0 is for controls; then measured targets, those that are not expressed, those that are not measured.
        self.shifts: F64 = np.concatenate([np.zeros((1, self.q)), *shifts]).round(6)
        none = np.full(len(self.silent), -1)
        self.program_of = np.concatenate([self.target_program, none, unseen_program])
        size = np.concatenate([size, 0.0 * none, unseen_size])
        self.strength = (sign[self.program_of] * size).round(6) + 0.0
        names = np.array([f"TARGET{i + 1}" for i in range(unseen)], dtype=object)
        measured = np.concatenate([self.targets, self.silent]).astype(np.int64)
        self.labels = np.concatenate([np.array([CONTROL_LABEL], dtype=object), self.genes[measured], names])
        target = np.concatenate([[-1], measured, np.full(unseen, -1)])
        self.knocked_down = np.where(np.concatenate([[0.0], size]) != 0, target, -1)
        self.kind = np.where(size != 0, "active", np.where(self.program_of < 0, "unexpressed", "none")).tolist()
        lines = asked.n_cell_lines
        self.responses: F64 = np.ones((lines, len(self.labels)))
        if lines > 1:
            self.responses[:, 1:] = np.maximum(rng.normal(1.0, _RESPONSE_SPREAD, (lines, len(self.labels) - 1)), 0.0)
            self.responses = self.responses.round(6)

    def _sizes(self, rng: np.random.Generator, n: int) -> F64:
        """Strengths of n perturbations, graded, with zeros."""
        size = np.linspace(0.25, 1.0, n) if n > 1 else np.ones(n)
        size = rng.permutation(size) * self.asked.effect
        size[rng.permutation(n)[: round(self.asked.null_fraction * n)]] = 0.0
        return size

    def _directed(self, rng: np.random.Generator, size: F64, sign: F64, program: Ints) -> F64:
        """Shifts of every program by perturbations of genes of these programs."""
        n = len(size)
        shifts = rng.normal(0.0, _OFF_PROGRAM / math.sqrt(self.q), (n, self.q)) * size[:, None]
        shifts[np.arange(n), program] = sign[program] * size
        return shifts

    def _make_samples(self) -> None:
        asked = self.asked
        rng = stream(self.seed, "simulate", "samples")
        n_batches, n_labels = asked.n_batches, len(self.labels)
        n_control = max(round(asked.control_fraction * self.n), 2 * n_batches)
        rest = self.n - n_control
        if rest < n_labels - 1:
            raise InputError(
                f"{self.n:,} samples are too few for {n_control:,} controls and {n_labels - 1:,} perturbations",
                remedy="ask for more samples or fewer perturbations and batches",
            )
        sizes = np.full(n_labels - 1, rest // max(1, n_labels - 1))
        sizes[: rest - sizes.sum()] += 1
        sizes = np.concatenate([[n_control], sizes])
        label = np.repeat(np.arange(n_labels), sizes)
        within = np.arange(self.n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        # Each label goes around the batches, so that controls are in all of them.
        batch = (within + label) % n_batches
        order = rng.permutation(self.n)
        self.label: Ints = label[order]
        self.batch: Ints = batch[order]

    def _make_batches(self) -> None:
        """Expression of every gene in an unperturbed sample of each batch, and the libraries."""
        asked, like = self.asked, self.like
        rng = stream(self.seed, "simulate", "batches")
        n = asked.n_batches
        self.line_of = np.arange(n) % asked.n_cell_lines
        lines = rng.normal(0.0, _CELL_LINE_SPREAD if asked.n_cell_lines > 1 else 0.0, (asked.n_cell_lines, self.g))
        # Graded, so that there are batches that should mix less; those of a real screen are as they are.
        grade = np.ones(n) if like is not None or n == 1 else rng.permutation(np.linspace(0.4, 1.6, n))
        shift = (rng.standard_normal((n, self.g)) * self.batch_spread * grade[:, None]).astype(np.float32)
        self.batch_shift = np.sqrt(np.square(shift, dtype=np.float64).mean(axis=1))
        learnt = like is not None and asked.batch_effect is None
        spread = like.depth_spread if like is not None and learnt else float(self.batch_spread.mean()) / 2
        self.log_depth: F64 = rng.normal(0.0, 0.0 if self.continuous else spread, n)
        shift += lines[self.line_of].astype(np.float32)
        names = np.array([f"batch_{i + 1}" for i in range(n)], dtype=object)
        self.batches, self.lines = names, np.array([f"line_{i + 1}" for i in range(asked.n_cell_lines)], dtype=object)
        members = self.inside.astype(np.int32)
        if self.continuous:
            real = like is not None
            # What is learnt of continuous values is in their own units already.
            self.unit = 1.0 if real else 1.0 / math.log(2.0)
            self.base = (self.mean + self.unit * shift).astype(np.float32)
            self.loadings = sp.csr_matrix((self.loading, (self.program, members)), shape=(self.q, self.g))
            return
        self.base = np.exp(np.log(self.mean) + shift).astype(np.float32)
        # The activities scatter a member's expression too: a real gene's spread holds all of it.
        spread_of = self.spread.copy()
        if like is not None and asked.dispersion is None:
            own = np.expm1((asked.program_noise * self.loading) ** 2)
            spread_of[members] = np.maximum(spread_of[members] - own, 1e-3)
        self.model = CountModel(
            self.base, members, self.program.astype(np.int32), self.loading.astype(np.float32), spread_of
        )

    def truth(self, path: Path) -> Truth:
        """Tables of what was planted."""
        asked = self.asked
        which, program = np.nonzero(self.shifts)
        sizes = np.bincount(self.label, minlength=len(self.labels)).astype(np.float64)
        mean = sizes @ self.shifts / self.n
        spread = np.sqrt(np.maximum(sizes @ self.shifts**2 / self.n - mean**2, 0) + asked.program_noise**2)
        planted = np.zeros(self.g)
        planted[self.inside] = np.abs(self.loading) * spread[self.program]
        pairs: list[Any] = [np.empty((0, 2), dtype=object)]
        for p in range(self.q):
            mine = self.labels[1:][self.program_of == p]
            pairs.append(mine[np.stack(np.triu_indices(len(mine), 1), axis=1)])
        pair = np.concatenate(pairs)
        many = asked.n_cell_lines > 1
        n_perturbations = len(self.labels) - 1
        settings = asdict(asked)
        if self.like is not None:
            settings |= {"like": Path(self.like.source).name, "like_notes": list(self.like.notes)}
        return Truth(
            path=path,
            settings=settings,
            perturbations=table(
                "perturbations",
                {
                    "perturbation": self.labels[1:],
                    "gene": self.labels[1:],
                    "kind": self.kind,
                    "program": self.program_of,
                    "strength": self.strength,
                },
            ),
            effects=table(
                "effects",
                {"perturbation": self.labels[which], "program": program, "strength": self.shifts[which, program]},
            ),
            programs=table(
                "programs", {"gene": self.genes[self.inside], "program": self.program, "loading": self.loading}
            ),
            relations=table("relations", {"entity1": pair[:, 0], "entity2": pair[:, 1]}),
            genes=table(
                "genes",
                {
                    "gene": self.genes,
                    "mean": self.mean.round(6),
                    "spread": self.spread.round(6),
                    "batch_spread": self.batch_spread.round(6),
                    "planted": planted.round(6),
                    "measured": self.measured,
                },
            ),
            batches=table(
                "batches",
                {
                    "batch": self.batches,
                    "cell_line": self.lines[self.line_of],
                    "log_depth": self.log_depth.round(6),
                    "shift": self.batch_shift.round(6),
                },
            ),
            responses=table(
                "responses",
                {
                    "cell_line": np.repeat(self.lines, n_perturbations) if many else [],
                    "perturbation": np.tile(self.labels[1:], asked.n_cell_lines) if many else [],
                    "factor": self.responses[:, 1:].ravel() if many else [],
                },
            ),
        )

    def obs(self) -> pd.DataFrame:
        """Columns of the samples."""
        columns: dict[str, Any] = {
            "perturbation": pd.Categorical.from_codes(self.label, categories=pd.Index(self.labels)),
            "gene": pd.Categorical.from_codes(self.label, categories=pd.Index(["", *self.labels[1:]])),
            "batch": pd.Categorical.from_codes(self.batch, categories=pd.Index(self.batches)),
            "control": self.label == 0,
        }
        if len(self.lines) > 1:
            columns["cell_line"] = pd.Categorical.from_codes(self.line_of[self.batch], categories=pd.Index(self.lines))
        return pd.DataFrame(columns, index=pd.Index([f"sample_{i + 1}" for i in range(self.n)]))

    def var(self) -> pd.DataFrame:
        """Columns of the genes."""
        columns = {"landmark": self.measured} if self.continuous else {}
        return pd.DataFrame(columns, index=pd.Index(self.genes))

    def rows(self, part: int) -> tuple[slice, Any, F32, F32]:
        """Samples of one stream: where, values (m, g), truth (m, q), noisy truth (m, q)."""
        where = slice(part * _ROWS, min(self.n, (part + 1) * _ROWS))
        label, batch = self.label[where], self.batch[where]
        m = len(label)
        rng = stream(self.seed, "simulate", "values", part)
        response = self.responses[self.line_of[batch], label]
        state = self.shifts[label] * response[:, None] + rng.normal(0.0, self.asked.program_noise, (m, self.q))
        truth = state + rng.normal(0.0, _TRUTH_NOISE, (m, self.q))
        noisy = state + rng.normal(0.0, _NOISY_NOISE, (m, self.q))
        make = self._continuous if self.continuous else self._counts
        return where, make(rng, label, batch, state), truth.astype(np.float32), noisy.astype(np.float32)

    def _left(self, label: Ints, batch: Ints) -> F64:
        """What is left of the expression of each sample's target (m,): a weaker response knocks down less."""
        response = self.responses[self.line_of[batch], label]
        return np.asarray(self.asked.knock_down**response if self.asked.knock_down > 0 else np.zeros(len(label)))

    def _counts(self, rng: np.random.Generator, label: Ints, batch: Ints, state: F64) -> sp.csr_matrix:
        m = len(label)
        if self.like is None:
            log_library = rng.normal(0.0, 0.25, m)
        else:
            log_library = np.interp(rng.random(m), np.linspace(0, 1, len(self.like.library)), self.like.library)
        counts, columns, pointers = sample_counts(
            self.model,
            batch,
            state.astype(np.float32),
            self.depth * np.exp(self.log_depth[batch] + log_library),
            self.knocked_down[label],
            self._left(label, batch),
            rng.integers(1, 2**63, 4).astype(np.uint64),
        )
        return sp.csr_matrix((counts, columns, pointers.astype(np.int32)), shape=(m, self.g))

    def _continuous(self, rng: np.random.Generator, label: Ints, batch: Ints, state: F64) -> F32:
        m = len(label)
        values = self.base[batch].astype(np.float64)
        values += self.unit * (sp.csr_matrix(state) @ self.loadings).toarray()
        hit = np.flatnonzero(self.knocked_down[label] >= 0)
        left = np.log(np.maximum(self._left(label, batch), 1e-3))
        values[hit, self.knocked_down[label[hit]]] += self.unit * left[hit]
        values += rng.standard_normal((m, self.g)) * self.spread
        if not self.measured.all():
            k = int(self.measured.sum())
            z = (values[:, :k] - self.mean[:k]) / np.maximum(self.spread[:k], 1e-9)
            noise = rng.normal(0.0, _INFERRED_NOISE, (m, self.g - k))
            values[:, k:] = self.inferred_mean + self.inferred_spread * (z @ self.inferred + noise)
        out: F32 = values.astype(np.float32)
        return out


def _spread(g: int) -> float:
    """Standard deviation of log mean expression: that of a whole transcriptome spans more than a panel's."""
    return 1.2 if g < 1000 else 1.8


def _unique(names: Any) -> Any:
    """Names as they are, those that occur again with a number."""
    taken = set(map(str, names))
    seen: set[str] = set()
    out = []
    for name in map(str, names):
        given, number = name, 1
        while given in seen or (number > 1 and given in taken):
            number += 1
            given = f"{name}.{number}"
        seen.add(given)
        out.append(given)
    return np.array(out, dtype=object)


def _blocks(design: _Design, max_elements: int | None, threads: int | None) -> Iterator[tuple[slice, Any, F32, F32]]:
    """Blocks of whole streams, made in threads and given in order."""
    fits = _PARTS if max_elements is None else max_elements // (design.g * _ROWS)
    step = max(1, min(_PARTS, fits))
    n_parts = -(-design.n // _ROWS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = threads or min(4, cores)

    def make(first: int) -> tuple[slice, Any, F32, F32]:
        parts = [design.rows(part) for part in range(first, min(n_parts, first + step))]
        where = slice(parts[0][0].start, parts[-1][0].stop)
        values = [part[1] for part in parts]
        whole = np.concatenate(values) if design.continuous else sp.vstack(values, format="csr")
        return where, whole, np.concatenate([part[2] for part in parts]), np.concatenate([part[3] for part in parts])

    firsts = iter(range(0, n_parts, step))
    with ThreadPoolExecutor(workers, thread_name_prefix="simulate") as pool:
        waiting: deque[Future[Any]] = deque(pool.submit(make, first) for first in itertools.islice(firsts, workers + 1))
        try:
            while waiting:
                made = waiting.popleft().result()
                for first in itertools.islice(firsts, 1):
                    waiting.append(pool.submit(make, first))
                yield cast(tuple[slice, Any, F32, F32], made)
        finally:
            for future in waiting:
                future.cancel()
