"""How far a run is: a bar with the time that is left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

__all__ = ["NullProgress", "PlainProgress", "Progress", "RichProgress", "Work", "make_progress"]


@dataclass
class Work:
    """What there is to do, what is done, and how long the rest will take.

    Parameters
    ----------
    reused
        Cells that were there already.
    left
        Kind of job (a task, or "embedding") -> number of jobs.
    costs
        Kind -> relative cost, for kinds of which none is finished yet.
    seconds
        Kind -> seconds that earlier jobs of the kind took.
    workers
        Number of jobs at a time.
    """

    reused: int
    left: Mapping[str, int]
    costs: Mapping[str, float]
    seconds: dict[str, list[float]]
    workers: int = 1
    done: int = 0
    total: int = 0
    failed: int = 0
    running: dict[int, tuple[str, str, float]] = field(default_factory=dict)
    begin: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.left = dict(self.left)
        self.total = sum(self.left.values())

    def start(self, worker: int, kind: str, text: str) -> None:
        """A worker begins a job."""
        self.running[worker] = (kind, text, time.monotonic())

    def finish(self, worker: int | None, kind: str, seconds: float, *, failed: bool) -> None:
        """A job has ended (without a worker: it could not even begin)."""
        if worker is not None:
            self.running.pop(worker, None)
            self.seconds.setdefault(kind, []).append(seconds)
        self.left = {**self.left, kind: max(0, self.left.get(kind, 0) - 1)}
        self.done += 1
        self.failed += failed

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begin

    def remaining(self) -> float | None:
        """Seconds that are left, from the mean of each kind; None while nothing is known of any."""
        means = {kind: sum(times) / len(times) for kind, times in self.seconds.items() if times}
        known = {kind: mean for kind, mean in means.items() if kind in self.costs}
        if not known:
            return None if sum(self.left.values()) else 0.0
        scale = sum(known.values()) / sum(self.costs[kind] for kind in known)
        expected = {kind: means.get(kind, self.costs.get(kind, 0.0) * scale) for kind in self.left}
        work = sum(number * expected[kind] for kind, number in self.left.items())
        now = time.monotonic()
        spent = sum(min(now - since, expected.get(kind, 0.0)) for kind, _, since in self.running.values())
        return max(0.0, work - spent) / max(1, self.workers)


class Progress(Protocol):
    """What a display of a run is told."""

    def start(self, work: Work) -> None:
        """The run begins."""
        ...

    def begin(self, worker: int, kind: str, text: str) -> None:
        """A worker begins a job."""
        ...

    def says(self, worker: int, text: str) -> None:
        """A worker tells how far its job is."""
        ...

    def end(self, worker: int | None, kind: str, text: str, seconds: float, reason: str) -> None:
        """A job has ended; `reason` says why a score is missing, "" where none is."""
        ...

    def warn(self, text: str) -> None:
        """Something is odd; may come before `start`."""
        ...

    def stop(self) -> None:
        """The run is over, one way or another."""
        ...


class NullProgress:
    """Shows nothing."""

    def start(self, work: Work) -> None:
        """Do nothing."""

    def begin(self, worker: int, kind: str, text: str) -> None:
        """Do nothing."""

    def says(self, worker: int, text: str) -> None:
        """Do nothing."""

    def end(self, worker: int | None, kind: str, text: str, seconds: float, reason: str) -> None:
        """Do nothing."""

    def warn(self, text: str) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class PlainProgress(NullProgress):
    """Writes a line for each job that has ended.

    Parameters
    ----------
    stream
        Where to; None: standard error.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream = stream or sys.stderr
        self.work: Work | None = None

    def start(self, work: Work) -> None:
        """Say how much there is to do."""
        self.work = work
        reused = f", {work.reused} cells are there already" if work.reused else ""
        self._print(f"{work.total} jobs{reused}")

    def begin(self, worker: int, kind: str, text: str) -> None:
        """Note when a job begins."""
        if self.work is not None:
            self.work.start(worker, kind, text)

    def end(self, worker: int | None, kind: str, text: str, seconds: float, reason: str) -> None:
        """Write the job's line."""
        if self.work is None:
            return
        work = self.work
        work.finish(worker, kind, seconds, failed=bool(reason))
        share = 100 * work.done // max(1, work.total)
        left = "" if work.done == work.total else f", {_left(work)}"
        outcome = f"no score: {reason}" if reason else duration(seconds)
        self._print(f"[{work.done}/{work.total} {share}%{left}] {text}: {outcome}")

    def warn(self, text: str) -> None:
        """Write a warning."""
        self._print(f"warning: {text}")

    def _print(self, text: str) -> None:
        print(printable(text), file=self.stream, flush=True)


