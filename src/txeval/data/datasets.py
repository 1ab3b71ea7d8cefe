"""Data sets by name: what the catalogue says of them, where their files are, and how they are fetched."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import yaml

from txeval.data.download import (
    Progress,
    Record,
    RecordFile,
    download,
    explain,
    fetch_record,
    is_plain_name,
    offline,
)
from txeval.data.locate import cache_folder, data_folders, file_digests, find_file
from txeval.data.locate import fetch as fetch_entry
from txeval.data.roles import Roles
from txeval.errors import InputError, unknown

__all__ = [
    "RECORD_FILE",
    "Dataset",
    "Expected",
    "Source",
    "SourceFile",
    "fetch_dataset",
    "find_dataset",
    "get_dataset",
    "list_datasets",
    "list_family",
    "resolve_roles",
    "stated_licences",
]

#: File beside downloads that keeps what their records stated.
RECORD_FILE = "record.json"

_FAMILY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,150}")


@dataclass(frozen=True)
class Source:
    """Where the files of a data set come from.

    Attributes
    ----------
    records
        Zenodo records, each of which may hold some of the files.
    files
        Names of the files, in the order in which they are put together.
    pattern
        Instead of names that are not known: what the name looks like.
    entry
        Instead of records: id of a catalogued file (`txeval.data.locate.catalogue`).
    dataset
        Which cells of that file.
    """

    records: tuple[int, ...] = ()
    files: tuple[str, ...] = ()
    pattern: str = ""
    entry: str = ""
    dataset: str = ""

    @property
    def address(self) -> str:
        """Pages where a person finds the files."""
        listed = [str(record) for record in self.records]
        return "https://zenodo.org/records/" + " or ".join(filter(None, [", ".join(listed[:-1]), listed[-1]]))


@dataclass(frozen=True)
class Expected:
    """Sizes that a publication states.

    Attributes
    ----------
    where
        Which publication.
    sizes
        What -> (number, how far from it still agrees with the rounding of the publication).
    splits
        Split -> what -> number.
    """

    where: str
    sizes: Mapping[str, tuple[int, int]]
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A data set, as the catalogue knows it.

    Attributes
    ----------
    name
        As it is asked for: "replogle_2022", "scperturb/ReplogleWeissman2022_rpe1".
    family
        Whether it stands for many, asked for as NAME/MEMBER.
    licence
        "" where only the record states it.
    scale
        Of the values; "" where it has to be determined.
    min_counts
        Samples with a total count at or below it are dropped in the preparation, where the values are counts.
    layer
        Layer of the prepared file with the values to evaluate; "" for X.
    roles
        Role -> names of columns (or labels of controls) that are tried in this order.
    columns, var_columns
        Columns and what they mean.
    unverified
        What the catalogue says without having seen it.
    run
        Settings of a run that this data set needs, as `txeval.run.build_config` takes them.
    """

    name: str
    title: str
    kind: str
    use: str
    source: Source
    licence: str = ""
    citation: tuple[str, ...] = ()
    scale: str = ""
    min_counts: float = 0
    layer: str = ""
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    var_columns: Mapping[str, str] = field(default_factory=dict)
    recipe: tuple[str, ...] = ()
    expected: Expected | None = None
    unverified: tuple[str, ...] = ()
    family: bool = False
    examples: tuple[str, ...] = ()
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Folder of its files under a data folder; members of a family share one."""
        return self.name.split("/")[0]

    @property
    def stem(self) -> str:
        """Name for files that are made of it."""
        return self.name.split("/")[-1]


@dataclass(frozen=True)
class SourceFile:
    """A file of a data set that is here.

    Attributes
    ----------
    checked
        What its bytes were compared with, or why they were not.
    verified
        Whether they were.
    """

    path: Path
    size: int
    checked: str
    verified: bool = True


# The catalogue


@cache
def _catalogue() -> Mapping[str, Dataset]:
    folder = resources.files("txeval.data") / "catalogue" / "datasets"
    found = {}
    for item in folder.iterdir():
        if item.name.endswith(".yaml"):
            name = item.name.removesuffix(".yaml")
            found[name] = _dataset(name, yaml.safe_load(item.read_text(encoding="utf-8")))
    return MappingProxyType(dict(sorted(found.items(), key=lambda pair: _rank(pair[1]))))


def _rank(dataset: Dataset) -> tuple[int, int, str]:
    """Those of the paper first, the largest before the others; families last."""
    samples = dataset.expected.sizes["samples"][0] if dataset.expected else 0
    return (2 if dataset.family else 0 if dataset.source.records else 1, -samples, dataset.name)


def _dataset(name: str, content: Mapping[str, Any]) -> Dataset:
    content = dict(content)
    source = dict(content.pop("source"))
    expected = content.pop("expected", None)
    for key in ("citation", "recipe", "unverified", "examples"):
        content[key] = tuple(content.get(key, ()))
    return Dataset(
        name=name,
        source=Source(
            records=tuple(source.get("records", ())),
            files=tuple(source.get("files", ())),
            pattern=source.get("pattern", ""),
            entry=source.get("entry", ""),
            dataset=source.get("dataset", ""),
        ),
        roles={role: tuple(names) for role, names in content.pop("roles", {}).items()},
        expected=None if expected is None else _expected(dict(expected)),
        **content,
    )


def _expected(content: dict[str, Any]) -> Expected:
    where, splits = content.pop("where"), content.pop("splits", {})
    sizes = {
        what: (value["value"], value["within"]) if isinstance(value, dict) else (value, 0)
        for what, value in content.items()
    }
    return Expected(where=where, sizes=sizes, splits=splits)


def list_datasets() -> list[Dataset]:
    """Every data set of the catalogue; those of the paper first, families last."""
    return list(_catalogue().values())


def get_dataset(name: str) -> Dataset:
    """The data set of a name: `replogle_2022`, or a member of a family such as `scperturb/ReplogleWeissman2022_rpe1`.

    Raises
    ------
    InputError
        There is none; the nearest names are given. Also for a member whose name is a path.
    """
    known = _catalogue()
    if name in known:
        return known[name]
    first, slash, member = name.partition("/")
    family = known.get(first)
    if slash and family is not None and family.family:
        member = member.removesuffix(".h5ad")
        if not _FAMILY_NAME.fullmatch(member):
            raise InputError(
                f"{member!r} is no name of a file of {first}",
                remedy=f"give the name alone, such as {first}/{family.examples[0]}",
            )
        files = tuple(file.format(name=member) for file in family.source.files)
        return replace(
            family,
            name=f"{first}/{member}",
            title=f"{member}, as scPerturb harmonised it",
            family=False,
            source=replace(family.source, files=files),
        )
    names = [*known, *(f"{item.name}/{example}" for item in known.values() for example in item.examples)]
    raise unknown("data set", name, names)


def resolve_roles(dataset: Dataset, obs: Sequence[str], var: Sequence[str]) -> tuple[Roles, list[str]]:
    """Roles of a data set from the columns that its file really has, and what was decided.

    Raises
    ------
    InputError
        No column of perturbations is there.
    """
    notes: list[str] = []
    chosen: dict[str, Any] = {}
    for role, names in dataset.roles.items():
        if role == "control":
            continue
        present = [name for name in names if name in (var if role == "gene_symbol" else obs)]
        if present:
            chosen[role] = present[0]
            if len(names) > 1:
                others = f" (also there: {', '.join(present[1:])})" if present[1:] else ""
                notes.append(f"{role}: column {present[0]!r}{others}")
        elif role != "control_column":
            frame = "var" if role == "gene_symbol" else "obs"
            notes.append(f"{role}: none of the columns {', '.join(names)} is in {frame}")
    if "perturbation" not in chosen:
        raise InputError(
            f"{dataset.name}: none of the columns {', '.join(dataset.roles['perturbation'])} is in obs",
            remedy=f"the columns of obs are: {', '.join(obs)}; name the right one with --perturbation",
        )
    if "control_column" not in chosen:
        chosen["control"] = dataset.roles.get("control", ())
    return Roles(**chosen), notes


# Finding and fetching


def find_dataset(dataset: Dataset, *, names: Sequence[str] = ()) -> list[SourceFile] | None:
    """The files of a data set in the data folders or among the downloads, in their order; None where one is missing.

    Parameters
    ----------
    names
        Names of the files, where the user says which.

    Raises
    ------
    InputError
        A file is there whose bytes are not those that its record stated.
    """
    if dataset.source.entry:
        path = find_file(dataset.source.entry)
        return None if path is None else [SourceFile(path, path.stat().st_size, "SHA-256 of the catalogue")]
    wanted = tuple(names) or dataset.source.files
    if wanted:
        found = []
        for name in wanted:
            place = next((folder / name for folder in _places(dataset) if (folder / name).is_file()), None)
            if place is None:
                return None
            found.append(place)
    else:
        found = _by_pattern(dataset)
        if not found:
            return None
    return [_checked(path, dataset) for path in found]


def _places(dataset: Dataset) -> list[Path]:
    folders = [place for folder in data_folders() for place in (folder / dataset.folder, folder)]
    return [*folders, _cache(dataset)]


def _cache(dataset: Dataset) -> Path:
    return cache_folder() / "datasets" / dataset.folder


def _by_pattern(dataset: Dataset) -> list[Path]:
    # In the folders of this data set only: a pattern may fit many a file of the user's.
    for folder in [folder / dataset.folder for folder in data_folders()] + [_cache(dataset)]:
        if folder.is_dir():
            fitting = [path for path in folder.iterdir() if path.is_file() and _fits(path.name, dataset.source.pattern)]
            if fitting:
                return [folder / name for name in _in_order(dataset, [path.name for path in fitting])]
    return []


def _fits(name: str, pattern: str) -> bool:
    return not name.startswith(".") and fnmatch.fnmatchcase(name.lower(), pattern.lower())


def _in_order(dataset: Dataset, names: list[str]) -> list[str]:
    """Files that fit a pattern, as the parts that they are: one file, or numbered parts in the order of the numbers."""
    if len(names) == 1:
        return names
    numbers = {name: re.search(r"part[_-]?(\d+)", name.lower()) for name in names}
    stems = {re.sub(r"part[_-]?\d+", "part", name.lower()) for name in names}
    if len(stems) == 1 and all(numbers.values()):
        return sorted(names, key=lambda name: int(found[1]) if (found := numbers[name]) else 0)
    raise InputError(
        f"{dataset.name}: {len(names)} files fit the name {dataset.source.pattern}: {', '.join(sorted(names))}",
        remedy=f"say which: --file {sorted(names)[0]}",
    )


def _read_note(folder: Path) -> dict[str, Any]:
    """What the records of the files of a folder stated, file name -> facts."""
    path = folder / RECORD_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"records": dict(content["records"]), "files": dict(content["files"])}
    except (OSError, ValueError, KeyError, TypeError) as why:
        raise InputError(f"{path} is no note of Zenodo records ({why})", remedy="remove it, and fetch again") from why


def _checked(path: Path, dataset: Dataset) -> SourceFile:
    """Compare a file with what its record stated, where that is known."""
    size = path.stat().st_size
    facts = _read_note(path.parent).get("files", {}).get(path.name)
    if not isinstance(facts, dict):
        return SourceFile(path, size, f"no {RECORD_FILE} beside it that says what it should be", verified=False)
    remedy = f"remove {path} and run txeval data fetch {dataset.name}"
    expected, md5 = facts.get("size"), facts.get("md5")
    if expected is not None and expected != size:
        raise InputError(f"{path} has {size:,} bytes; its record says {expected:,}", remedy=remedy)
    if not md5:
        return SourceFile(path, size, "the record states no digest", verified=False)
    checked = f"MD5 as record {facts.get('record')} states"
    state = [size, path.stat().st_mtime_ns]
    if facts.get("compared") == state:
        return SourceFile(path, size, checked)
    found = file_digests(path).md5
    if found != md5:
        raise InputError(f"{path} has the MD5 digest {found}; its record says {md5}", remedy=remedy)
    # Reading gigabytes for a digest once is enough. A mirror may be read only: then it is done each time.
    with suppress(OSError):
        note = _read_note(path.parent)
        note["files"][path.name]["compared"] = state
        _put_note(path.parent, note)
    return SourceFile(path, size, checked)


def _by_hand(dataset: Dataset, folder: Path, names: Iterable[str] = ()) -> str:
    what = ", ".join(names) or ", ".join(dataset.source.files) or f"the file {dataset.source.pattern}"
    return (
        f"get {what} by hand from {dataset.source.address} and put it into {folder},"
        f" or into a folder {dataset.folder} of a folder that TXEVAL_DATA names"
    )


def _silent(done: int, total: int, text: str) -> None:
    pass


def fetch_dataset(
    dataset: Dataset,
    *,
    to: Path | None = None,
    names: Sequence[str] = (),
    progress: Progress = _silent,
) -> tuple[list[SourceFile], list[Record]]:
    """Find the files of a data set, or fetch them.

    Zenodo is asked for the list of files of its records: names, sizes and MD5 digests are those that it states. They
    are kept in `record.json` beside the files, so that a copy of the folder can be verified without a network.

    Parameters
    ----------
    to
        Data folder to put them into (one that TXEVAL_DATA can name); None: the cache, unless they are found.
    names
        Names of the files, where the user says which.
    progress
        Called with (bytes done, bytes in all, text).

    Returns
    -------
    (files in their order, records that were asked: none where everything was here)

    Raises
    ------
    InputError
        They cannot be fetched: says why, and what to put where by hand.
    """
    if dataset.family:
        raise InputError(
            f"{dataset.name} is many data sets",
            remedy=f"name one: {dataset.name}/{dataset.examples[0]}; txeval data list {dataset.name} lists them",
        )
    for name in names:
        if not is_plain_name(name):
            raise InputError(f"{name!r} is no plain file name", remedy="give a name as the record lists it")
    if dataset.source.entry:
        return _fetch_entry(dataset, to, progress), []
    if to is None:
        found = find_dataset(dataset, names=names)
        if found is not None:
            return found, []
        folder = _cache(dataset)
    else:
        folder = Path(to).expanduser() / dataset.folder
    remedy = _by_hand(dataset, folder, names)
    if offline():
        raise InputError(
            f"the files of {dataset.name} are not here, and TXEVAL_OFFLINE forbids to fetch them", remedy=remedy
        )
    try:
        records = [fetch_record(record) for record in dataset.source.records]
    except (OSError, ValueError) as why:
        raise explain(f"the list of files of {dataset.name}", why, remedy) from why
    chosen = _choose(dataset, records, names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_note(folder, records, chosen)
        paths = [_fetch_file(file, folder, progress) for file in chosen]
    except (OSError, ValueError) as why:
        raise explain(
            f"{dataset.name} from {dataset.source.address}",
            why,
            _by_hand(dataset, folder, [file.name for file in chosen]),
        ) from why
    return [_checked(path, dataset) for path in paths], records


def _fetch_entry(dataset: Dataset, to: Path | None, progress: Progress) -> list[SourceFile]:
    from txeval.data.locate import catalogue

    entry = catalogue()[dataset.source.entry]
    if to is None:
        path = fetch_entry(entry, progress=progress)
    else:
        path = Path(to).expanduser().joinpath(*PurePosixPath(entry.path).parts)
        if not (path.is_file() and file_digests(path).sha256 == entry.sha256):
            if offline():
                raise InputError(f"{path} is not there, and TXEVAL_OFFLINE forbids to fetch it from {entry.url}")
            try:
                download(entry.url, path, sha256=entry.sha256, progress=progress)
            except (OSError, ValueError) as why:
                raise explain(f"{dataset.name} from {entry.url}", why, f"put the file at {path} by hand") from why
    return [SourceFile(path, path.stat().st_size, "SHA-256 of the catalogue")]


def _choose(dataset: Dataset, records: Sequence[Record], names: Sequence[str]) -> list[RecordFile]:
    listed: dict[str, RecordFile] = {}
    for record in records:
        for file in record.files:
            listed.setdefault(file.name, file)
    wanted = list(names or dataset.source.files)
    everything = "the records hold: " + (", ".join(sorted(listed)[:40]) or "nothing")
    if not wanted:
        wanted = [name for name in listed if _fits(name, dataset.source.pattern)]
        if not wanted:
            raise InputError(
                f"{dataset.name}: no file of the records fits the name {dataset.source.pattern}",
                remedy=f"{everything}; name the right one with --file",
            )
        wanted = _in_order(dataset, wanted)
    for name in wanted:
        if name not in listed:
            error = unknown("file", name, listed, where="records " + ", ".join(map(str, dataset.source.records)))
            raise InputError(f"{dataset.name}: {error.problem}", remedy=f"{error.remedy}; {everything}")
    return [listed[name] for name in wanted]


def _write_note(folder: Path, records: Sequence[Record], chosen: Sequence[RecordFile]) -> None:
    note = _read_note(folder) or {"records": {}, "files": {}}
    for record in records:
        note["records"][str(record.id)] = {"title": record.title, "doi": record.doi, "licence": record.licence}
    for file in chosen:
        facts = {"record": file.record, "size": file.size, "md5": file.md5, "url": file.url}
        note["files"][file.name] = note["files"].get(file.name, {}) | facts
    _put_note(folder, note)


def _put_note(folder: Path, note: dict[str, Any]) -> None:
    part = folder / f".{RECORD_FILE}.partial"
    part.write_text(json.dumps(note, indent=1), encoding="utf-8")
    part.replace(folder / RECORD_FILE)


def _fetch_file(file: RecordFile, folder: Path, progress: Progress) -> Path:
    path = folder / file.name
    if path.is_file():
        whole = file.size is None or path.stat().st_size == file.size
        if whole and (not file.md5 or file_digests(path).md5 == file.md5):
            return path
    download(file.url, path, md5=file.md5, size=file.size, progress=progress)
    return path


def list_family(dataset: Dataset) -> Record:
    """The files of the record of a family, as Zenodo lists them.

    Raises
    ------
    InputError
        Zenodo cannot be asked.
    """
    where = dataset.source.address
    if offline():
        raise InputError(
            f"TXEVAL_OFFLINE forbids to ask for the members of {dataset.name}", remedy=f"see them at {where}"
        )
    try:
        return fetch_record(dataset.source.records[0])
    except (OSError, ValueError) as why:
        raise explain(f"the list of {dataset.name}", why, f"see it at {where}") from why


def stated_licences(paths: Sequence[Path]) -> dict[str, str]:
    """Record -> licence, as the records of some files stated it when they were fetched."""
    found: dict[str, str] = {}
    for path in paths:
        note = _read_note(path.parent)
        record = str(note.get("files", {}).get(path.name, {}).get("record", ""))
        if record in note.get("records", {}):
            found[record] = str(note["records"][record].get("licence", ""))
    return found
