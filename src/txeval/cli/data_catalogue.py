"""What the catalogue says of a data set, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from txeval.cli.base import output_console

if TYPE_CHECKING:
    from rich.console import Console

    from txeval.data.datasets import Dataset

__all__ = ["bullets", "describe_entry", "facts", "heading", "size"]


def size(number: float | None) -> str:
    """Bytes for people."""
    if number is None:
        return "size not stated"
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:,.1f} {name}"
    return f"{number:,.0f} bytes"


def heading(console: Console, text: str) -> None:
    """Print a title."""
    from rich.text import Text

    console.print(Text(text, style="bold"))


def facts(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    """Print names and what they are, in two columns."""
    from rich.table import Table
    from rich.text import Text

    from txeval.text import clean

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 1))
    for name, text in rows:
        table.add_row(Text(clean(name), no_wrap=True), Text(clean(text), overflow="fold"))
    console.print(table)


def bullets(console: Console, lines: Sequence[str]) -> None:
    """Print a list."""
    from rich.padding import Padding
    from rich.text import Text

    from txeval.text import clean

    for line in lines:
        console.print(Padding(Text(f"- {clean(line)}", overflow="fold"), (0, 0, 0, 1)))


def describe_entry(name: str, *, plain: bool = False) -> int:
    """Print what the catalogue knows of a data set; gives the exit status.

    Raises
    ------
    InputError
        There is no such data set; the nearest names are given.
    """
    from txeval.data.datasets import get_dataset

    dataset = get_dataset(name)
    console = output_console(plain=plain)
    heading(console, f"{dataset.name}: {dataset.title}")
    facts(
        console,
        [
            ("what", dataset.kind),
            ("use", dataset.use),
            ("values", dataset.scale or "to be determined from the file"),
            ("source", _source(dataset)),
            ("licence", dataset.licence or "as the Zenodo record states; printed when it is fetched"),
            *[("cite", citation) for citation in dataset.citation],
            ("here", _here(dataset)),
        ],
    )
    console.print()
    if dataset.columns:
        heading(console, "Columns of obs")
        facts(console, dataset.columns.items())
        console.print()
    heading(console, "Roles")
    facts(console, [(role, " or ".join(names)) for role, names in dataset.roles.items()])
    console.print()
    heading(console, "Preparation")
    bullets(console, dataset.recipe)
    console.print()
    if dataset.expected is not None:
        heading(console, f"Expected sizes ({dataset.expected.where})")
        about = {what: f"about {value:,}" if within else f"{value:,}" for what, (value, within) in _sizes(dataset)}
        rows = [(what.replace("_", " "), text) for what, text in about.items()]
        for split, sizes in dataset.expected.splits.items():
            rows += [(split, ", ".join(f"{value:,} {what}" for what, value in sizes.items()))]
        facts(console, rows)
        console.print()
    if dataset.unverified:
        heading(console, "Not verified")
        bullets(console, dataset.unverified)
        console.print()
    heading(console, "Next")
    if dataset.family:
        example = f"{dataset.name}/{dataset.examples[0]}"
        commands = [f"txeval data list {dataset.name}", f"txeval data prepare {example}"]
    else:
        commands = [f"txeval data prepare {dataset.name} --out {dataset.stem}.h5ad"]
    for command in commands:
        console.print(f"  {command}", soft_wrap=True)
    return 0


def _sizes(dataset: Dataset) -> list[tuple[str, tuple[int, int]]]:
    return list(dataset.expected.sizes.items()) if dataset.expected is not None else []


def _source(dataset: Dataset) -> str:
    from txeval.data.locate import catalogue

    if dataset.source.entry:
        return catalogue()[dataset.source.entry].url
    files = ", ".join(dataset.source.files) or f"the file {dataset.source.pattern}"
    return f"{files.format(name='NAME')} of Zenodo record {' or '.join(map(str, dataset.source.records))}"


def _here(dataset: Dataset) -> str:
    from txeval.data.datasets import find_dataset
    from txeval.data.locate import cache_folder, data_folders

    if dataset.family:
        return "depends on the screen"
    found = find_dataset(dataset)
    if found is None:
        places = ", ".join(map(str, [*data_folders(), cache_folder()]))
        return f"no; looked in {places}"
    return ", ".join(str(file.path) for file in found)
