"""`txeval data prepare`: from published files, or files of one's own, to one checked file."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from txeval.cli.base import Command, Parser, Stopped, one_of, output_console
from txeval.cli.data_fetch import GO_ON, add_file_option, fetch_files, show_files
from txeval.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from txeval.data.prepare import Prepared, Recipe
    from txeval.data.recipes import PreparedDataset

__all__ = ["COMMAND", "memory"]

#: What the libraries and one block take (`txeval.data.prepare.LEAST_MEMORY`, which is not imported for every call).
LEAST_MEMORY = 512 * 2**20


def memory(text: str) -> int:
    """Argument type: an amount of memory such as 4G, 512M or 6.5GiB, in bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.I)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory: write 4G or 512M")
    amount = int(float(found[1]) * 2 ** {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2].upper()])
    if amount < LEAST_MEMORY:
        raise argparse.ArgumentTypeError(f"{text} is too little: {LEAST_MEMORY // 2**20}M is the least")
    return amount


def _choice(text: str) -> tuple[str, str]:
    name, equals, label = text.partition("=")
    if not (name and equals and label):
        raise argparse.ArgumentTypeError(f"{text!r}: write COLUMN=LABEL")
    return name, label


def _configure(parser: Parser) -> None:
    parser.add_argument(
        "what",
        metavar="NAME_OR_FILE",
        nargs="+",
        help="a data set of `txeval data list`, or the files of a screen in order",
    )
    parser.add_argument("--out", metavar="FILE", help=".h5ad file or .zarr folder (default: NAME.h5ad here)")
    add_file_option(parser)
    how = parser.add_argument_group("what is done")
    how.add_argument("--layer", metavar="NAME", help="take this layer instead of X")
    how.add_argument("--layout", type=one_of("layout", ("csr", "dense")), default="csr", help="csr (default) or dense")
    how.add_argument(
        "--join",
        type=one_of("join", ("outer", "inner", "same")),
        default="outer",
        help="genes of files that differ: outer (default) all, inner common ones, same: refuse",
    )
    how.add_argument("--genes", metavar="FILE", help="text file with the genes to keep, one a line, in this order")
    how.add_argument("--gene-names", metavar="COLUMN", help="column of var that tells genes apart (default: its index)")
    how.add_argument("--min-counts", metavar="N", type=float, help="keep samples with more counts than this")
    how.add_argument(
        "--keep",
        metavar="COLUMN=LABEL",
        type=_choice,
        nargs="+",
        action="extend",
        help="keep samples with these labels",
    )
    how.add_argument(
        "--leave-out", metavar="COLUMN=LABEL", type=_choice, nargs="+", action="extend", help="leave out such samples"
    )
    how.add_argument("--missing", metavar="VALUE", type=float, help="what stands for values that are not finite")
    roles = parser.add_argument_group("columns of obs, where those of the catalogue are not right")
    for name in ("perturbation", "control-column", "batch", "target-gene", "cell-line"):
        roles.add_argument(f"--{name}", metavar="COLUMN")
    roles.add_argument("--control", metavar="LABEL", nargs="+", action="extend")
    run = parser.add_argument_group("how it is done")
    run.add_argument("--max-memory", metavar="SIZE", type=memory, default="4G", help="never take more (default: 4G)")
    run.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    run.add_argument("--plain", action="store_true", help="plain lines instead of a progress bar")


def _run(args: argparse.Namespace) -> int:
    from txeval.data.datasets import get_dataset

    first = args.what[0]
    try:
        if len(args.what) == 1 and not Path(first).exists() and Path(first).suffix not in (".h5ad", ".zarr", ".h5"):
            return _prepare_named(get_dataset(first), args)
        return _prepare_files(args)
    except KeyboardInterrupt:
        raise Stopped(GO_ON) from None


def _recipe(args: argparse.Namespace, min_counts: float = 0) -> Recipe:
    from txeval.data.prepare import Recipe

    genes = None
    if args.genes is not None:
        try:
            lines = Path(args.genes).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as why:
            raise InputError(f"{args.genes} cannot be read as text ({why})", remedy="one gene a line") from None
        genes = tuple(line.strip() for line in lines if line.strip())
    choices: dict[str, dict[str, tuple[str, ...]]] = {"keep": {}, "leave_out": {}}
    for flag, chosen in choices.items():
        for name, label in getattr(args, flag) or ():
            chosen[name] = (*chosen.get(name, ()), label)
    return Recipe(
        layer=args.layer,
        layout=args.layout,
        join=args.join,
        genes=genes,
        gene_names=args.gene_names,
        min_counts=min_counts if args.min_counts is None else args.min_counts,
        keep=choices["keep"],
        leave_out=choices["leave_out"],
        missing=args.missing,
    )


def _prepare_named(dataset: Any, args: argparse.Namespace) -> int:
    from txeval.cli.tracking import tracking
    from txeval.data.recipes import prepare_dataset
    from txeval.data.writing import SUFFIXES
    from txeval.destination import check_destination

    out = check_destination(args.out or f"{dataset.stem}.h5ad", suffixes=SUFFIXES)
    console = output_console(plain=args.plain)
    files = fetch_files(dataset, names=args.file or (), plain=args.plain)
    show_files(dataset, files, console)
    console.print()
    roles = {
        name: getattr(args, name)
        for name in ("perturbation", "control", "control_column", "batch", "target_gene", "cell_line")
    }
    with tracking("samples", plain=args.plain) as progress:
        done = prepare_dataset(
            dataset,
            files,
            out,
            recipe=_recipe(args, dataset.min_counts),
            roles=roles,
            max_memory=args.max_memory,
            overwrite=args.overwrite,
            progress=progress,
        )
    _show_dataset(done, console)
    return 0


