"""`txeval embedders`: the models that can be named on the command line."""

from __future__ import annotations

import argparse

from txeval.cli.base import Command, Parser, output_console

__all__ = ["COMMAND"]


def _configure(parser: Parser) -> None:
    parser.add_argument("embedder", metavar="NAME", nargs="*", help="only these")


def _run(args: argparse.Namespace) -> int:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from txeval.embed import list_embedders
    from txeval.errors import unknown

    infos = {info.name: info for info in list_embedders()}
    for name in args.embedder:
        if name not in infos:
            raise unknown("embedder", name, infos)
    console = output_console()
    for info in infos.values():
        if args.embedder and info.name not in args.embedder:
            continue
        title = Text(info.name, style="bold")
        title.append(" (another one for each seed)" if info.stochastic else "", style="not bold")
        console.print(title)
        facts = [info.summary, info.needs and f"needs {info.needs}", info.licence and f"licence: {info.licence}"]
        for fact in [*facts, info.citation]:
            if fact:
                console.print(Padding(Text(fact), (0, 0, 0, 2)))
        table = Table("option", "default", "help", box=None, pad_edge=False, show_header=False)
        for option, (default, text) in info.options.items():
            table.add_row(Text(f"@{option}="), Text(str(default)), Text(text))
        if info.options:
            console.print(Padding(table, (0, 0, 0, 2)))
        console.print()
    return 0


COMMAND = Command(
    name="embedders",
    summary="list the embedders and their options",
    description="What `--embedding NAME@option=value,...` knows, plug-ins included. Precomputed embeddings need no "
    "embedder: give obsm:KEY, a .npy / .npz / .parquet file, or other.h5ad#obsm/KEY.",
    configure=_configure,
    run=_run,
    position=80,
)
