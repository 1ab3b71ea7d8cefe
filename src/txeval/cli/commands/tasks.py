"""`txeval tasks`: the levels and their metrics."""

from __future__ import annotations

import argparse

from txeval.cli.base import Command, Parser, output_console

__all__ = ["COMMAND"]


def _configure(parser: Parser) -> None:
    parser.add_argument("task", metavar="TASK", nargs="*", help="only these")


def _run(args: argparse.Namespace) -> int:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from txeval.tasks.registry import get_task, list_tasks, metrics_of

    console = output_console()
    for task in [get_task(name) for name in args.task] or list_tasks():
        console.print(Text(f"Level {task.level}: {task.title} ({task.name})", style="bold"))
        console.print(Padding(Text(task.question), (0, 0, 0, 2)))
        console.print(Padding(Text(task.limits, style="dim"), (0, 0, 0, 2)))
        table = Table("metric", "", "what it is", box=None, pad_edge=False, show_header=False)
        for metric in metrics_of(task):
            arrow = "higher is better" if metric.higher_is_better else "lower is better"
            table.add_row(Text(("* " if metric.headline else "  ") + metric.name), arrow, Text(metric.summary))
        console.print(Padding(table, (0, 0, 1, 2)))
    console.print("* shown in the summary table")
    return 0


COMMAND = Command(
    name="tasks",
    summary="list the levels of the benchmark and their metrics",
    description="What each level asks, what it cannot tell, and its metrics, plug-ins included.",
    configure=_configure,
    run=_run,
    position=70,
)