def _prepare_files(args: argparse.Namespace) -> int:
    from txeval.cli.tracking import tracking
    from txeval.data.prepare import prepare_screen

    if args.out is None:
        raise InputError("where to?", remedy="name the file to write: --out FILE.h5ad")
    if args.file:
        raise InputError("--file is for data sets by name", remedy="leave it out")
    with tracking("samples", plain=args.plain) as progress:
        done = prepare_screen(
            args.what,
            args.out,
            _recipe(args),
            max_memory=args.max_memory,
            overwrite=args.overwrite,
            progress=progress,
        )
    from txeval.cli.data_catalogue import bullets, facts, heading

    console = output_console(plain=args.plain)
    heading(console, _title(done))
    facts(console, _made(done))
    if done.report["notes"]:
        console.print()
        heading(console, "Noted")
        bullets(console, done.report["notes"])
    console.print(f"\nNext: txeval data describe {done.path}", soft_wrap=True)
    return 0


def _made(done: Prepared) -> list[tuple[str, str]]:
    """What became of a preparation, as names and facts."""
    from txeval.cli.data_catalogue import size

    path = done.path
    taken = sum(item.stat().st_size for item in path.rglob("*")) if path.is_dir() else path.stat().st_size
    rows = [("stored", f"{done.dtype}, {size(taken)}")]
    for part in done.report.get("parts", ()):
        kept = f"{part['kept']:,} of {part['samples']:,} samples, {part['genes']:,} genes"
        rows += [(part["file"], f"{kept}; {part['stored']}; {part['scale']}")]
    rows += [("left out", f"{count:,}: {reason}") for reason, count in done.report.get("left_out", {}).items()]
    lacking = done.report.get("genes_not_found") or []
    if lacking:
        rows += [("not found", f"{len(lacking):,} of the genes asked for, filled with 0: {', '.join(lacking[:10])}")]
    if done.reused:
        return [*rows, ("made", "before, from the same files in the same way: left as it is")]
    again = f"; {done.resumed:,} samples were there from an earlier attempt" if done.resumed else ""
    peak = f", at most {size(done.peak_bytes)} of memory" if done.peak_bytes else ""
    return [*rows, ("made", f"in {done.seconds:,.0f} s{peak}{again}")]


def _title(done: Prepared) -> str:
    return f"{done.path}: {done.shape[0]:,} samples x {done.shape[1]:,} genes"


def _show_dataset(done: PreparedDataset, console: Console) -> None:
    from txeval.cli.data_catalogue import bullets, facts, heading

    heading(console, _title(done.prepared))
    roles = [
        (name.replace("_", " "), ", ".join(value) if isinstance(value, tuple) else value)
        for name, value in vars(done.roles).items()
        if value not in (None, ())
    ]
    facts(console, [*_made(done.prepared), ("values", f"{done.scale} ({done.scale_note})"), *roles])
    console.print()
    heading(console, "Sizes")
    if done.checks:
        _show_checks(done, console)
    else:
        facts(console, [(what.replace("_", " "), f"{value:,}") for what, value in done.sizes.items()])
    if done.notes:
        console.print()
        heading(console, "Noted")
        bullets(console, done.notes)
    console.print()
    heading(console, "Next")
    if done.run_file is None:
        console.print(f"  txeval data describe {done.prepared.path}", soft_wrap=True)
        return
    for verb in ("validate", "run"):
        console.print(f"  txeval {verb} {done.run_file}", soft_wrap=True)


def _show_checks(done: PreparedDataset, console: Console) -> None:
    """Print the published sizes beside those found."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 1))
    for name in ("", "published", "found", ""):
        table.add_column(name, justify="right" if name else "left")
    for check in done.checks:
        off = check.found - check.expected
        verdict: str = check.verdict
        if verdict != "as published":
            verdict = f"{off:+,} ({_percent(off, check.expected)}): {verdict}"
        published = f"about {check.expected:,}" if check.within else f"{check.expected:,}"
        table.add_row(Text(check.what.replace("_", " ")), published, f"{check.found:,}", Text(verdict))
    console.print(table)
    differ = sum(check.verdict == "differs" for check in done.checks)
    where = done.dataset.expected.where if done.dataset.expected is not None else ""
    console.print(Text(f" {differ or 'none'} of {len(done.checks)} differ from {where}"))


def _percent(off: int, expected: int) -> str:
    if not expected:
        return "expected none"
    share = 100 * off / expected
    return f"{share:+,.0f} %" if abs(share) >= 10 else f"{share:+.2g} %"


COMMAND = Command(
    name="prepare",
    summary="make one checked file of a data set, or of files of your own",
    description="Fetches a data set by name and makes one file of it: parts put together, stored by rows in the "
    "smallest type that holds the values, quality filter, sizes held against the published ones; and writes the "
    "description of a run beside it. Or does the same with files of your own. Block by block, in bounded memory; a run "
    "that is stopped or killed goes on where it was.",
    epilog="""examples:
  txeval data prepare norman_2019_devel
  txeval data prepare replogle_2022 --out data/replogle.zarr --max-memory 8G
  txeval data prepare lane1.h5ad lane2.h5ad --out screen.h5ad --min-counts 1000 --leave-out guide=unassigned
""",
    configure=_configure,
    run=_run,
    position=40,
)
