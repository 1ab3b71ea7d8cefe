"""`txeval data fetch`: the files of a data set, from where they are published."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from txeval.cli.base import Command, Parser, Stopped, output_console

if TYPE_CHECKING:
    from rich.console import Console

    from txeval.data.datasets import Dataset, SourceFile

__all__ = ["COMMAND", "fetch_files", "show_files"]

GO_ON = "the same command goes on from here"


def _configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="a data set of `txeval data list`")
    parser.add_argument(
        "--to", metavar="FOLDER", help="data folder to put it into, for TXEVAL_DATA (default: the cache)"
    )
    add_file_option(parser)
    parser.add_argument("--plain", action="store_true", help="plain lines instead of a progress bar")


def add_file_option(parser: Parser) -> None:
    """Add what says which files of a record to take."""
    parser.add_argument(
        "--file", metavar="NAME", nargs="+", action="extend", help="take these files of the record, in this order"
    )


def _run(args: argparse.Namespace) -> int:
    from txeval.data.datasets import get_dataset

    dataset = get_dataset(args.name)
    files = fetch_files(dataset, to=args.to, names=args.file or (), plain=args.plain)
    console = output_console(plain=args.plain)
    show_files(dataset, files, console)
    console.print(f"\nNext: txeval data prepare {dataset.name}", soft_wrap=True)
    return 0


def fetch_files(
    dataset: Dataset, *, to: str | None = None, names: tuple[str, ...] | list[str] = (), plain: bool = False
) -> list[SourceFile]:
    """Find or fetch the files of a data set, showing how far it is."""
    from txeval.cli.tracking import tracking
    from txeval.data.datasets import fetch_dataset
    from txeval.destination import check_destination

    if to is not None:
        check_destination(to, option="--to", folder=True)
    try:
        with tracking("bytes", plain=plain) as progress:
            files, _ = fetch_dataset(dataset, to=None if to is None else Path(to), names=names, progress=progress)
    except KeyboardInterrupt:
        raise Stopped(GO_ON) from None
    return files


def show_files(dataset: Dataset, files: list[SourceFile], console: Console) -> None:
    """Print the files of a data set, how they were verified, and under which licence they are."""
    from txeval.cli.data_catalogue import facts, heading, size
    from txeval.data.datasets import stated_licences

    heading(console, f"{dataset.name}: {len(files)} {'file' if len(files) == 1 else 'files'}")
    rows = []
    for file in files:
        rows += [("file", str(file.path))]
        rows += [("", f"{size(file.size)}, {'verified' if file.verified else 'NOT verified'}: {file.checked}")]
    stated = stated_licences([file.path for file in files]) if dataset.source.records else {}
    licences = [f"{licence or 'not stated'} (Zenodo record {record})" for record, licence in stated.items()]
    rows += [("licence", dataset.licence or "; ".join(licences) or "as the Zenodo record states")]
    facts(console, [*rows, *[("cite", citation) for citation in dataset.citation]])


COMMAND = Command(
    name="fetch",
    summary="fetch the files of a data set",
    description="Looks for the files in the folder that TXEVAL_DATA names and among the downloads, and fetches what is "
    "missing: goes on after an interruption, verifies size and digest, and puts a file under its name only when it is "
    "whole. HTTPS_PROXY and NO_PROXY are honoured; TXEVAL_OFFLINE=1 forbids to use the network.",
    epilog="""examples:
  txeval data fetch scperturb/ReplogleWeissman2022_rpe1
  txeval data fetch replogle_2022 --to /shared/data      # then TXEVAL_DATA=/shared/data on nodes without a network
""",
    configure=_configure,
    run=_run,
    position=30,
)
