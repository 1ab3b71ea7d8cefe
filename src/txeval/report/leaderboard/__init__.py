"""Leaderboards: a static site from results folders, and the check of a folder that is to be submitted."""

from txeval.report.leaderboard.check import Finding, check_submission
from txeval.report.leaderboard.collect import Board, load_sources, make_boards
from txeval.report.leaderboard.ranks import rank_scores
from txeval.report.leaderboard.recompute import recompute
from txeval.report.leaderboard.site import check_site, page, write_site

__all__ = [
    "Board",
    "Finding",
    "check_site",
    "check_submission",
    "load_sources",
    "make_boards",
    "page",
    "rank_scores",
    "recompute",
    "write_site",
]
