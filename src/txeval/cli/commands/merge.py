"""`txeval merge`: put results folders together."""

from __future__ import annotations

import argparse
from pathlib import Path

from txeval.cli.base import Command, Parser, output_console

__all__ = ["COMMAND"]


def _configure(parser: Parser) -> None:
    parser.add_argument("folders", metavar="DIR", nargs="+", help="results folders")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where the merged results go")


def _run(args: argparse.Namespace) -> int:
    from txeval.run import merge, read_scores

    out = Path(args.out)
    merge([Path(folder) for folder in args.folders], out)
    scores = read_scores(out)
    models, datasets = scores["model"].nunique(), scores["dataset"].nunique()
    output_console().print(f"{len(scores):,} scores of {models} models on {datasets} data sets are in {out}")
    return 0


COMMAND = Command(
    name="merge",
    summary="put results folders together",
    description="Puts the finished cells of several results folders into one, for instance of two machines. "
    "A cell that several have is taken once.",
    configure=_configure,
    run=_run,
    position=50,
)
