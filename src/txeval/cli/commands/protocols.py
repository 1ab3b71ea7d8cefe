"""`txeval protocols`: which there are, what is in them, how they differ."""

from __future__ import annotations

import argparse
from typing import Any

from txeval.cli.base import Command, Parser, output_console

__all__ = ["COMMAND"]


def _configure(parser: Parser) -> None:
    parser.add_argument("protocol", metavar="NAME_OR_FILE", nargs="*", help="protocols to show or to compare")


def _run(args: argparse.Namespace) -> int:
    from txeval.protocol import list_protocols, load_protocol

    console = output_console()
    if not args.protocol:
        for name in list_protocols():
            console.print(f"{name:12}{load_protocol(name).description}")
        return 0
    protocols = [load_protocol(source) for source in args.protocol]
    if len(protocols) == 1:
        import yaml

        from txeval.report.parameters import effective

        print(yaml.safe_dump(effective(protocols[0]), sort_keys=False, width=100, allow_unicode=True), end="")
        return 0
    from rich.table import Table
    from rich.text import Text

    from txeval.report.parameters import differences

    rows = differences(protocols)
    if not rows:
        console.print("They have the same parameters.")
        return 0
    table = Table("parameter", box=None, pad_edge=False)
    for protocol in protocols:
        table.add_column(Text(protocol.name))
    for name, values in rows:
        table.add_row(Text(name), *(Text(_shown(value)) for value in values))
    console.print(table)
    return 0


def _shown(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, default=str)


COMMAND = Command(
    name="protocols",
    summary="list the protocols, show one with every parameter, or compare several",
    description="Without a name: the protocols that ship with txeval. With one: all its parameters as YAML, ready to "
    "be copied, changed and given to `txeval run --protocol my.yaml`. With several: where they differ.",
    configure=_configure,
    run=_run,
    position=60,
)
