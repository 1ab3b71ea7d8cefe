"""`txeval paper`: the paper's tables, and scores of one's own beside them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from txeval.cli.base import Command, Parser, one_of, output_console
from txeval.destination import check_destination
from txeval.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COMMAND"]

TABLES = tuple(f"table{number}" for number in range(1, 11))
SCREENS = ("replogle_2022", "l1000_crispr")
FORMATS = ("terminal", "csv", "markdown", "latex", "xlsx")


def _configure(parser: Parser) -> None:
    parser.add_argument(
        "table",
        metavar="TABLE",
        type=one_of("table", TABLES),
        help="table1 (data sets), table2 (best post-processing), table3 to 6 (Replogle), table7 to 10 (L1000)",
    )
    parser.add_argument("folders", metavar="DIR", nargs="*", help="results folders, for scores beside the printed ones")
    parser.add_argument(
        "--as",
        dest="stands_for",
        metavar="SCREEN",
        type=one_of("screen of the paper", SCREENS),
        help="the paper's screen that the results are of (default: told from the name of the data set)",
    )
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        default="terminal",
        type=one_of("format", FORMATS),
        help="terminal (default), csv, markdown, latex or xlsx (with --out)",
    )
    parser.add_argument("--out", metavar="FILE", help="write to this file instead")
    parser.add_argument("--plain", action="store_true", help="no colours")


def _run(args: argparse.Namespace) -> int:
    from txeval import report
    from txeval.report.paper import beside, paper_grids, published_scores
    from txeval.report.workbook import to_xlsx
    from txeval.text import csv_text

    if args.format == "xlsx" and not args.out:
        raise InputError("an XLSX file cannot be printed", remedy="name a file: --out table.xlsx")
    if args.format == "terminal" and args.out:
        raise InputError("--out is for a file format", remedy="add --format csv, markdown, latex or xlsx")
    if args.out:
        check_destination(args.out, parents=False)
    scores, manifests = _read(args.folders)
    if args.format == "csv" and args.table != "table1":
        frame = published_scores()
        frame = frame[frame["table"] == args.table]
        if scores is not None:
            ours = beside(args.table, scores, stands_for=args.stands_for)
            keys = ["table", "screen", "model", "post_processing", "task", "metric", "subset", "printed", "value", "sd"]
            frame = frame.merge(ours, on=keys, how="left")
        return _write(csv_text(frame), args.out)
    grids = paper_grids(args.table, scores, manifests=manifests, stands_for=args.stands_for)
    if args.format == "xlsx":
        to_xlsx(grids, Path(args.out))
        return _say(args.out)
    if args.format == "markdown":
        return _write(report.to_markdown(grids), args.out)
    if args.format == "latex":
        return _write(report.to_latex(grids), args.out)
    if args.format == "csv":
        return _write(csv_text(_as_frame(grids)), args.out)
    report.print_grids(grids, output_console(plain=args.plain))
    return 0


def _read(folders: list[str]) -> tuple[pd.DataFrame | None, list[dict[str, Any]]]:
    if not folders:
        return None, []
    import pandas as pd

    from txeval import report
    from txeval.run import Store, read_scores

    frames = [report.mark_untrained(read_scores(Path(folder))) for folder in folders]
    return pd.concat(frames, ignore_index=True), [Store(Path(folder)).manifest() for folder in folders]


def _as_frame(grids: list[Any]) -> pd.DataFrame:
    import pandas as pd

    [grid] = grids
    names = [*(name or "fact" for name in grid.index), *(column.label for column in grid.columns)]
    rows = [[*row.names, *(cell.text for cell in row.cells)] for row in grid.rows]
    return pd.DataFrame(rows, columns=names)


def _write(text: str, out: str | None) -> int:
    if out is None:
        sys.stdout.write(text)
        return 0
    Path(out).write_text(text, encoding="utf-8")
    return _say(out)


def _say(out: str) -> int:
    print(f"written: {out}", file=sys.stderr)
    return 0


COMMAND = Command(
    name="paper",
    summary="the tables of Bendidi et al. 2024, and your scores beside them",
    description="Prints a table of the paper with the marks of the numbers that contradict each other. With results "
    "folders: your scores of the same model, post-processing and metric below each printed one, and the difference in "
    "units of the printed standard deviation.",
    epilog="""example:
  txeval paper table2
  txeval paper table3 results/ --as replogle_2022
""",
    configure=_configure,
    run=_run,
    position=45,
)
