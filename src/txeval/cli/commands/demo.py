"""`txeval demo`: the whole benchmark on a small real screen."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, cast

from txeval.cli.base import Command, Parser, at_least
from txeval.cli.commands.run import conclude, run_config
from txeval.destination import check_destination

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["COMMAND"]

_SIMULATED = "[SIMULATED DATA] "

#: Samples in the 2-D view of its report: all of them.
DEMO_CELLS = 4000


def _configure(parser: Parser) -> None:
    parser.add_argument(
        "--out", metavar="FOLDER", default="demo-results", help="results folder (default: demo-results)"
    )
    parser.add_argument("--workers", metavar="N", type=at_least(1), help="worker processes (default: one per core)")
    parser.add_argument("--plain", action="store_true", help="plain lines instead of a progress bar")


class _EveryLine:
    """A stream that begins every line with the same words."""

    def __init__(self, stream: IO[str], words: str) -> None:
        self.stream = stream
        self.words = words
        self._at_start = True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self.stream.write((self.words if self._at_start else "") + line)
            self._at_start = line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        """Say that it is no terminal, so that nothing is drawn over a line."""
        return False


def _run(args: argparse.Namespace) -> int:
    from rich.text import Text

    from txeval.cli.commands.report import write_report
    from txeval.compute.machine import usable_cores
    from txeval.data.norman import demo_screen
    from txeval.protocol import load_protocol
    from txeval.run import build_config, make_progress

    out = check_destination(args.out, folder=True)
    demo = demo_screen(out, progress=_teller())
    simulated = demo.how == "simulated"
    console = _console(simulated=simulated, plain=args.plain)
    config = build_config(
        {
            "screen": demo.path,
            "name": "simulated" if simulated else "norman2019",
            "roles": demo.roles,
            "layer": demo.layer,
            "min_counts": demo.min_counts,
            "relations": demo.relations,
            "embeddings": ["pca"],
            "protocol": load_protocol("paper"),
            "seeds": 2,
            "workers": args.workers or min(usable_cores(), 8),
            "out": out,
        }
    )
    console.print(Text(demo.note))
    console.print("PCA and the random baseline on six levels, with four post-processings and two seeds.")
    stream = cast(IO[str], _EveryLine(sys.stderr, _SIMULATED)) if simulated else None
    outcome = run_config(config, make_progress(plain=True if args.plain else None, stream=stream))
    conclude(outcome, console)
    path = write_report(outcome.folder, cells=DEMO_CELLS)
    console.print(Text(f"Report, to be opened in a browser: {path.absolute()}", overflow="fold"))
    # On so small a screen some scores have no number but a reason: that is part of what is shown.
    return 1 if outcome.n_errors else 0


def _teller() -> Callable[[int, int, str], None]:
    """Print each step of getting the screen once."""
    said: set[str] = set()

    def tell(done: int, total: int, text: str) -> None:
        if text not in said:
            said.add(text)
            print((_SIMULATED if "simulat" in text else "") + text, file=sys.stderr, flush=True)

    return tell


def _console(*, simulated: bool, plain: bool) -> Console:
    from rich.console import Console

    from txeval.cli.base import output_console

    console = output_console(plain=plain)
    if not simulated:
        return console
    stream = cast(IO[str], _EveryLine(sys.stdout, _SIMULATED))
    width = console.width - len(_SIMULATED)
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, no_color=True)


COMMAND = Command(
    name="demo",
    summary="run the whole benchmark on a small real screen (a few minutes)",
    description="Runs all levels with all post-processings on Norman et al. 2019 (3,375 cells, 34 labels, "
    "8 batches), with PCA and the random baseline. Where that screen can neither be found nor downloaded, it "
    "runs on a simulated one, and every line says so. It ends with the report. Exit status 0 even where a level has a "
    "reason instead of a score on so small a screen.",
    configure=_configure,
    run=_run,
    position=10,
)
