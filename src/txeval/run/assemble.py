"""Views of a results folder, made from its finished cells: scores, details, splits, manifest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from txeval._version import __version__
from txeval.compute.arrays import Bools
from txeval.errors import InputError
from txeval.postprocess import POST_PROCESSINGS
from txeval.run.files import FORMAT, storing, write_document, write_sealed, write_table
from txeval.run.folder import Damaged, inside
from txeval.run.rows import COLUMNS, DESCRIPTIONS, canonical_json, score_frame
from txeval.run.schemas import Seal
from txeval.tasks.base import Metric
from txeval.tasks.registry import get_task, metrics_of
from txeval.text import csv_text

if TYPE_CHECKING:
    from txeval.run.store import Store

__all__ = ["Assembled", "assemble"]

#: Reason of the rows of cells that a stopped run has not reached.
PENDING = "not computed yet: the run was stopped before it; the same command goes on from there"

#: Columns in front of every details table.
DETAIL_KEYS = ("dataset", "protocol", "model", "post_processing", "seed")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A cell under the label of one model, and the plan that asked for it last.

    Attributes
    ----------
    metrics
        Those that it computes, where not all of its task.
    """

    record: Record
    key: str
    family: str
    content: str
    model: str
    post_processing: str
    task: str
    seed: int | None
    embedding_fingerprint: str
    metrics: list[str] | None = None

    @property
    def group(self) -> tuple[str, ...]:
        """What rows are told apart by, but for the seed."""
        return (*self.table, self.model, self.post_processing, self.task)

    @property
    def table(self) -> tuple[str, str]:
        """Screen and protocol: rows that differ in one of these are never compared."""
        return self.record["screen"]["fingerprint"], self.record["protocol"]["name"]


@dataclass(frozen=True)
class Assembled:
    """What a results folder shows.

    Attributes
    ----------
    scores
        One row per score, as in `scores.parquet`.
    pending
        Number of cells that were asked for and are not computed yet.
    """

    scores: pd.DataFrame
    manifest: dict[str, Any]
    pending: int
    warnings: list[str] = field(default_factory=list)


def assemble(store: Store) -> Assembled:
    """Make and write `scores.parquet`, `scores.csv`, `details/`, `splits.parquet` and `manifest.json`.

    The folder accumulates: rows of every plan that was run in it, each label with its newest content.
    """
    records = store.plans()
    entries = surviving(records, store.warn)
    names = {record["screen"]["fingerprint"]: record["dataset"] for record in records}
    cells: dict[str, dict[str, Any] | None] = {}
    rows: list[dict[str, Any]] = []
    shown: list[Entry] = []
    pending = set()
    for entry in entries:
        if entry.key not in cells:
            cells[entry.key] = store.load_cell(entry.key)
        cell = cells[entry.key]
        if cell is not None:
            rows += cell_rows(entry, cell, names)
            shown.append(entry)
        elif entry.record["current"]:
            pending.add(entry.key)
            rows += [_failed_row(entry, names, metric, PENDING) for metric in _expected(entry)]
    frame = score_frame(rows)
    scores = _ordered(_with_derived(frame, entries, store.warn), entries)
    files = {**_write_details(store, shown, cells, names), **_write_splits(store, records, names)}
    files["scores.parquet"] = write_table(store.folder / "scores.parquet", scores)
    text = csv_text(scores)
    files["scores.csv"] = write_sealed(store.folder / "scores.csv", lambda handle: _write(handle, text.encode("utf-8")))
    manifest = {**_manifest(store, records, shown, cells, pending), "files": files}
    write_document(store.folder / "manifest.json", manifest, indent=1)
    return Assembled(scores, manifest, len(pending), list(store.warnings))


def _write(handle: IO[bytes], content: bytes) -> None:
    handle.write(content)


