"""`txeval figures`: figures and tables for papers."""

from __future__ import annotations

import argparse
from pathlib import Path

from txeval.cli.base import Command, Parser, one_of, output_console
from txeval.destination import check_destination
from txeval.errors import unknown

__all__ = ["COMMAND", "write_figures"]

FORMATS = ("svg", "pdf", "png")
TABLES = {"latex": "tex", "markdown": "md", "csv": "csv", "xlsx": "xlsx"}


def _configure(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", help="results folder of `txeval run` or `txeval experiment`")
    parser.add_argument("--out", metavar="FOLDER", help="where they go (default: figures/ in the results folder)")
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        nargs="+",
        action="extend",
        type=one_of("format", FORMATS),
        help="svg (default), pdf, png (300 dpi)",
    )
    parser.add_argument("--only", metavar="NAME", nargs="+", action="extend", help="only these figures")
    parser.add_argument(
        "--tables",
        metavar="FORMAT",
        nargs="+",
        action="extend",
        type=one_of("format of tables", TABLES),
        help="the tables as well, as latex (booktabs), markdown, csv or xlsx",
    )


def _run(args: argparse.Namespace) -> int:
    from rich.text import Text

    folder = Path(args.folder)
    out = Path(args.out) if args.out else folder / "figures"
    made = write_figures(folder, out, args.format or ["svg"], only=args.only)
    made += _tables(folder, out, args.tables or [])
    console = output_console()
    for path in made:
        console.print(Text(str(path), overflow="fold"))
    return 0


def write_figures(folder: Path, out: Path, formats: list[str], *, only: list[str] | None = None) -> list[Path]:
    """Write every figure of a results folder, or some, in every format; give the files.

    Raises
    ------
    InputError
        No results, no such figure, a library that is missing, or a folder that cannot be written to.
    """
    from txeval.report.figures import list_figures, save

    check_destination(out, folder=True)
    figures = list_figures(folder)
    for name in only or []:
        if name not in figures:
            raise unknown("figure", name, figures, where=str(folder))
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for name, chart in figures.items():
        if only and name not in only:
            continue
        for kind in dict.fromkeys(formats):
            made.append(out / f"{name}.{kind}")
            save(chart, made[-1])
    return made


def _tables(folder: Path, out: Path, formats: list[str]) -> list[Path]:
    if not formats:
        return []
    from txeval import report
    from txeval.report.results import ResultsFolder
    from txeval.report.workbook import to_xlsx
    from txeval.text import csv_text

    results = ResultsFolder.open(folder)
    scores = results.scores
    out.mkdir(parents=True, exist_ok=True)
    made = []
    grids = {"summary": report.summary_grids(scores, results), "full": report.full_grids(scores)}
    frames = {"summary": report.summary(scores, results), "full": report.aggregate(scores)}
    for kind in dict.fromkeys(formats):
        for name in grids:
            path = out / f"table-{name}.{TABLES[kind]}"
            if kind == "xlsx":
                to_xlsx(grids[name], path)
            else:
                text = {
                    "latex": lambda name=name: report.to_latex(grids[name]),
                    "markdown": lambda name=name: report.to_markdown(grids[name]),
                    "csv": lambda name=name: csv_text(frames[name]),
                }[kind]()
                path.write_text(text, encoding="utf-8")
            made.append(path)
    return made


COMMAND = Command(
    name="figures",
    summary="figures (SVG, PDF, PNG) and tables (LaTeX, Markdown, CSV, XLSX) of a results folder",
    description="Writes a heat map of all levels, the post-processings of each level side by side, distributions over "
    "perturbations, and the curves of an experiment where the folder holds one. Needs the extra `report`.",
    epilog="""example:
  txeval figures results/ --format pdf --tables latex xlsx
""",
    configure=_configure,
    run=_run,
    position=46,
)
