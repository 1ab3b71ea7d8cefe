"""Known relationships between genes: the five databases of the benchmark, and a user's own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from txeval.data.locate import Progress, catalogue, fetch, file_digest
from txeval.data.text_table import find_separator
from txeval.errors import InputError, unknown

__all__ = ["DATABASES", "load_relations", "read_relations", "relation_files", "relations_digest"]

#: The databases of the published benchmark.
DATABASES: tuple[str, ...] = ("CORUM", "HuMAP", "Reactome", "SIGNOR", "StringDB")

_SUFFIXES = (".txt", ".csv", ".tsv")
_COLUMNS = ["entity1", "entity2"]
# Names that a column of genes goes by. Anything else could as well be the first pair of a file without a header.
_HEADER = re.compile(
    r"(entity|gene|protein|symbol|source|target|node|interactor|partner|from|to)"
    r"([ _.-]?(name|symbol|id))?[ _.-]?[12ab]?|[ab]",
    re.IGNORECASE,
)
_COMPANION = re.compile(r"(readme|licen[cs]e|citation|changelog|notes?)\b", re.IGNORECASE)


def load_relations(
    folder: Path | str | None = None,
    names: Iterable[str] | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, pd.DataFrame]:
    """Load databases of known relationships.

    Parameters
    ----------
    folder
        A user's own databases: one file, or a folder of files NAME.txt, NAME.csv or NAME.tsv. They alone are
        loaded. Without it, the five databases of `DATABASES`, found by `txeval.data.locate.fetch`: in the data
        folders, else downloaded.
    names
        Load these only. One of `DATABASES` that is not in `folder` is then looked for as if there were none.
    progress
        Called while a database is downloaded, with (bytes done, bytes in all, text).

    Returns
    -------
    dict
        Name -> columns `entity1`, `entity2` (text), one row per line of the file, in sorted order of names. The
        `attrs` of each: `source` (path), `sha256`, and of the five also `licence`, `non_commercial`, `citation`.

    Raises
    ------
    InputError
        For a name or file that does not exist, a file that cannot be read as pairs, or a failed download.
    """
    own: dict[str, Path] = {}
    if folder is not None:
        own, _ = relation_files(folder)
    if names is None:
        wanted = sorted(own) if folder is not None else list(DATABASES)
    else:
        wanted = sorted(set(names))
        for name in wanted:
            if name not in own and name not in DATABASES:
                raise unknown(
                    "relationship database", name, [*own, *DATABASES], where=str(folder) if folder is not None else ""
                )
    loaded = {}
    for name in wanted:
        entry = catalogue().get(f"relationships/{name}")
        path = own.get(name)
        if path is None:
            path = fetch(f"relationships/{name}", progress=progress)
        frame = read_relations(path)
        if entry is not None and frame.attrs["sha256"] == entry.sha256:
            frame.attrs |= {
                "licence": entry.licence,
                "non_commercial": entry.non_commercial,
                "citation": entry.citation,
            }
        loaded[name] = frame
    return loaded


def relation_files(folder: Path | str) -> tuple[dict[str, Path], dict[str, str]]:
    """List the databases of a folder (or of one file) by name.

    Returns
    -------
    databases
        Name (the file's, without its suffix) -> path.
    left_out
        File name -> why it is no database: tables of another shape, and companions such as a README.

    Raises
    ------
    InputError
        Where there is nothing to load, or two files have the same name.
    """
    folder = Path(folder)
    if folder.is_file():
        return {folder.stem: folder}, {}
    if not folder.is_dir():
        raise InputError(f"relationships: {folder} does not exist", remedy="give a folder, or one file of pairs")
    databases: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        if _COMPANION.match(path.stem):
            left_out[path.name] = "a companion file by its name"
            continue
        header = _header(path)
        if len(header) > 2 and not _named(header):
            left_out[path.name] = f"{len(header)} columns, none called entity1 and entity2"
            continue
        if len(header) == 2 and not _names_columns(header) and any(" " in name for name in header):
            left_out[path.name] = f"its first line, {' | '.join(header)[:60]!r}, is neither a header nor two genes"
            continue
        if path.stem in databases:
            raise InputError(
                f"{databases[path.stem]} and {path.name} are two databases of one name", remedy="rename one of them"
            )
        databases[path.stem] = path
    if not databases:
        reasons = "".join(f"; {name} left out: {why}" for name, why in left_out.items())
        raise InputError(
            f"relationships: {folder} has no file of pairs ({', '.join(_SUFFIXES)}){reasons}",
            remedy="put files there with a first line entity1,entity2 and one pair of gene symbols per line",
        )
    return databases, left_out


def read_relations(path: Path | str) -> pd.DataFrame:
    """Read one file of pairs: a header, then one pair per line, separated by comma, tab or semicolon.

    Returns
    -------
    DataFrame
        `entity1`, `entity2` as text without surrounding blanks; `attrs`: `source` and `sha256`.

    Raises
    ------
    InputError
        For a file that is missing, empty, not text, without a header, or with a line that is no pair.
    """
    path = Path(path)
    header = _header(path)
    if not any(header):
        raise InputError(f"{path} is empty", remedy="it must have a first line entity1,entity2, then pairs")
    if len(header) < 2:
        raise InputError(f"{path} has one column, {header[0][:40]!r}", remedy="give two, entity1 and entity2")
    if not _named(header):
        if len(header) > 2:
            raise InputError(
                f"{path} has {len(header)} columns and none are called entity1 and entity2",
                remedy="name the two columns of gene symbols so",
            )
        if not _names_columns(header):
            raise InputError(
                f"the first line of {path} is {','.join(header)[:80]!r}, which does not name columns",
                remedy="put the line entity1,entity2 on top",
            )
    try:
        frame = pd.read_csv(
            path, sep=_separator(path), dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=True
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as why:
        raise InputError(f"{path} cannot be read as pairs: {' '.join(str(why).split())}") from None
    # Where every line has more fields than the header, pandas takes the first ones as row names.
    if not isinstance(frame.index, pd.RangeIndex):
        raise InputError(f"{path} cannot be read as pairs: its lines have more fields than its header")
    frame.columns = pd.Index(header)
    if _named(header):
        lowered = [name.lower() for name in header]
        frame = frame.iloc[:, [lowered.index(name) for name in _COLUMNS]]
    frame.columns = pd.Index(_COLUMNS)
    frame = pd.DataFrame({name: frame[name].fillna("").str.strip() for name in _COLUMNS})
    if frame.empty:
        raise InputError(f"{path} has a header and no pairs", remedy="add one pair of gene symbols per line")
    holes = (frame == "").any(axis=1).to_numpy()
    if holes.any():
        raise InputError(
            f"{path}: {int(holes.sum()):,} of {len(frame):,} pairs lack a gene, the first is pair "
            f"{int(holes.argmax()) + 1}",
            remedy="give two gene symbols on every line",
        )
    frame.attrs = {"source": str(path), "sha256": file_digest(path)}
    return frame


def relations_digest(relations: Mapping[str, pd.DataFrame]) -> str:
    """Digest of the names and pairs of databases; where the files lie does not enter."""
    digest = hashlib.sha256()
    for name in sorted(relations):
        pairs = relations[name][_COLUMNS].to_numpy(dtype=object)
        digest.update(f"{name}\x1e{len(pairs)}\x1e".encode())
        digest.update("\x1f".join(np.ravel(pairs)).encode())
    return digest.hexdigest()


def _named(header: list[str]) -> bool:
    return set(_COLUMNS) <= {name.lower() for name in header}


def _names_columns(header: list[str]) -> bool:
    return _named(header) or all(_HEADER.fullmatch(name) for name in header)


def _first_line(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"relationships: file {path} does not exist")
    try:
        with path.open(encoding="utf-8-sig") as file:
            return next((line for line in file if line.strip()), "").rstrip("\r\n")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file", remedy="give pairs of gene symbols as UTF-8 text") from None


def _separator(path: Path) -> str:
    line = _first_line(path)
    return find_separator([line]) if any(sign in line for sign in "\t,;") else ","


def _header(path: Path) -> list[str]:
    separator = _separator(path)
    return [name.strip().strip('"') for name in _first_line(path).split(separator)]
