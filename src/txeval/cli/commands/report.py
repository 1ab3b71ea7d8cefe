"""`txeval report`: one HTML file about a results folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from txeval.cli.base import Command, Parser, at_least, complain, one_of

__all__ = ["COMMAND"]

LAYOUTS = ("pca", "umap")


def _configure(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", help="results folder of `txeval run` or `txeval merge`")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: DIR/report.html)")
    parser.add_argument(
        "--layout",
        metavar="NAME",
        default="pca",
        type=one_of("layout", LAYOUTS),
        help="2-D view of the samples: pca (default), or umap (needs pip install 'txeval[umap]')",
    )
    parser.add_argument(
        "--cells",
        metavar="N",
        type=at_least(0),
        default=3000,
        help="samples in the 2-D view, drawn at random (default: 3000; 0 for no view)",
    )
    parser.add_argument(
        "--no-embeddings",
        action="store_true",
        help="do not read the stored embeddings: quick, but without neighbours, map and 2-D view",
    )
    parser.add_argument("--plain", action="store_true", help="say nothing but the path of the file")


def _run(args: argparse.Namespace) -> int:
    path = write_report(
        Path(args.folder),
        args.out,
        tell=not args.plain,
        cells=args.cells,
        layout=args.layout,
        embeddings=not args.no_embeddings,
    )
    print(path)
    return 0


def write_report(folder: Path, out: str | None = None, *, tell: bool = False, **options: Any) -> Path:
    """Write the report and give its path; say on stderr what is being made."""
    from txeval.report import html

    def progress(text: str) -> None:
        if tell:
            complain(text, kind="report: ")

    return html.write_report(folder, out, html.ReportOptions(**options), progress)


COMMAND = Command(
    name="report",
    summary="make one HTML file that people read",
    description="Writes one self-contained HTML file: which representation is best and how sure that is, every score "
    "with its interval, each level, each perturbation, known relationships, a map, provenance. It works offline and "
    "from a mail attachment.",
    configure=_configure,
    run=_run,
    position=45,
)
