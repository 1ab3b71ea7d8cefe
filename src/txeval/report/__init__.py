"""Views on score rows: tables of means, and how they look in a terminal, CSV, Markdown and LaTeX."""

from txeval.report.layout import detail_grids, full_grids, summary_grids
from txeval.report.render import FORMATS, print_grids, to_latex, to_markdown
from txeval.report.results import ResultsFolder
from txeval.report.summary import questions, summary
from txeval.report.tables import aggregate, full, holes, left_out, mark_untrained, references, remarks

__all__ = [
    "FORMATS",
    "ResultsFolder",
    "aggregate",
    "detail_grids",
    "full",
    "full_grids",
    "holes",
    "left_out",
    "mark_untrained",
    "print_grids",
    "questions",
    "references",
    "remarks",
    "summary",
    "summary_grids",
    "to_latex",
    "to_markdown",
]
