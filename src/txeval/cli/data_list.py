"""`txeval data list`: the data sets that there are by name."""

from __future__ import annotations

import argparse

from txeval.cli.base import Command, Parser, output_console

__all__ = ["COMMAND"]


def _configure(parser: Parser) -> None:
    parser.add_argument("family", metavar="FAMILY", nargs="?", help="list the members of a family, such as scperturb")


def _run(args: argparse.Namespace) -> int:
    return _list_all() if args.family is None else _list_family(args.family)


def _list_all() -> int:
    from rich.table import Table
    from rich.text import Text

    from txeval.data.datasets import find_dataset, list_datasets
    from txeval.data.locate import data_folders
    from txeval.errors import InputError

    data_folders()  # a folder that does not exist is said once, not for each data set
    console = output_console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, justify in (
        ("name", "left"),
        ("samples", "right"),
        ("genes", "right"),
        ("what", "left"),
        ("here", "left"),
    ):
        table.add_column(name, justify=justify, no_wrap=name == "name")  # type: ignore[arg-type]
    for dataset in list_datasets():
        sizes = dataset.expected.sizes if dataset.expected is not None else {}
        try:
            here = "" if dataset.family else "yes" if find_dataset(dataset) else "no"
        except InputError:
            here = "damaged"
        counted = [f"{sizes[what][0]:,}" if what in sizes else "" for what in ("samples", "genes")]
        name = f"{dataset.name}/NAME" if dataset.family else dataset.name
        table.add_row(Text(name), *counted, Text(dataset.title), here)
    console.print(table)
    console.print()
    for command, what in (
        ("txeval data describe NAME", "what it is, where it comes from, under which licence"),
        ("txeval data prepare NAME", "fetch it and make one checked file of it"),
        ("txeval data list scperturb", "the screens of scPerturb (asks Zenodo)"),
    ):
        console.print(Text(f"  {command:28}{what}"), soft_wrap=True)
    return 0


def _list_family(name: str) -> int:
    from rich.table import Table
    from rich.text import Text

    from txeval.cli.data_catalogue import size
    from txeval.data.datasets import find_dataset, get_dataset, list_family
    from txeval.errors import InputError

    family = get_dataset(name)
    if not family.family:
        raise InputError(f"{name} is one data set", remedy=f"see it with txeval data describe {name}")
    record = list_family(family)
    console = output_console()
    console.print(
        Text(f"{record.title or family.title} (record {record.id}, licence {record.licence or 'not stated'})")
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column, justify in (("name", "left"), ("size", "right"), ("here", "left")):
        table.add_column(column, justify=justify, no_wrap=column == "name")  # type: ignore[arg-type]
    others = 0
    for file in sorted(record.files, key=lambda file: file.name.lower()):
        if not file.name.endswith(".h5ad"):
            others += 1
            continue
        member = f"{name}/{file.name.removesuffix('.h5ad')}"
        table.add_row(Text(member), size(file.size), "yes" if find_dataset(get_dataset(member)) else "")
    console.print(table)
    if others:
        console.print(f"{others} other files of the record are no .h5ad")
    return 0


COMMAND = Command(
    name="list",
    summary="data sets that there are by name",
    description="Lists the data sets that `fetch` and `prepare` know by name, and whether their files are here: in the "
    "folder that TXEVAL_DATA names, or among the downloads.",
    configure=_configure,
    run=_run,
    position=10,
)
