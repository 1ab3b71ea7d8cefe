"""Views on score rows: tables of means, and how they look in a terminal, CSV, Markdown and LaTeX."""

from txeval.report.layout import detail_grids, full_grids, summary_grids
from txeval.report.render import FORMATS, print_grids, to_csv, to_latex, to_markdown
from txeval.report.tables import BASELINES, aggregate, full, holes, left_out, mark_untrained, remarks, summary

__all__ = [
    "BASELINES",
    "FORMATS",
    "aggregate",
    "detail_grids",
    "full",
    "full_grids",
    "holes",
    "left_out",
    "mark_untrained",
    "print_grids",
    "remarks",
    "summary",
    "summary_grids",
    "to_csv",
    "to_latex",
    "to_markdown",
]
