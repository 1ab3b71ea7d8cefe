"""`txeval data describe`: what a file seems to hold, with reasons."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from txeval.cli.base import Command, Parser, output_console
from txeval.destination import check_destination

if TYPE_CHECKING:
    from rich.console import Console

    from txeval.data.describe import Description, Proposal

__all__ = ["COMMAND", "show_description"]


def _configure(parser: Parser) -> None:
    parser.add_argument(
        "screen",
        metavar="FILE_OR_NAME",
        help="a screen (.h5ad, .zarr, 10x .h5, GCT, GCTX, loom, folder with matrix.mtx), or a name of the catalogue",
    )
    parser.add_argument(
        "--labels", metavar="FILE", help="table (.csv, .tsv) of labels to join; names of samples in its first column"
    )
    parser.add_argument("--out", metavar="FILE.yaml", help="write the proposal as the YAML of a run")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE.yaml where it exists")
    parser.add_argument("--columns", action="store_true", help="list every column of obs as well")
    parser.add_argument("--plain", action="store_true", help="no colours")


def _run(args: argparse.Namespace) -> int:
    path = Path(args.screen)
    # No name of the catalogue has a dot, and every file name that is mistyped is likely to.
    if "." not in args.screen and not path.exists():
        from txeval.cli.data_catalogue import describe_entry

        return describe_entry(args.screen)
    if args.out is not None:
        check_destination(args.out, suffixes=(".yaml", ".yml"), overwrite=args.overwrite)
    from txeval.data.describe import describe

    about = describe(path, labels=args.labels)
    console = output_console(plain=args.plain)
    show_description(about, console, columns=args.columns)
    if args.out is not None:
        from txeval.data.locate import whole_or_nothing
        from txeval.data.proposal import render

        with whole_or_nothing(Path(args.out)) as part:
            part.write_text(render(about), encoding="utf-8")
    _next(about, args, console)
    return 0


def show_description(about: Description, console: Console, *, columns: bool = False) -> None:
    """Print what a file seems to hold: facts, proposals with reasons, what to look at, what could be run."""
    from rich.table import Table
    from rich.text import Text

    from txeval.data.proposal import shown
    from txeval.data.readers import stem

    def section(title: str) -> None:
        console.print()
        console.print(Text(title, style="bold"))

    def grid(rows: Sequence[tuple[str, ...]], *, bold: int = -1, widest: int = 30) -> None:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 1))
        for column in range(len(rows[0]) - 1):
            width = max(len(line) for row in rows for line in row[column].split("\n"))
            table.add_column(width=min(width, widest), overflow="fold")
        table.add_column(overflow="fold")
        for row in rows:
            cells = [Text("\n".join(map(shown, text.split("\n")))) for text in row]
            if bold >= 0:
                cells[bold].stylize("bold")
            table.add_row(*cells)
        console.print(table)

    n, g = about.shape
    console.print(Text(f"{shown(stem(about.path))}: {about.kind}, {n:,} samples x {g:,} genes", style="bold"))
    more = [f"layers {', '.join(about.layers)}"] if about.layers else []
    more += [f"embeddings {', '.join(f'{key} ({d})' for key, d in about.obsm.items())}"] if about.obsm else []
    facts = [
        ("values", f"{about.scale} in {about.where} ({about.stored}): {about.scale_why}"),
        ("genes", about.genes),
        ("also there", "; ".join(more)),
    ]
    grid([(name, text) for name, text in facts if text])
    proposed = [proposal for proposal in about.proposals.values() if proposal.value is not None]
    unknown = [proposal for proposal in about.proposals.values() if proposal.value is None]
    if proposed:
        section("Proposed, and why")
        rows = []
        for proposal in proposed:
            value = proposal.value
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((proposal.role.replace("_", " "), text, _why(proposal)))
        grid(rows, bold=1)
    if unknown:
        section("Not proposed, and why")
        grid([(proposal.role.replace("_", " "), _why(proposal)) for proposal in unknown])
    if about.findings:
        section("Look at")
        grid([("-", finding.text + (f": {finding.remedy}" if finding.remedy else "")) for finding in about.findings])
    if columns:
        section("Columns of obs")
        rows = []
        for column in about.columns:
            text = column.shown(4) if column.kind in ("labels", "flag", "constant") else ""
            rows.append((column.name, f"{column.n:,} labels" if column.kind == "labels" else column.kind, text))
        grid(rows or [("none", "", "")])
    section("Levels")
    reasons = set(about.levels.values())
    levels = dict.fromkeys(["1 to 6"], next(iter(reasons))) if len(reasons) == 1 and "" not in reasons else about.levels
    grid([(name, f"no: {lacks}" if lacks else _has(name, about)) for name, lacks in levels.items()])


def _has(level: str, about: Description) -> str:
    if level.startswith("5"):
        return f"{about.n_targets:,} perturbed genes; txeval validate counts the known relationships among them"
    return "has what it needs"


def _why(proposal: Proposal) -> str:
    """The reason, then other values and rejected ones, each kind on a line."""
    lines = [proposal.why]
    for word, values in (("or", proposal.others), ("not", proposal.rejected)):
        if values:
            lines.append(f"{word} " + "; ".join(f"{name} ({remark})" for name, remark in values))
    return "\n".join(lines)


def _next(about: Description, args: argparse.Namespace, console: Console) -> None:
    from rich.text import Text

    console.print()
    if args.out is None:
        console.print(Text("Nothing was decided or written: --out run.yaml writes this as the YAML of a run."))
        return
    if about.complete:
        console.print(Text(f"Written: {args.out}. Read it, then: txeval validate {args.out}", overflow="fold"))
    else:
        console.print(
            Text(f"Written: {args.out}, which is INCOMPLETE: fill in what is missing first.", overflow="fold")
        )


COMMAND = Command(
    name="describe",
    summary="look at a file of your own: roles, controls, batches, scale, with reasons; or at a name of the catalogue",
    description="Looks at a screen of unknown layout and proposes which column holds what, each with its reason, and "
    "what cannot be known from the file. Decides nothing; --out writes the proposal as the YAML of a run.",
    epilog="""examples:
  txeval data describe screen.h5ad --out run.yaml
  txeval validate run.yaml
  txeval data describe filtered_feature_bc_matrix.h5 --labels cells.csv
""",
    configure=_configure,
    run=_run,
    position=20,
)
