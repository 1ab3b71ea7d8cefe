"""Puts several results folders together into one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from txeval.destination import check_destination
from txeval.errors import InputError
from txeval.run.assemble import Assembled
from txeval.run.store import Record, Store, changes

__all__ = ["differing_scores", "merge"]

#: Values of one cell that differ by more (absolutely, and relative to their size) are in conflict.
TOLERANCE = 1e-9

_SHOWN = 20


def merge(folders: Sequence[Path | str], out: Path | str) -> Assembled:
    """Put results folders together: all their rows, details and plans. Embeddings are not copied.

    Parameters
    ----------
    folders
        Two or more results folders, of the same screen or of different data sets.
    out
        New folder, or a results folder to add to.

    Returns
    -------
    Assembled
        What the new folder shows.

    Raises
    ------
    InputError
        For a folder that holds no results or is in use, and for conflicts: one cell with different values, one
        data set name for two screens, one label for two embeddings, one protocol name for two sets of parameters.
    """
    target = Store(check_destination(out, folder=True))
    sources = [Store(Path(folder)) for folder in folders]
    if (target.folder / "plans").is_dir() and all(_apart(target, source) for source in sources):
        sources.insert(0, target)
    if len(sources) < 2:
        raise InputError(f"merge needs two folders, and got {len(sources)}", remedy="name at least two results folders")
    for source in sources:
        source.check(needed=True)
    seen: set[Path] = set()
    for source in sources:
        if source.folder.resolve() in seen:
            raise InputError(f"{source.folder} is named twice", remedy="name it once")
        seen.add(source.folder.resolve())
    if target.folder.resolve() in seen and sources[0] is not target:
        raise InputError(f"{out} is one of the folders to merge", remedy="give a new folder")
    plans = [(source, record) for source in sources for record in source.plans(strict=True)]
    conflicts = [*_name_conflicts(plans), *_label_conflicts(plans)]
    cells, differing = _cells(plans)
    conflicts += differing
    if conflicts:
        more = [f"and {len(conflicts) - _SHOWN} more"] if len(conflicts) > _SHOWN else []
        raise InputError(
            f"the folders contradict each other in {len(conflicts)} place(s):\n  "
            + "\n  ".join([*conflicts[:_SHOWN], *more]),
            remedy="give one of them another name or label, or compute one of them again",
        )
    target.prepare()
    with target.lock():
        for key, source in cells.items():
            if source is not target:
                target.copy_cell(source, key)
        for source, record in plans:
            if source is not target:
                target.copy_sources(source, record)
                target.write_protocol(record["protocol"], record["protocol_digest"])
        for _, record in plans:
            target.add_plan(record)
        for source in sources:
            for text in source.warnings:
                target.warn(text)
        return target.assemble()


def _apart(one: Store, other: Store) -> bool:
    return one.folder.resolve() != other.folder.resolve()


def _name_conflicts(plans: Sequence[tuple[Store, Record]]) -> list[str]:
    """One name of a data set or of a protocol for two things."""
    found = []
    screens: dict[str, tuple[Store, Record]] = {}
    protocols: dict[str, tuple[Store, Record]] = {}
    for source, record in plans:
        name, screen = record["dataset"], record["screen"]
        before, other = screens.setdefault(name, (source, record))
        if other["screen"]["fingerprint"] != screen["fingerprint"]:
            found.append(
                f"data set {name!r} is another screen, or another selection of its samples, in {before.folder} "
                f"({other['screen']['n']:,} samples) than in {source.folder} ({screen['n']:,} samples)"
            )
        protocol = record["protocol"]["name"]
        before, other = protocols.setdefault(protocol, (source, record))
        if other["protocol_digest"] != record["protocol_digest"]:
            what = "; ".join(changes(other["protocol"], record["protocol"])) or "min_counts"
            found.append(f"protocol {protocol!r} differs between {before.folder} and {source.folder}: {what}")
    return list(dict.fromkeys(found))


def _label_conflicts(plans: Sequence[tuple[Store, Record]]) -> list[str]:
    """One label for two embeddings, or one score computed in two ways."""
    found = []
    contents: dict[tuple[str, str], tuple[Store, str]] = {}
    families: dict[tuple[str, ...], tuple[Store, str]] = {}
    for source, record in plans:
        screen = record["screen"]["fingerprint"]
        differing = set()
        for model in record["models"]:
            before, content = contents.setdefault((screen, model["label"]), (source, model["content"]))
            if content != model["content"] and before is not source:
                differing.add(model["label"])
                found.append(
                    f"model {model['label']!r} is another embedding in {before.folder} than in {source.folder}"
                )
        for entry in record["entries"]:
            if entry["model"] in differing:
                continue
            place = (record["protocol"]["name"], entry["model"], entry["post_processing"], entry["task"])
            before, family = families.setdefault((screen, *place), (source, entry["family"]))
            if family != entry["family"] and before is not source:
                found.append(
                    f"{' / '.join(place)} was computed with other settings or another version in {before.folder} "
                    f"than in {source.folder}"
                )
    return list(dict.fromkeys(found))


def _cells(plans: Sequence[tuple[Store, Record]]) -> tuple[dict[str, Store], list[str]]:
    """Which folder to take each cell from, and the cells whose values differ between folders."""
    chosen: dict[str, tuple[Store, Mapping[str, Any]]] = {}
    conflicts: list[str] = []
    looked: set[tuple[Path, str]] = set()
    for source, record in plans:
        for entry in record["entries"]:
            key = entry["key"]
            if (source.folder, key) in looked:
                continue
            looked.add((source.folder, key))
            cell = source.load_cell(key)
            if cell is None:
                continue
            if key not in chosen:
                chosen[key] = (source, cell)
                continue
            before, other = chosen[key]
            if other["state"] != "done" or cell["state"] != "done":
                # An error of one machine does not stand against a result of another.
                if other["state"] != "done":
                    chosen[key] = (source, cell)
                continue
            parts = [entry["model"], entry["post_processing"], entry["task"]]
            place = " / ".join(parts if entry["seed"] is None else [*parts, f"seed {entry['seed']}"])
            conflicts += [
                f"{place}: {what} ({before.folder} against {source.folder})" for what in differing_scores(other, cell)
            ]
    return {key: source for key, (source, _) in chosen.items()}, conflicts


def differing_scores(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Scores of a cell that are not equal in two folders."""
    sides = [{(row["metric"], row.get("subset", "")): row for row in cell["rows"]} for cell in (one, other)]
    found = []
    for name in sorted({*sides[0], *sides[1]}):
        values = [side.get(name, {}).get("value") for side in sides]
        text = " ".join(part for part in name if part)
        if (values[0] is None) != (values[1] is None):
            found.append(f"{text} is {values[0]} and {values[1]}")
        elif values[0] is not None and not math.isclose(*values, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            found.append(f"{text} is {values[0]!r} and {values[1]!r}")
    return found