def surviving(records: Iterable[Record], warn: Callable[[str], None]) -> list[Entry]:
    """Cells of all plans that still stand: a later plan replaces what it gives a new meaning to.

    Parameters
    ----------
    records
        Plans, the oldest first.
    warn
        Told what was replaced.
    """
    groups: dict[tuple[str, ...], dict[int | None, Entry]] = {}
    contents: dict[tuple[str, str], str] = {}
    for record in records:
        screen = record["screen"]["fingerprint"]
        for model in record["models"]:
            label, content = model["label"], model["content"]
            before = contents.get((screen, label))
            if before not in (None, content):
                stale = [place for place in groups if place[0] == screen and place[2] == label]
                for place in stale:
                    del groups[place]
                if stale:
                    warn(f"model {label} is another embedding than before: its earlier scores are not shown any more")
            contents[screen, label] = content
        content_of = {model["label"]: model["content"] for model in record["models"]}
        for item in record["entries"]:
            entry = Entry(record=record, content=content_of[item["model"]], **item)
            group = groups.setdefault(entry.group, {})
            other = next(iter(group.values()), None)
            if other is not None and (other.family != entry.family or (other.seed is None) != (entry.seed is None)):
                group.clear()
            group[entry.seed] = entry
    found = [entry for group in groups.values() for entry in group.values()]
    _warn_of_mixtures(found, warn)
    # Running an old plan again must not move its models behind the others.
    return sorted(found, key=lambda entry: int(entry.record["created"]))


def _warn_of_mixtures(entries: Iterable[Entry], warn: Callable[[str], None]) -> None:
    """Say where scores of one task were not computed alike for all models."""
    digests: dict[tuple[str, ...], dict[str, set[str]]] = {}
    for entry in entries:
        made = digests.setdefault((*entry.table, entry.task), {})
        made.setdefault(entry.record["tasks"][entry.task]["digest"], set()).add(entry.model)
    for (_, protocol, task), made in digests.items():
        if len(made) > 1:
            sides = " against ".join(", ".join(sorted(models)) for models in made.values())
            warn(
                f"task {task} (protocol {protocol}) was computed with other settings or another version for some "
                f"models ({sides}): run all of them again to compare them"
            )


def _identity(entry: Entry, names: Mapping[str, str]) -> dict[str, Any]:
    record = entry.record
    source = next(model["source"] for model in record["models"] if model["label"] == entry.model)
    return {
        "dataset": names[record["screen"]["fingerprint"]],
        "split": record["split"]["id"],
        "model": entry.model,
        "source": source,
        "post_processing": entry.post_processing,
        "task": entry.task,
        "level": record["tasks"][entry.task]["level"],
        "seed": entry.seed,
        "protocol": record["protocol"]["name"],
        "screen_fingerprint": record["screen"]["fingerprint"],
        "embedding_fingerprint": entry.embedding_fingerprint,
        "protocol_fingerprint": record["protocol_digest"],
        "cell_key": entry.key,
    }


def _expected(entry: Entry) -> list[str]:
    if entry.metrics is not None:
        return entry.metrics
    return [metric["name"] for metric in entry.record["tasks"][entry.task]["metrics"] if not metric["derived"]]


def _failed_row(entry: Entry, names: Mapping[str, str], metric: str, reason: str) -> dict[str, Any]:
    return {
        **_identity(entry, names),
        "metric": metric,
        "status": "failed",
        "reason": reason,
        "left_out": "{}",
        "derived": False,
        "txeval_version": __version__,
    }


