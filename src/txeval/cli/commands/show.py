"""`txeval show`: the tables of a results folder."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from txeval.cli.base import Command, Parser, one_of, output_console
from txeval.errors import InputError, unknown

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from txeval.report.layout import Grid
    from txeval.report.results import ResultsFolder

__all__ = ["COMMAND", "checked_metrics", "opened", "show_summary", "write_grids"]

#: Remarks of one task that the summary shows; some name every batch or embedding.
SHOWN_REMARKS = 4

FORMATS = ("terminal", "csv", "markdown", "latex")


def _configure(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", help="results folder of `txeval run`")
    parser.add_argument(
        "--table",
        metavar="WHICH",
        default="summary",
        help="summary (default): one post-processing per model and metric, with interval and rank; full: all of them, "
        "mean ± sd over seeds; "
        "or the name of a task: the same for that level",
    )
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        default="terminal",
        type=one_of("format", FORMATS),
        help="terminal (default), csv, markdown or latex",
    )
    parser.add_argument("--metric", metavar="NAME", nargs="+", action="extend", help="only these metrics")
    parser.add_argument(
        "--details", action="store_true", help="every score with interval, chance, numbers, what was left out, remarks"
    )
    parser.add_argument("--plain", action="store_true", help="no colours")


def _run(args: argparse.Namespace) -> int:
    from txeval import report
    from txeval.text import csv_text

    results = opened(args.folder)
    scores = results.scores
    metrics = checked_metrics(args.metric, scores)
    if args.table == "summary" and not args.details:
        if args.format == "terminal":
            show_summary(results, output_console(plain=args.plain), metrics=metrics)
            return 0
        if args.format == "csv":
            sys.stdout.write(csv_text(report.summary(scores, results, metrics=metrics)))
            return 0
        return write_grids(report.summary_grids(scores, results, metrics=metrics), args)
    task = None if args.table in ("summary", "full") else args.table
    tasks = list(dict.fromkeys(scores["task"]))
    if task is not None and task not in tasks:
        raise unknown("table", task, ["summary", "full", *tasks], where=str(args.folder))
    if args.format == "csv":
        scores = scores if task is None else scores[scores["task"] == task]
        scores = scores if metrics is None else scores[scores["metric"].isin(metrics)]
        sys.stdout.write(csv_text(report.aggregate(scores, results)))
        return 0
    if args.details:
        return write_grids(report.detail_grids(scores, results, task=task, metrics=metrics), args)
    return write_grids(report.full_grids(scores, task=task, metrics=metrics), args)


def opened(folder: str) -> ResultsFolder:
    """Results folder that holds scores; InputError where it does not."""
    from txeval.report import ResultsFolder

    results = ResultsFolder.open(folder)
    if results.scores.empty:
        raise InputError(f"{folder} holds no scores", remedy="run `txeval run` with this folder as --out")
    return results


def checked_metrics(names: list[str] | None, scores: pd.DataFrame) -> list[str] | None:
    """Names of metrics that the scores have; InputError with the nearest for another."""
    known = list(dict.fromkeys(scores["metric"]))
    for name in names or []:
        if name not in known:
            raise unknown("metric", name, known, where="these results")
    return names


def write_grids(grids: list[Grid], args: argparse.Namespace) -> int:
    """Print grids in the format that was asked for."""
    from txeval import report

    if args.format == "markdown":
        sys.stdout.write(report.to_markdown(grids))
    elif args.format == "latex":
        sys.stdout.write(report.to_latex(grids))
    else:
        report.print_grids(grids, output_console(plain=args.plain))
    return 0


def show_summary(results: ResultsFolder, console: Console, *, metrics: list[str] | None = None) -> None:
    """Print the summary tables, what could not be computed and what was left out."""
    from rich.padding import Padding
    from rich.text import Text

    from txeval import report
    from txeval.text import clean

    scores = results.scores
    report.print_grids(report.summary_grids(scores, results, metrics=metrics), console)
    failed, less, said = report.holes(scores), report.left_out(scores), report.remarks(scores)
    several = scores[["dataset", "protocol"]].drop_duplicates().shape[0] > 1

    def line(row: dict[str, object], text: str) -> Padding:
        where = f"{row['dataset']}, {row['protocol']}, " if several else ""
        return Padding(Text(clean(f"{where}{row['task']}: {text}")), (0, 0, 0, 1))

    if len(failed):
        console.print(Text("Not computed", style="bold"))
        for row in _records(failed):
            what = f"{row['metrics']} of {row['models']} ({row['post_processings']})"
            console.print(line(row, f"{row['reason']}. Concerns {what}."))
        console.print()
    if len(less):
        console.print(Text("Left out of scores", style="bold"))
        for row in _records(less):
            low, high = row["lowest"], row["highest"]
            console.print(line(row, f"{row['reason']}: {low if low == high else f'{low} to {high}'}"))
        console.print()
    if len(said):
        console.print(Text("Remarks on scores", style="bold"))
        seen: dict[object, int] = {}
        for row in _records(said):
            seen[row["task"]] = seen.get(row["task"], 0) + 1
            if seen[row["task"]] <= SHOWN_REMARKS:
                console.print(line(row, f"{row['note']} ({row['n_rows']} scores)"))
        more = sum(max(0, number - SHOWN_REMARKS) for number in seen.values())
        if more:
            console.print(Text(f" and {more} more: --table TASK --details", style="dim"))
        console.print()


def _records(frame: pd.DataFrame) -> list[dict[str, object]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


COMMAND = Command(
    name="show",
    summary="show the tables of a results folder",
    description="The summary in the layout of the paper's Table 2, or the full tables, in the terminal or as CSV, "
    "Markdown or LaTeX (booktabs).",
    configure=_configure,
    run=_run,
    position=40,
)
