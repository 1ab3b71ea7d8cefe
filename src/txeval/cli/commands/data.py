"""`txeval data`: screens by name and from files. Each of its actions is a module `txeval.cli.data_NAME`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from functools import cache

from txeval.cli.base import Command, Parser

__all__ = ["COMMAND", "find_actions"]

_PREFIX = "data_"


@cache
def find_actions() -> dict[str, Command]:
    """Every action by name, in the order of their positions: what a module `txeval.cli.data_*` holds as `COMMAND`."""
    package = importlib.import_module("txeval.cli")
    found = []
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith(_PREFIX):
            action = getattr(importlib.import_module(f"{package.__name__}.{info.name}"), "COMMAND", None)
            if isinstance(action, Command):
                found.append(action)
    return {action.name: action for action in sorted(found, key=lambda action: action.position)}


def _configure(parser: Parser) -> None:
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", dest="action", parser_class=Parser, required=True
    )
    for action in find_actions().values():
        child = actions.add_parser(
            action.name, help=action.summary, description=action.description, epilog=action.epilog
        )
        action.configure(child)
        child.set_defaults(_run_action=action.run, _parser=child)


def _run(args: argparse.Namespace) -> int:
    return int(args._run_action(args))


COMMAND = Command(
    name="data",
    summary="data sets: list, describe, fetch, prepare, take a part",
    description="Brings a screen from its public source to a checked file on disk, whatever its size, and says what it "
    "did; looks at files of your own.",
    epilog="""examples:
  txeval data list
  txeval data describe replogle_2022
  txeval data prepare norman_2019_devel --out data/norman.h5ad
  txeval data describe my_screen.h5ad --out run.yaml
""",
    configure=_configure,
    run=_run,
    position=40,
)
