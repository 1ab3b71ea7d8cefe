"""`txeval run`: the benchmark on a screen."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from txeval.cli.base import Command, Stopped, output_console
from txeval.cli.commands.show import show_summary
from txeval.cli.options import add_run_options, config_from

if TYPE_CHECKING:
    from rich.console import Console

    from txeval.run import Outcome, Progress, RunConfig

__all__ = ["COMMAND", "run_config"]


def _run(args: argparse.Namespace) -> int:
    from txeval.run import make_progress

    config = config_from(args, for_run=True)
    outcome = run_config(config, make_progress(plain=True if args.plain else None))
    conclude(outcome, output_console(plain=args.plain))
    return outcome.exit_status


def run_config(config: RunConfig, progress: Progress) -> Outcome:
    """Plan and execute; Ctrl-C before the first cell or between two says how to go on."""
    from txeval.run import execute, make_plan

    try:
        outcome = execute(make_plan(config), progress=progress)
    except KeyboardInterrupt:
        raise Stopped(_GO_ON) from None
    if outcome.interrupted:
        raise Stopped(outcome.message or _GO_ON)
    return outcome


_GO_ON = "finished scores are kept; the same command goes on from here"


def conclude(outcome: Outcome, console: Console) -> None:
    """Print the summary, what was computed, and where it is."""
    from rich.text import Text

    from txeval.report import ResultsFolder
    from txeval.run.progress import duration

    show_summary(ResultsFolder.open(outcome.folder, outcome.scores), console)
    reused = f", {outcome.n_reused:,} were there already" if outcome.n_reused else ""
    console.print(Text(f"{outcome.n_computed:,} cells computed in {duration(outcome.seconds)}{reused}."))
    if outcome.n_failed:
        console.print(Text(f"{outcome.n_failed:,} scores could not be computed: their rows say why."))
    if outcome.message:
        console.print(Text(outcome.message))
    folder = outcome.folder
    console.print(Text(f"Scores: {folder / 'scores.csv'}, {folder / 'scores.parquet'}", overflow="fold"))
    console.print(Text(f"All tables: txeval show {folder} --table full", overflow="fold"))
    console.print(Text(f"To look at it in a browser: txeval report {folder}", overflow="fold"))


COMMAND = Command(
    name="run",
    summary="run the benchmark on a screen",
    description="Scores embeddings of a perturbation screen on the levels of the benchmark. It can be stopped at any "
    "time; the same command goes on from there. A YAML file can stand for SCREEN and the flags.",
    epilog="""example:
  txeval run screen.h5ad --perturbation gene --control non-targeting --batch gem_group \\
      --embedding pca obsm:X_scvi "UCE=uce.h5ad#obsm/X_uce" --workers 4 --out results
""",
    configure=add_run_options,
    run=_run,
    position=20,
)
