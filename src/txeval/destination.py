"""Whether a result can be written where it is to go, asked before the work that makes it."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

from txeval.errors import InputError

__all__ = ["check_destination", "require_suffix"]


def require_suffix(path: Path, suffixes: Collection[str]) -> str:
    """Suffix of a file name, lower case, with the dot; InputError for one that is not among `suffixes`."""
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise InputError(
            f"{path}: the suffix {suffix!r} says no format: this is written as {' or '.join(suffixes)}",
            remedy=f"end the name in {' or '.join(suffixes)}",
        )
    return suffix


def check_destination(
    path: Path | str,
    *,
    option: str = "--out",
    folder: bool = False,
    suffixes: Collection[str] = (),
    parents: bool = True,
    overwrite: bool = True,
    remedy: str = "allow it with --overwrite",
) -> Path:
    """Check that a file or folder can be written, without leaving a trace.

    A temporary file is made in the nearest folder that exists: rights, read-only file systems and quotas differ too
    much to be read from the mode of a folder.

    Parameters
    ----------
    option
        What the user names the place with, for the messages; "": an argument without a flag.
    folder
        Whether a folder is to be written; a screen in `.zarr` is a folder by its suffix.
    suffixes
        Suffixes that the name may have, lower case, with the dot; empty: any.
    parents
        Whether missing folders above it are made.
    overwrite
        Whether something that is there may be replaced. An empty folder may always be filled.
    remedy
        What allows to replace it.

    Returns
    -------
    Path
        The place, with the home folder filled in for "~".

    Raises
    ------
    InputError
        Nothing can be written there.
    """
    path = Path(path)
    what = "folder" if folder else "file"
    by = f" with {option}" if option else ""
    other = f"name another {what}{by}"
    suffix = require_suffix(path, suffixes) if suffixes else path.suffix.lower()
    try:
        path = path.expanduser()
        if folder and path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file", remedy=f"name a folder{by}")
        if not folder and suffix != ".zarr" and path.is_dir():
            raise InputError(f"{path} is a folder", remedy=f"name a file{by}")
        if not overwrite and path.exists() and not (folder and not any(path.iterdir())):
            raise InputError(f"{path} is there already", remedy=f"name another {what}, or {remedy}")
        place = path.absolute() if folder else path.absolute().parent
        if not parents and not place.exists():
            raise InputError(f"{path.parent} does not exist", remedy="make the folder first, or " + other)
        while not place.exists() and place.parent != place:
            place = place.parent
        if not place.is_dir():
            raise InputError(f"cannot write {path}: {place} is a file", remedy=other)
        with tempfile.TemporaryFile(dir=place):
            pass
    # A home folder that does not exist is a RuntimeError.
    except (OSError, RuntimeError) as why:
        raise InputError(f"cannot write {path}: {getattr(why, 'strerror', None) or why}", remedy=other) from why
    return path
