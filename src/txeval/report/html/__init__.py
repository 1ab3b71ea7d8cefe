"""One self-contained HTML file for a results folder."""

from txeval.report.html.build import ReportOptions, write_report

__all__ = ["ReportOptions", "write_report"]
