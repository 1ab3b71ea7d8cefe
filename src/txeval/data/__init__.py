"""The screen: reading by blocks, validation, quality control, splits, relationships."""

from txeval.data.expression import LogNormExpression
from txeval.data.locate import fetch, find_file
from txeval.data.norman import prepare_norman
from txeval.data.relations import load_relations
from txeval.data.roles import Roles
from txeval.data.samples import Samples
from txeval.data.scale import require_scale
from txeval.data.screen import Screen, open_screen
from txeval.data.simulate import simulate_screen
from txeval.data.split import split

__all__ = [
    "LogNormExpression",
    "Roles",
    "Samples",
    "Screen",
    "fetch",
    "find_file",
    "load_relations",
    "open_screen",
    "prepare_norman",
    "require_scale",
    "simulate_screen",
    "split",
]
