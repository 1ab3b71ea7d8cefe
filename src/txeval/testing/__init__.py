"""For tests, ours and those of users: small screens, and tiny untrained models in the official layouts."""

from txeval.testing.models import make_tiny_cellplm, make_tiny_geneformer, make_tiny_scgpt, make_tiny_uce
from txeval.testing.screens import ROLES, make_adata, make_screen

__all__ = [
    "ROLES",
    "make_adata",
    "make_screen",
    "make_tiny_cellplm",
    "make_tiny_geneformer",
    "make_tiny_scgpt",
    "make_tiny_uce",
]
