"""`txeval weights`: which weights there are, fetch them, check them."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from txeval.cli.base import Command, Parser, Stopped, one_of, output_console
from txeval.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["COMMAND"]


def _configure(parser: Parser) -> None:
    parser.add_argument(
        "action", metavar="ACTION", type=one_of("action", ("list", "fetch", "verify")), help="list, fetch or verify"
    )
    parser.add_argument("what", metavar="MODEL_OR_FOLDER", nargs="?", help="fetch: a model; verify: a folder")
    parser.add_argument("--to", metavar="FOLDER", help="fetch: where to (default: TXEVAL_WEIGHTS, else the cache)")
    parser.add_argument("--record", action="store_true", help="verify: record the digests of files that have none")


def _run(args: argparse.Namespace) -> int:
    for flag, value, action in (("--to", args.to, "fetch"), ("--record", args.record, "verify")):
        if value and args.action != action:
            raise InputError(f"{flag} is for txeval weights {action}", remedy="leave it out")
    if args.action != "list" and args.what is None:
        example = "txeval weights fetch scgpt" if args.action == "fetch" else "txeval weights verify FOLDER"
        raise InputError(f"txeval weights {args.action}: of what?", remedy=f"say it like this: {example}")
    console = output_console()
    return {"list": _list, "fetch": _fetch, "verify": _verify}[args.action](args, console)


def _list(args: argparse.Namespace, console: Console) -> int:
    from rich.padding import Padding
    from rich.text import Text

    from txeval.embed.weights import catalogue, list_weights, search_places
    from txeval.errors import unknown

    entries = list_weights()
    if args.what is not None:
        entries = [entry for entry in entries if args.what in (entry.name, *entry.models)]
        if not entries:
            raise unknown("model with weights", args.what, catalogue())
    for entry in entries:
        places = search_places(entry)
        whole = [place for place in places if place.is_dir() and not entry.missing(place)]
        part = [place for place in places if place.is_dir() and entry.missing(place)]
        console.print(Text(entry.name, style="bold"))
        megabytes = entry.megabytes or 0
        size = f"about {megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"about {megabytes:g} MB"
        lines = [
            f"{entry.title}; {size}",
            f"for {', '.join(entry.models)}",
            f"from {entry.address}",
            f"licence: {entry.licence}",
            f"published digests known: {sum(bool(file.sha256) for file in entry.files)} of {len(entry.files)} files;"
            f" sizes: {sum(file.bytes is not None for file in entry.files)}",
        ]
        if whole:
            lines.append(f"here: {whole[0]}")
        elif part:
            lines.append(f"in part here: {part[0]} (missing: {', '.join(entry.missing(part[0])[:4])})")
        else:
            lines.append(f"not here; looked in {', '.join(map(str, places))}")
        for line in lines:
            console.print(Padding(Text(line, overflow="fold"), (0, 0, 0, 2)))
    return 0


def _fetch(args: argparse.Namespace, console: Console) -> int:
    from rich.text import Text

    from txeval.cli.tracking import tracking
    from txeval.embed.weights import fetch_weights

    try:
        with tracking("bytes") as progress:
            folder = fetch_weights(args.what, None if args.to is None else Path(args.to), progress=progress)
    except KeyboardInterrupt:
        raise Stopped("the same command goes on from here") from None
    console.print(Text(f"The weights of {args.what} are in {folder}"), soft_wrap=True)
    return 0


def _verify(args: argparse.Namespace, console: Console) -> int:
    from rich.text import Text

    from txeval.embed.weights import record_weights, verify_weights

    folder = Path(args.what)
    checks = record_weights(folder) if args.record else verify_weights(folder)
    if not checks:
        raise InputError(f"{folder} holds no files", remedy="name the folder of the weights")
    for check in checks:
        digest = check.found or check.recorded
        known = f"published {check.published}"
        console.print(Text(f"{check.state:15}{digest[:16]}  {known:27}{check.path}"), soft_wrap=True)
    compared = Counter(check.published for check in checks if check.state != "missing")
    kinds = ("size and digest", "size", "unknown")
    counted = ", ".join(f"{kind} of {compared[kind]}" for kind in kinds if compared[kind])
    console.print(Text(f"Known of the published files: {counted or 'nothing'}"), soft_wrap=True)
    bad = [check for check in checks if not check.whole]
    new = sum(check.state == "not recorded" for check in checks)
    if bad:
        console.print(
            Text(f"{len(bad)} of {len(checks)} files are not as they were recorded or published: fetch them again"),
            soft_wrap=True,
        )
        return 1
    note = f"; {new} have no recorded digest (--record writes them down)" if new else ""
    console.print(Text(f"{len(checks) - new} of {len(checks)} files are as they were recorded{note}"), soft_wrap=True)
    return 0


COMMAND = Command(
    name="weights",
    summary="list, fetch and check the weights of models",
    description="Weights are looked for in the folders of TXEVAL_WEIGHTS, in `weights` of TXEVAL_DATA, and in the "
    "cache. `fetch` gets them from their official source, goes on after an interruption, and records the digest of "
    "every file; where there is no network, put them there by hand.",
    epilog="""examples:
  txeval weights list
  txeval weights fetch geneformer-v1 --to models/Geneformer
  txeval weights verify models/Geneformer
""",
    configure=_configure,
    run=_run,
    position=84,
)
