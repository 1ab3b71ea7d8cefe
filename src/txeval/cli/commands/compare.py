"""`txeval compare`: are two embeddings different, and which of several is best?"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from txeval.cli.base import Command, Parser, one_of, output_console
from txeval.cli.commands.show import checked_metrics, opened, write_grids
from txeval.destination import check_destination
from txeval.errors import unknown

if TYPE_CHECKING:
    from txeval.report.results import ResultsFolder
    from txeval.report.summary import Question

__all__ = ["COMMAND"]

FORMATS = ("terminal", "csv", "markdown", "latex", "words")
CHOICES = ("best", "cross_fitted")


def _configure(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR_A", help="results folder of `txeval run`")
    parser.add_argument(
        "other", metavar="DIR_B", nargs="?", help="a second one: embeddings of DIR_A are held against those of DIR_B"
    )
    parser.add_argument(
        "--embeddings",
        metavar="LABEL",
        nargs="+",
        action="extend",
        help="which to compare (default: all models); with two folders: one label of both, or one of each",
    )
    parser.add_argument("--metric", metavar="NAME", nargs="+", action="extend", help="only these metrics")
    parser.add_argument(
        "--post-processing", metavar="NAME", help="compare under this one (default: the one chosen for each embedding)"
    )
    parser.add_argument(
        "--choice",
        metavar="HOW",
        type=one_of("choice", CHOICES),
        help="how post-processing is chosen: best (on the numbers shown) or cross_fitted (on other units than those "
        "reported); default: what the protocol says",
    )
    parser.add_argument(
        "--pairs", action="store_true", help="every pair of more than two embeddings (default: their ranks)"
    )
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        default="terminal",
        type=one_of("format", FORMATS),
        help="terminal (default), csv (every pair), markdown, latex or words",
    )
    parser.add_argument("--plot", metavar="FILE", help="also draw the differences: .svg, .pdf or .png")
    parser.add_argument("--plain", action="store_true", help="no colours")


def _run(args: argparse.Namespace) -> int:
    from txeval.report.comparison import compare, difference_grids, rank_grids, rank_words, sides, verdicts, words
    from txeval.text import csv_text

    if args.plot:
        from txeval.report.figures import FORMATS as KINDS

        check_destination(args.plot, option="--plot", suffixes=[f".{kind}" for kind in KINDS], parents=False)
    results = opened(args.folder)
    other = opened(args.other) if args.other else None
    for folder in filter(None, (results, other)):
        checked_metrics(args.metric, folder.scores)
        _check_post(args.post_processing, folder)
    pairs = sides(results, other, args.embeddings or [])
    options = {"metrics": args.metric, "post_processing": args.post_processing, "choice": args.choice}
    if args.plot:
        from txeval.report.figures import difference_figure, save

        save(difference_figure(compare(pairs, **options)), Path(args.plot))
    if other is None and len(pairs) > 1 and not args.pairs and args.format != "csv":
        models = list(dict.fromkeys(side.model for pair in pairs for side in pair))
        asked = _ranked(results, models, options)
        if args.format == "words":
            sys.stdout.write("".join(f"{line}\n" for line in rank_words(asked)))
            return 0
        status = write_grids(rank_grids(asked, models), args)
        if args.format == "terminal":
            _lines(["Every pair, with intervals and p-values: --pairs"], args)
        return status
    frame = compare(pairs, **options)
    if args.format == "csv":
        sys.stdout.write(csv_text(frame))
        return 0
    if args.format == "words":
        sys.stdout.write("".join(f"{line}\n" for line in words(frame)))
        return 0
    grids = difference_grids(frame)
    if other is not None:
        note = f"A: {results.folder}; B: {other.folder}."
        grids = [dataclasses.replace(grid, notes=(note, *grid.notes)) for grid in grids]
    status = write_grids(grids, args)
    if args.format == "terminal":
        _lines(verdicts(frame), args)
    return status


def _ranked(results: ResultsFolder, models: list[str], options: dict[str, object]) -> list[Question]:
    from txeval.report.summary import questions

    scores = results.scores
    return list(questions(scores[scores["model"].isin(models)], results, rank_references=True, **options))  # type: ignore[arg-type]


def _check_post(name: str | None, results: ResultsFolder) -> None:
    known = list(dict.fromkeys(map(str, results.scores["post_processing"])))
    if name is not None and name not in known:
        raise unknown("post-processing", name, known, where=str(results.folder))


def _lines(lines: list[str], args: argparse.Namespace) -> None:
    from rich.text import Text

    console = output_console(plain=args.plain)
    for line in lines:
        console.print(Text(line))


COMMAND = Command(
    name="compare",
    summary="compare embeddings: paired differences with intervals and p-values, ranks",
    description="Holds embeddings against each other on the same batches, perturbations and genes: of two the paired "
    "difference of every metric with its 95 % interval, its p-value (also adjusted for the number of comparisons) and "
    "the smallest difference that could have been seen; of several their ranks with intervals.",
    epilog="""examples:
  txeval compare results
  txeval compare results --embeddings pca scVI
  txeval compare results-old results-new --format words
""",
    configure=_configure,
    run=_run,
    position=45,
)
