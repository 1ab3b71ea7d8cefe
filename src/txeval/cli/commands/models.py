"""`txeval models`: every model, how far it is supported, what it needs and gives."""

from __future__ import annotations

import argparse

from txeval.cli.base import Command, Parser, output_console

__all__ = ["COMMAND"]


def _configure(parser: Parser) -> None:
    parser.add_argument("model", metavar="NAME", nargs="*", help="only these")


def _run(args: argparse.Namespace) -> int:
    from rich.padding import Padding
    from rich.text import Text

    from txeval.embed.cards import SUPPORT, list_models
    from txeval.errors import unknown

    cards = {card.name: card for card in list_models()}
    for name in args.model:
        if name not in cards:
            raise unknown("model", name, cards)
    console = output_console()
    for support, meaning in SUPPORT.items():
        chosen = [
            card for card in cards.values() if card.support == support and (not args.model or card.name in args.model)
        ]
        if not chosen:
            continue
        console.print(Text(f"{support}: {meaning}", style="underline"))
        console.print()
        for card in chosen:
            console.print(Text(card.name, style="bold"))
            lines = [
                card.summary,
                f"genes: {card.genes or '-'}; scale: {card.scale or '-'}; dimensions: {card.dimensions or '-'}",
                f"weights: {_where(card.weights)}" if card.weights else "",
                f"checked against: {card.checked}" if card.checked else "",
                f"not built in, since: {card.why}" if card.why else "",
                f"licence: {card.licence}" if card.licence else "",
                f"cite: {card.citation}" if card.citation else "",
            ]
            for line in filter(None, lines):
                console.print(Padding(Text(line, overflow="fold"), (0, 0, 0, 2)))
            console.print()
    console.print(Text("Options: txeval embedders NAME. To embed: txeval embed SCREEN --model NAME --out FOLDER"))
    return 0


def _where(name: str) -> str:
    from txeval.embed.weights import find_weights
    from txeval.errors import InputError

    try:
        return str(find_weights(name))
    except InputError:
        return f"not here (txeval weights fetch {name})"


COMMAND = Command(
    name="models",
    summary="list the models: level of support, needs, dimensions, licence, citation",
    description="Every model that can be evaluated: those that txeval computes, those that plug-ins bring, and those "
    "that run in an environment of their own.",
    configure=_configure,
    run=_run,
    position=78,
)
