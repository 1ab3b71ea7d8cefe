"""What a user writes to ask for an embedding."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from txeval.embed.base import EmbeddingSpec
from txeval.errors import InputError

__all__ = ["is_precomputed", "parse_spec", "parse_value", "rebase"]

#: Endings of files that hold embeddings.
SUFFIXES = (".npy", ".npz", ".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz")

_FORM = "write LABEL=SOURCE@option=value,option=value, where LABEL= and @... may be left out"

# An "@" starts the options only where a name and "=" follow, so that it may occur in a path.
_OPTIONS = re.compile(r"@(?=[A-Za-z_]\w*=)")
_NAME = re.compile(r"[A-Za-z_]\w*")
_INT = re.compile(r"[+-]?\d+")
_FLOAT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")


def is_precomputed(source: str) -> bool:
    """Whether a source says where an embedding lies, rather than naming what makes one."""
    lowered = source.lower()
    return source == "X" or ":" in source or "#" in source or "/" in source or lowered.endswith((*SUFFIXES, ".h5ad"))


def parse_spec(text: str) -> EmbeddingSpec:
    """Parse `LABEL=SOURCE@option=value,option=value`.

    Values are read as whole numbers, numbers, true / false, or else as text; quotes keep them text.

    Raises
    ------
    InputError
        Where the text has another form.

    Examples
    --------
    >>> parse_spec("PCA 50=pca@components=50")
    EmbeddingSpec(label='PCA 50', source='pca', options={'components': 50})
    >>> parse_spec("obsm:X_scvi")
    EmbeddingSpec(label='obsm:X_scvi', source='obsm:X_scvi', options={})
    """
    head, *rest = _OPTIONS.split(text.strip(), maxsplit=1)
    label, equals, source = head.partition("=") if "=" in head else ("", "", head)
    label, source = label.strip(), source.strip()
    if not source or (equals and not label):
        missing = "source" if not source else "label"
        raise InputError(f"embedding {text!r} has no {missing}", remedy=_FORM)
    if "@" in source and not is_precomputed(source):
        raise InputError(f"embedding {text!r}: {source.partition('@')[2]!r} is no option=value", remedy=_FORM)
    options: dict[str, Any] = {}
    for item in rest[0].split(",") if rest else []:
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not _NAME.fullmatch(name) or not value:
            raise InputError(f"embedding {text!r}: {item!r} is no option=value", remedy=_FORM)
        if name in options:
            raise InputError(f"embedding {text!r}: option {name} is given twice", remedy="give it once")
        options[name] = parse_value(value)
    return EmbeddingSpec(label or source, source, options)


def parse_value(text: str) -> Any:
    """Value of an option: a whole number, a number, true / false, or else text; quotes keep it text."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def rebase(spec: EmbeddingSpec, folder: str | Path) -> EmbeddingSpec:
    """Copy of a spec whose file, where it has a relative one, is looked for in a folder; its label stays."""
    path, hash_, element = spec.source.partition("#")
    is_file = bool(hash_) or "/" in path or path.lower().endswith((*SUFFIXES, ".h5ad"))
    if not is_file or path.startswith(("obsm:", "layer:")) or Path(path).expanduser().is_absolute():
        return spec
    return replace(spec, source=f"{Path(folder) / path}{hash_}{element}")
