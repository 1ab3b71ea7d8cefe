"""How far a long step is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Literal

from txeval.data.download import Progress

__all__ = ["tracking"]

_LINE_SECONDS = 15.0

Unit = Literal["bytes", "samples"]


@contextmanager
def tracking(unit: Unit, *, plain: bool = False, stream: IO[str] | None = None) -> Iterator[Progress]:
    """Give a function to call with (done, total, text); shows rate and remaining time on stderr.

    Parameters
    ----------
    unit
        What `done` and `total` count.
    plain
        Lines even on a terminal.
    """
    stream = stream or sys.stderr
    if plain or not stream.isatty():
        yield _Lines(unit, stream)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
    if unit == "bytes":
        columns += [DownloadColumn(), TransferSpeedColumn()]
    else:
        columns += [TextColumn("{task.fields[counted]}")]
    columns += [TimeRemainingColumn()]
    with Bars(*columns, console=Console(file=stream), transient=True) as bars:
        current: list[object] = ["", None]

        def show(done: int, total: int, text: str) -> None:
            if text != current[0]:
                if current[1] is not None:
                    bars.remove_task(current[1])  # type: ignore[arg-type]
                current[0] = text
                current[1] = bars.add_task(text, total=total or None, completed=done, counted="")
            counted = f"{done:,} of {total:,}" if total else f"{done:,}"
            bars.update(current[1], completed=done, total=total or None, counted=counted)  # type: ignore[arg-type]

        yield show


class _Lines:
    """A line when something begins, every quarter of a minute, and when it ends."""

    def __init__(self, unit: Unit, stream: IO[str]) -> None:
        self.unit = unit
        self.stream = stream
        self.text = ""
        self.begun = self.said = 0.0
        self.start = 0
        self.ended = False

    def __call__(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if text != self.text:
            self.text, self.begun, self.said, self.start, self.ended = text, now, now, done, False
            self._say(f"{text}{self._amount(done, total)}")
        elif (done >= total > 0 and not self.ended) or now - self.said >= _LINE_SECONDS:
            self.said, self.ended = now, done >= total > 0
            self._say(f"{text}{self._amount(done, total)}{self._pace(now, done, total)}")

    def _amount(self, done: int, total: int) -> str:
        if self.unit == "bytes":
            return f": {_bytes(done)} of {_bytes(total)}" if total else (f": {_bytes(done)}" if done else "")
        return f": {done:,} of {total:,} samples" if total else ""

    def _pace(self, now: float, done: int, total: int) -> str:
        seconds = now - self.begun
        if seconds < 0.5 or done <= self.start:
            return ""
        rate = (done - self.start) / seconds
        pace = f"{_bytes(rate)}/s" if self.unit == "bytes" else f"{rate:,.0f}/s"
        left = f", {_duration((total - done) / rate)} left" if total > done else ""
        return f" ({pace}{left})"

    def _say(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


def _bytes(number: float) -> str:
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:,.1f} {name}"
    return f"{number:,.0f} B"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
