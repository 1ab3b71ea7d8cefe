"""`txeval data subset`: a part of a screen, for a quick look or a test."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from txeval.cli.base import Command, Parser, at_least, output_console
from txeval.cli.options import add_screen_options, roles_from

__all__ = ["COMMAND"]


def _configure(parser: Parser) -> None:
    parser.add_argument("screen", metavar="SCREEN", help="a screen, or a YAML file that describes a run")
    add_screen_options(parser)
    part = parser.add_argument_group("the part")
    part.add_argument("-n", "--samples", metavar="N", type=at_least(1), required=True, help="number of samples")
    part.add_argument("--seed", metavar="SEED", type=at_least(0), default=0, help="seed of the draw (default: 0)")
    part.add_argument("--out", metavar="FILE.h5ad", required=True, help="file to write")
    part.add_argument("--overwrite", action="store_true", help="replace FILE.h5ad where it exists")
    part.add_argument("--plain", action="store_true", help="no colours")


def _run(args: argparse.Namespace) -> int:
    from rich.text import Text

    from txeval.data.subset import subset_screen

    path, given = _source(args)
    made = subset_screen(path, args.out, n=args.samples, seed=args.seed, overwrite=args.overwrite, **given)
    record = made.record
    console = output_console(plain=args.plain)
    lines = [
        f"Written: {made.path}: {record['samples']:,} of {record['of_samples']:,} samples (seed {record['seed']}),"
        f" drawn within each {' and '.join(record['stratified_by'])}",
        f"  {record['perturbations']:,} of {record['of_perturbations']:,} labels,"
        f" {record['batches']:,} of {record['of_batches']:,} batches",
        *(f"  left out, {count:,}: {reason}" for reason, count in record["left_out"].items()),
        *(f"  {note}" for note in record["notes"]),
    ]
    if record["samples"] < args.samples:
        lines.append(f"  {args.samples:,} were asked for; these are all that have labels")
    for line in lines:
        console.print(Text(line, overflow="fold"))
    return 0


def _source(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    if Path(args.screen).suffix.lower() not in {".yaml", ".yml"}:
        return Path(args.screen), {"roles": roles_from(args), "layer": args.layer, "labels": args.labels}
    from txeval.run.config import load_config

    config = load_config(Path(args.screen))
    return config.screen, {"roles": config.roles, "layer": config.layer, "labels": config.labels}


COMMAND = Command(
    name="subset",
    summary="write a part of a screen, drawn within each batch and perturbation",
    description="Writes some samples of a screen as .h5ad, in the proportions of the whole, for a quick look or a test."
    " The draw is seeded, does not depend on the order of the file, and is recorded in it.",
    epilog="""examples:
  txeval data subset run.yaml -n 5000 --out small.h5ad
  txeval data subset screen.h5ad --perturbation gene --control non-targeting --batch gem_group -n 5000 --out small.h5ad
""",
    configure=_configure,
    run=_run,
    position=50,
)
