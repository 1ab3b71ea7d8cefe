"""Names of genes: symbols, Ensembl ids and their versions."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["is_symbol", "looks_like_ensembl", "looks_like_symbols", "without_version"]

_ENSEMBL = re.compile(r"^ENS[A-Z]{0,6}G\d{11}")
_VERSIONED = re.compile(r"^(ENS[A-Z]{0,6}[GTP]\d{11})\.\d+$")
_SYMBOL = re.compile(r"^(?=.*[A-Za-z])[A-Za-z0-9][A-Za-z0-9.\-]*$")
#: HGNC symbols are upper case but for "orf"; those of the mouse begin with one capital.
_STRICT_SYMBOL = re.compile(r"^(?:[A-Z][A-Z0-9\-]*(?:orf\d+[A-Z]?)?|[A-Z][a-z0-9\-]+)(?:\.\d+)?$")


def without_version(name: str) -> str:
    """An Ensembl id without its version; any other name as it is.

    Examples
    --------
    >>> without_version("ENSG00000141510.18"), without_version("AC009229.6")
    ('ENSG00000141510', 'AC009229.6')
    """
    found = _VERSIONED.match(name)
    return found.group(1) if found else name


def looks_like_ensembl(names: Iterable[str]) -> bool:
    """Whether most names are Ensembl gene ids."""
    listed = [bool(_ENSEMBL.match(name)) for name in names]
    return bool(listed) and sum(listed) > len(listed) / 2


def is_symbol(name: str) -> bool:
    """Whether a text could be one gene symbol: letters, digits, dots and hyphens, no separator of several."""
    return bool(_SYMBOL.match(name))


def looks_like_symbols(names: Iterable[str]) -> bool:
    """Whether most names are spelled as HGNC (TP53, C1orf112) or mouse (Trp53) gene symbols are."""
    listed = [bool(_STRICT_SYMBOL.match(name)) and not _ENSEMBL.match(name) for name in names]
    return bool(listed) and sum(listed) > len(listed) / 2
