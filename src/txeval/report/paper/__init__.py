"""The tables of Bendidi et al. 2024: published values as data, and scores of one's own beside them."""

from txeval.report.paper.compare import beside, paper_grids
from txeval.report.paper.published import TABLES, errata, printed, published_scores, screen_of, screens

__all__ = ["TABLES", "beside", "errata", "paper_grids", "printed", "published_scores", "screen_of", "screens"]
