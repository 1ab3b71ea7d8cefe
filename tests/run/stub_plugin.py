"""A plug-in with tasks and embedders that are quick and do what the tests ask of them.

It is installed as a distribution of its own, so that worker processes find it as they find any plug-in. Every
computation adds a line to the file that STUB_LOG names.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from txeval.compute.arrays import row_blocks, take_rows
from txeval.compute.intervals import Units
from txeval.embed.base import EmbedderInfo, Embedding
from txeval.errors import InputError, NotComputable
from txeval.tasks import Metric, Score, Task


def log(text):
    if os.environ.get("STUB_LOG"):
        with Path(os.environ["STUB_LOG"]).open("a") as handle:
            handle.write(f"{text}\n")


def wait():
    """Sleep for STUB_SLEEP seconds; on a cluster, where only variables of txeval travel, TXEVAL_STUB_SLEEP."""
    time.sleep(float(os.environ.get("STUB_SLEEP") or os.environ.get("TXEVAL_STUB_SLEEP", "0")))


@dataclass(frozen=True)
class SizeParams:
    power: float = 1.0


def prepare_size(inputs):
    log(f"stub_size {inputs.seed}")
    wait()
    rows = inputs.splits["test"]
    if len(rows) == 0:
        raise NotComputable("the test split is empty")
    norms = np.linalg.norm(take_rows(inputs.embedding, rows).astype(np.float64), axis=1) ** inputs.params.power
    return norms, inputs.samples.batch[rows], inputs.samples.batches


def size(prepared):
    norms, batch, batches = prepared
    sums, counts = np.bincount(batch, norms, len(batches)), np.bincount(batch, minlength=len(batches))
    return Score(
        value=norms.mean(),
        chance=1.0,
        n_samples=np.int64(len(norms)),
        left_out={"train samples": np.int64(3)},
        notes=("a note", "another"),
        units=Units.single("batch", np.arange(len(sums)).astype(str), sums, counts),
    )


def extremes(prepared):
    return [Score(value=prepared[0].min(), subset="least"), Score(value=prepared[0].max(), subset="most")]


def never(prepared):
    raise NotComputable("it never works")


def relative(scores):
    mine = scores[(scores["task"] == "stub_size") & (scores["metric"] == "size")]
    base = mine.loc[(mine["model"] == "random") & (mine["post_processing"] == "raw"), "value"].mean()
    return mine.assign(metric="relative", value=mine["value"] / base)


def size_details(prepared):
    _, batch, batches = prepared
    counts = np.bincount(batch, minlength=len(batches))
    tables = {"batches": pd.DataFrame({"batch": pd.Categorical(batches), "n": counts})}
    if os.environ.get("STUB_BIG"):
        tables["big"] = pd.DataFrame({"x": np.random.default_rng(0).random(10_000)})
    return tables


SIZE = Task(
    name="stub_size",
    level=91,
    title="Size",
    question="How long are the rows?",
    limits="None.",
    params=SizeParams,
    prepare=prepare_size,
    metrics=(
        Metric("size", "stub_size", "size", "Mean norm.", compute=size),
        Metric("extremes", "stub_size", "extremes", "Least and largest norm.", compute=extremes),
        Metric("never", "stub_size", "never", "Cannot be computed.", compute=never),
        Metric("relative", "stub_size", "relative", "Size relative to random.", derive=relative),
    ),
    stochastic=lambda params, n: False,
    details=size_details,
)


@dataclass(frozen=True)
class NoiseParams:
    draws: int = 50


def prepare_noise(inputs):
    log(f"stub_noise {inputs.seed}")
    wait()
    picked = inputs.rng("noise").choice(inputs.embedding.shape[0], inputs.params.draws)
    total = sum(float(block.sum()) for _, block in inputs.expression.blocks(np.arange(20)))
    return float(take_rows(inputs.embedding, picked).sum()) + total


NOISE = Task(
    name="stub_noise",
    level=92,
    title="Noise",
    question="What is a sum over random rows?",
    limits="None.",
    params=NoiseParams,
    prepare=prepare_noise,
    metrics=(Metric("noise", "stub_noise", "noise", "A sum.", compute=lambda found: Score(value=found)),),
    stochastic=lambda params, n: True,
    needs_expression=True,
)


def prepare_once(inputs):
    """Die the first time."""
    log("stub_once")
    mark = Path(os.environ["STUB_MARK"])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


ONCE = Task(
    name="stub_once",
    level=94,
    title="Once",
    question="Does it work the second time?",
    limits="None.",
    params=SizeParams,
    prepare=prepare_once,
    metrics=(Metric("again", "stub_once", "again", "One.", compute=lambda found: Score(value=found)),),
    stochastic=lambda params, n: False,
)


@dataclass(frozen=True)
class TroubleParams:
    kind: str = "none"


def prepare_trouble(inputs):
    """Fail in the way that STUB_TROUBLE says."""
    kind = os.environ.get("STUB_TROUBLE", "none")
    log(f"stub_trouble {inputs.seed}")
    if kind == "raise":
        raise RuntimeError("a fault\nin [bold]two[/bold] lines")
    if kind == "value":
        raise ValueError("a fault that will not pass")
    if kind == "once":
        mark = Path(os.environ["STUB_MARK"])
        if not mark.exists():
            mark.touch()
            raise OSError(5, "Input/output error")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "warn":
        import warnings

        warnings.warn("look out", UserWarning, stacklevel=1)
    if kind == "memory":
        block = np.ones(40_000_000)
        time.sleep(0.3)
        return block[:1].sum()
    return 1.0


TROUBLE = Task(
    name="stub_trouble",
    level=93,
    title="Trouble",
    question="What goes wrong?",
    limits="None.",
    params=TroubleParams,
    prepare=prepare_trouble,
    metrics=(
        Metric("fine", "stub_trouble", "fine", "One.", compute=lambda found: Score(value=found)),
        Metric("silent", "stub_trouble", "silent", "Gives nothing.", compute=lambda found: []),
        Metric(
            "broken", "stub_trouble", "broken", "Cannot be derived.", derive=lambda scores: scores["no such column"]
        ),
    ),
    stochastic=lambda params, n: False,
)


def gaussian(screen, seed, d):
    values = np.empty((screen.n, d), dtype=np.float64)
    rng = np.random.default_rng(seed)
    for rows in row_blocks(screen.n, d, 100):
        values[rows] = rng.normal(size=(rows.stop - rows.start, d))
    return values


class Plain:
    info = EmbedderInfo("stub_plain", "Deterministic.", options={"d": (4, "dimensions")})

    def fingerprint(self, screen, options):
        if options["d"] < 1:
            raise InputError(f"d is {options['d']}", remedy="use 1 or more")
        return {}

    def embed(self, screen, options, context):
        log("stub_plain")
        (context.folder / "checkpoint").write_text("x")
        context.progress(1, 2, "half")
        return Embedding(gaussian(screen, 0, options["d"]), {"warnings": ["made of nothing"]})


class Seeded:
    info = EmbedderInfo("stub_seeded", "Another one for each seed.", stochastic=True, uses_train=True)

    def fingerprint(self, screen, options):
        return {}

    def embed(self, screen, options, context):
        log(f"stub_seeded {context.seed}")
        return Embedding(gaussian(screen, context.seed + len(context.train_rows), 3))


class Broken:
    info = EmbedderInfo("stub_broken", "Fails in the way that STUB_BROKEN says.")

    def fingerprint(self, screen, options):
        return {}

    def embed(self, screen, options, context):
        log("stub_broken")
        kind = os.environ.get("STUB_BROKEN", "raise")
        if kind == "input":
            raise InputError("this screen does not suit", remedy="take another")
        if kind == "not computable":
            raise NotComputable("too few genes")
        if kind == "fine":
            return Embedding(gaussian(screen, 5, 3))
        raise RuntimeError("out of luck")


PLAIN, SEEDED, BROKEN = Plain(), Seeded(), Broken()
