"""The look that every view shares: colours that colour-blind people can tell apart, and names for people."""

from __future__ import annotations

__all__ = [
    "ABOVE",
    "BASELINE",
    "BELOW",
    "CATEGORIES",
    "FONT",
    "POST_COLOURS",
    "POST_TITLES",
    "post_title",
    "short_post",
    "with_post",
]

#: Categories in order (Okabe and Ito 2008; yellow left out, as it cannot be seen on white).
CATEGORIES: tuple[str, ...] = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7A5195", "#8C8C8C")

#: A score above what is known without information, and one below it.
ABOVE, BELOW = "#2F7FC1", "#D9822B"

#: The random baseline and chance.
BASELINE = "#8C8C8C"

#: One colour per post-processing, the same in every figure.
POST_COLOURS: dict[str, str] = {
    "raw": "#7F7F7F",
    "centering": "#0072B2",
    "center_scaling": "#009E73",
    "tvn": "#D55E00",
}

#: Post-processings as people write them.
POST_TITLES: dict[str, str] = {
    "raw": "no post-processing",
    "centering": "centering",
    "center_scaling": "center scaling",
    "tvn": "TVN",
}

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def post_title(name: str) -> str:
    """Name of a post-processing for people."""
    return POST_TITLES.get(name, name)


def short_post(name: str) -> str:
    """The same where there is little room."""
    return {"raw": "raw", "center_scaling": "scaling"}.get(name, post_title(name))


def with_post(name: str) -> str:
    """The same within a sentence."""
    return "without post-processing" if name == "raw" else f"with {post_title(name)}"