def cell_rows(entry: Entry, cell: Mapping[str, Any], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of one finished cell; a metric that gave none gets one that says so."""
    shared = {
        **_identity(entry, names),
        "derived": False,
        **{key: cell.get(key) for key in ("txeval_version", "device", "seconds", "peak_memory_mb")},
    }
    made = []
    for row in cell["rows"]:
        texts = {"left_out": canonical_json(row.get("left_out") or {}), "notes": " | ".join(row.get("notes") or [])}
        made.append({**row, **texts, **shared})
    there = {row["metric"] for row in cell["rows"]}
    missing = [metric for metric in _expected(entry) if metric not in there]
    return made + [
        {**_failed_row(entry, names, metric, "the metric gave neither a score nor a reason"), **shared}
        for metric in missing
    ]


def _with_derived(scores: pd.DataFrame, entries: Iterable[Entry], warn: Callable[[str], None]) -> pd.DataFrame:
    """Append the rows of the metrics that combine rows of several cells."""
    added = []
    entries = list(entries)
    asked: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for entry in entries:
        where = (entry.record["screen"]["fingerprint"], entry.record["protocol"]["name"])
        for planned in entry.record["tasks"][entry.task]["metrics"]:
            asked.setdefault((entry.task, planned["name"]), set()).add(where)
    for name in dict.fromkeys(entry.task for entry in entries):
        try:
            task = get_task(name)
        except InputError:
            warn(f"task {name} is not installed here: what is derived from its scores is not shown")
            continue
        derived = [metric for metric in metrics_of(task) if metric.derive is not None]
        added += [_derived(metric, task.level, scores, asked.get((name, metric.name), set())) for metric in derived]
    parts = [frame for frame in (scores, *added) if len(frame)]
    return score_frame(pd.concat(parts, ignore_index=True)) if parts else scores


def _derived(metric: Metric, level: int, scores: pd.DataFrame, asked: Collection[tuple[str, str]]) -> pd.DataFrame:
    """Rows of one derived metric; a failed one for each post-processed model that it gives none for.

    `asked` names the screens and protocols that ask for it.
    """
    assert metric.derive is not None  # the caller chose it for that
    trouble = "the derivation gave no row"
    found = score_frame([])
    try:
        found = score_frame(metric.derive(scores.copy()))
    except Exception as why:  # a plug-in may raise anything, and the other scores stand
        trouble = f"{type(why).__name__}: {why}"
    found = found.loc[_among(found, asked)].reset_index(drop=True)
    found["metric"], found["task"], found["derived"] = metric.name, metric.task, True
    found["level"] = pd.array([level] * len(found), dtype="Int64")
    found["seconds"] = found["peak_memory_mb"] = float("nan")
    found["txeval_version"] = __version__
    ok = found["value"].notna()
    found["status"] = ok.map({True: "ok", False: "failed"}).astype("string")
    found.loc[~ok & (found["reason"] == ""), "reason"] = "the result is not a number"
    found.loc[ok, "reason"] = ""
    keys = ["screen_fingerprint", "protocol", "model", "post_processing"]
    mine = scores.loc[_among(scores, asked) & (scores["task"] == metric.task).to_numpy(dtype=bool)].drop_duplicates(
        keys
    )
    have = set(found[keys].itertuples(index=False, name=None))
    lost = mine[[key not in have for key in mine[keys].itertuples(index=False, name=None)]]
    if lost.empty:
        return found
    identity = ["dataset", "split", "source", "level", "protocol_fingerprint", "task"]
    holes = lost[[*keys, *identity]].assign(metric=metric.name, status="failed", reason=trouble, derived=True)
    holes = score_frame(holes.assign(left_out="{}", txeval_version=__version__))
    return holes if found.empty else pd.concat([found, holes], ignore_index=True)


def _among(scores: pd.DataFrame, places: Collection[tuple[str, str]]) -> Bools:
    """(n,) whether each row is of one of the (screen, protocol) pairs."""
    pairs = scores[["screen_fingerprint", "protocol"]].itertuples(index=False, name=None)
    return np.fromiter((pair in places for pair in pairs), dtype=bool, count=len(scores))


def _ordered(scores: pd.DataFrame, entries: Iterable[Entry]) -> pd.DataFrame:
    """Sort rows by dataset, protocol, model, level, post-processing, seed and metric; never by order of computation."""
    tables: dict[Any, int] = {}
    models: dict[Any, int] = {}
    metrics: dict[Any, int] = {}
    for entry in entries:
        tables.setdefault(entry.table, len(tables))
        models.setdefault(entry.model, len(models))
        for metric in entry.record["tasks"][entry.task]["metrics"]:
            metrics.setdefault((entry.task, metric["name"]), len(metrics))
    posts = {name: i for i, name in enumerate(POST_PROCESSINGS)}
    many = len(scores)
    keys = pd.DataFrame(
        {
            "table": [
                tables.get(key, many) for key in zip(scores["screen_fingerprint"], scores["protocol"], strict=True)
            ],
            "model": [models.get(key, many) for key in scores["model"]],
            "level": scores["level"].fillna(0).astype(int),
            "task": scores["task"].astype(str),
            "post": [posts.get(key, many) for key in scores["post_processing"]],
            "seed": scores["seed"].fillna(-1).astype(int),
            "metric": [metrics.get(key, many) for key in zip(scores["task"], scores["metric"], strict=True)],
        }
    )
    order = keys.sort_values(list(keys.columns), kind="stable").index
    return scores.loc[order].reset_index(drop=True)[list(COLUMNS)]


# Tables that may be too large for memory: streamed, one cell at a time


def stack(path: Path, parts: Iterable[tuple[Mapping[str, Any], Callable[[], pa.Table]]], schema: pa.Schema) -> Seal:
    """Write tables below each other into one parquet file, with constant columns in front; give its size and digest."""

    def write(handle: IO[bytes]) -> None:
        with pq.ParquetWriter(handle, schema) as writer:
            for constants, read in parts:
                table = plain_types(read())
                columns = []
                for field_ in schema:
                    if field_.name in constants:
                        column = pa.array([constants[field_.name]] * len(table), type=field_.type)
                    elif field_.name in table.column_names:
                        column = table.column(field_.name).cast(field_.type)
                    else:
                        column = pa.nulls(len(table), type=field_.type)
                    columns.append(column)
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))

    return write_sealed(path, write)


def plain_types(table: pa.Table) -> pa.Table:
    """Table without dictionary-encoded columns and without notes of pandas."""
    return table.cast(_plain_schema(table.schema)).replace_schema_metadata(None)


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    fields = []
    for item in schema:
        kind = item.type.value_type if pa.types.is_dictionary(item.type) else item.type
        kind = pa.string() if pa.types.is_large_string(kind) else kind
        fields.append(pa.field(item.name, kind))
    return pa.schema(fields)


def unified(schemas: Iterable[pa.Schema], front: Mapping[str, pa.DataType]) -> pa.Schema:
    """One schema that holds all: numbers widen; a column of different kinds becomes text."""
    kinds: dict[str, pa.DataType] = {}
    for schema in schemas:
        for item in _plain_schema(schema):
            before = kinds.get(item.name, item.type)
            try:
                merged = pa.unify_schemas(
                    [pa.schema([pa.field("x", before)]), pa.schema([pa.field("x", item.type)])],
                    promote_options="permissive",
                )
                kinds[item.name] = merged.field("x").type
            except pa.ArrowTypeError:
                kinds[item.name] = pa.string()
    own = [pa.field(name, kind) for name, kind in kinds.items() if name not in front]
    return pa.schema([*(pa.field(name, kind) for name, kind in front.items()), *own])


def _write_details(
    store: Store, entries: Iterable[Entry], cells: Mapping[str, Mapping[str, Any] | None], names: Mapping[str, str]
) -> dict[str, Seal]:
    wanted: dict[tuple[str, str], list[Entry]] = {}
    for entry in _by_place(entries):
        for table in (cells[entry.key] or {}).get("tables", {}):
            wanted.setdefault((entry.task, table), []).append(entry)
    folder = store.folder / "details"
    with storing(folder):
        folder.mkdir(exist_ok=True)
    front = {name: pa.int64() if name == "seed" else pa.string() for name in DETAIL_KEYS}
    made = {}
    for (task, table), users in wanted.items():

        def read(entry: Entry, table: str = table) -> pa.Table:
            cell = cells[entry.key]
            assert cell is not None  # only those that are there have tables
            return pa.Table.from_pandas(store.load_table(cell, table), preserve_index=False)

        schemas = {entry.key: read(entry).schema for entry in {entry.key: entry for entry in users}.values()}
        parts = (
            ({name: _identity(entry, names)[name] for name in DETAIL_KEYS}, partial(read, entry)) for entry in users
        )
        path = inside(store.folder, "details", f"{task}.{table}.parquet")
        made[f"details/{path.name}"] = stack(path, parts, unified(schemas.values(), front))
    for path in folder.glob("*.parquet"):
        if f"details/{path.name}" not in made:
            with contextlib.suppress(OSError):
                path.unlink()
    return made


def _by_place(entries: Iterable[Entry]) -> list[Entry]:
    """Entries in an order that does not depend on which was computed first."""
    listed = list(entries)
    models = {model: i for i, model in enumerate(dict.fromkeys(entry.model for entry in listed))}
    posts = {name: i for i, name in enumerate(POST_PROCESSINGS)}
    return sorted(
        listed,
        key=lambda e: (e.table, models[e.model], posts.get(e.post_processing, 99), -1 if e.seed is None else e.seed),
    )


def _write_splits(store: Store, records: Iterable[Record], names: Mapping[str, str]) -> dict[str, Seal]:
    found: dict[str, tuple[dict[str, Any], Callable[[], pa.Table]]] = {}
    schemas = []
    for record in records:
        split, dataset = record["split"], names[record["screen"]["fingerprint"]]

        def read(digest: str = split["digest"]) -> pa.Table:
            return pa.Table.from_pandas(store.load_split(digest), preserve_index=False)

        try:
            schemas.append(read().schema)
        except (FileNotFoundError, Damaged) as why:
            what = "is missing" if isinstance(why, FileNotFoundError) else f"is damaged ({why})"
            path = store.split_path(split["digest"])
            store.warn(f"{path} {what}: splits.parquet lacks it; run the command again to have it back")
            continue
        found[f"{split['id']} {dataset}"] = ({"dataset": dataset, "split": split["id"]}, read)
    if not found:
        return {}
    schema = unified(schemas, {"dataset": pa.string(), "split": pa.string()})
    return {"splits.parquet": stack(store.folder / "splits.parquet", found.values(), schema)}


def _manifest(
    store: Store,
    records: list[dict[str, Any]],
    entries: Iterable[Entry],
    cells: Mapping[str, Mapping[str, Any] | None],
    pending: set[str],
) -> dict[str, Any]:
    models: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        for model in record["models"]:
            about = [store.embedding_about(key) for key in model["fingerprints"]]
            models[record["dataset"], model["label"]] = {
                "dataset": record["dataset"],
                **model,
                "shape": next((item["shape"] for item in about if "shape" in item), None),
                "provenance": [item["provenance"] for item in about if "provenance" in item],
            }
    remarks = list(store.warnings)
    for record in records:
        remarks += record["warnings"]
    for entry in entries:
        remarks += (cells[entry.key] or {}).get("warnings", [])
    return {
        "format": FORMAT,
        "txeval_version": __version__,
        "state": "incomplete" if pending else "complete",
        "pending_cells": len(pending),
        "error_cells": sum(cell is not None and cell["state"] == "error" for cell in cells.values()),
        "screens": list({record["screen"]["fingerprint"]: record["screen"] for record in records}.values()),
        "protocols": list(
            {
                record["protocol_digest"]: {**record["protocol"], "fingerprint": record["protocol_digest"]}
                for record in records
            }.values()
        ),
        "splits": list({record["split"]["digest"]: record["split"] for record in records}.values()),
        "embeddings": list(models.values()),
        "tasks": [
            {"protocol": protocol, "task": name, **task}
            for (protocol, name), task in {
                (record["protocol"]["name"], name): task for record in records for name, task in record["tasks"].items()
            }.items()
        ],
        "configurations": [record["config"] for record in records],
        "runs": sorted((run for record in records for run in record["runs"]), key=lambda run: str(run["started"])),
        "warnings": list(dict.fromkeys(remarks)),
        "columns": DESCRIPTIONS,
    }