class RichProgress:
    """Draws a bar with the time that is left, and what each worker does; warnings scroll above it.

    Parameters
    ----------
    console
        Where to; None: standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.work: Work | None = None
        self._said: dict[int, str] = {}
        self._live: Live | None = None

    def start(self, work: Work) -> None:
        """Begin to draw."""
        self.work = work
        if work.reused:
            self._above(Text(f"{work.reused} cells are there already"))
        if work.total:
            self._live = Live(self, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def begin(self, worker: int, kind: str, text: str) -> None:
        """Show what a worker does."""
        self._said.pop(worker, None)
        if self.work is not None:
            self.work.start(worker, kind, text)

    def says(self, worker: int, text: str) -> None:
        """Show how far it is."""
        self._said[worker] = text

    def end(self, worker: int | None, kind: str, text: str, seconds: float, reason: str) -> None:
        """Move the bar; say why a score is missing."""
        if self.work is not None:
            self.work.finish(worker, kind, seconds, failed=bool(reason))
        if reason:
            self._above(Text.assemble((f"no score: {printable(text)}: ", "yellow"), printable(reason)))

    def warn(self, text: str) -> None:
        """Write a warning above the bar."""
        self._above(Text.assemble(("warning: ", "yellow"), printable(text)))

    def stop(self) -> None:
        """Take the bar away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _above(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the bar and a line for each worker."""
        work = self.work
        if work is None:
            return
        bar = Table.grid(padding=(0, 1), expand=True)
        for _ in range(4):
            bar.add_column(no_wrap=True)
        bar.columns[1].ratio = 1
        failed = f", {work.failed} without score" if work.failed else ""
        bar.add_row(
            Text(f"{100 * work.done // max(1, work.total):3d} %", style="bold"),
            ProgressBar(total=max(1, work.total), completed=work.done),
            Text(f"{work.done} of {work.total}{failed}"),
            Text(f"{duration(work.elapsed)} so far, {_left(work)}", style="cyan"),
        )
        yield bar
        if not work.running and not work.done:
            yield Text("  starting", style="dim")
        now = time.monotonic()
        for worker, (_, text, since) in sorted(work.running.items()):
            said = self._said.get(worker, "")
            line = f"  {printable(text)} ({duration(now - since)})" + (f": {printable(said)}" if said else "")
            yield Text(line, style="dim", no_wrap=True, overflow="ellipsis")


def make_progress(*, plain: bool | None = None, stream: IO[str] | None = None) -> Progress:
    """Give the display that fits: drawn where standard error is a terminal, else plain lines.

    Parameters
    ----------
    plain
        True or False decides; None: look at the stream.
    """
    stream = stream or sys.stderr
    if plain is None:
        plain = not stream.isatty()
    if plain:
        return PlainProgress(stream)
    return RichProgress(Console(file=stream, highlight=False, markup=False, emoji=False))


def duration(seconds: float) -> str:
    """Time as people say it: 0.4 s, 12 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def printable(text: str) -> str:
    """Text without what would move the cursor or change colours: labels come from data."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in text)


def _left(work: Work) -> str:
    remaining = work.remaining()
    return "time left unknown" if remaining is None else f"{duration(remaining)} left"
