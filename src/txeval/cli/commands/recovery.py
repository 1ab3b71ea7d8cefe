"""`txeval recovery`: how well each level finds what a simulated screen was made of."""

from __future__ import annotations

import argparse
import sys

from txeval.cli.base import Command, Parser, one_of, output_console

__all__ = ["COMMAND"]

FORMATS = ("terminal", "csv")


def _configure(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", help="results folder of `txeval run` on a simulated screen")
    parser.add_argument(
        "--truth", metavar="SCREEN", help="the simulated screen (default: the one that the results are about)"
    )
    parser.add_argument(
        "--post-processing",
        metavar="NAME",
        nargs="+",
        action="extend",
        help="one table for each of these (default: raw, or what there is)",
    )
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        default="terminal",
        type=one_of("format", FORMATS),
        help="terminal (default) or csv, with all post-processings",
    )
    parser.add_argument("--plain", action="store_true", help="no colours")


def _run(args: argparse.Namespace) -> int:
    from txeval.data.truth import Truth
    from txeval.errors import unknown
    from txeval.report import print_grids
    from txeval.report.recovery import find_truth, recovery, recovery_grid
    from txeval.text import csv_text

    truth = Truth.load(args.truth or find_truth(args.folder))
    found = recovery(args.folder, truth)
    if args.format == "csv":
        sys.stdout.write(csv_text(found))
        return 0
    there = list(dict.fromkeys(found["post_processing"]))
    asked = args.post_processing or (["raw"] if "raw" in there else there[:1])
    for name in asked:
        if name not in there:
            raise unknown("post-processing", name, there, where=str(args.folder))
    print_grids([recovery_grid(found, name) for name in asked], output_console(plain=args.plain))
    return 0


COMMAND = Command(
    name="recovery",
    summary="how well each level finds what a simulated screen was made of",
    description="Holds the results of a run on a screen of `txeval simulate` against what was planted: whether "
    "stronger effects score higher, whether what has an effect is told from what has none, and whether the latter is "
    "at chance.",
    epilog="""example:
  txeval simulate screen.h5ad --cells 20000
  txeval run screen.run.yaml
  txeval recovery screen-results
""",
    configure=_configure,
    run=_run,
    position=46,
)
