"""Whether a results folder can be submitted to a leaderboard."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from txeval.protocol import list_protocols, load_protocol
from txeval.report.tables import mark_untrained, references
from txeval.run import Store, read_scores
from txeval.tasks.registry import list_tasks

__all__ = ["Finding", "check_submission"]

Verdict = Literal["ok", "remark", "fault"]

#: Numbers of a stored cell and of the table may differ by the rounding of their text.
_SAME = 1e-12
_LONGEST_LABEL = 80
_SHOWN = 10
_AGAIN = "run the same command again"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    verdict
        "fault": cannot be submitted; "remark": can, and this will be said or should be known; "ok".
    remedy
        What to do about it.
    """

    verdict: Verdict
    what: str
    remedy: str = ""


def check_submission(folder: Path) -> list[Finding]:
    """Check a results folder: whole, consistent, complete, with a baseline, on a known protocol, nothing private.

    It cannot tell whether the numbers were honestly made: whoever changes a folder can give it new digests.

    Raises
    ------
    InputError
        It is no results folder at all.
    """
    scores = read_scores(folder)
    manifest = Store(folder).manifest()
    checks: tuple[Callable[[Path, pd.DataFrame, Mapping[str, Any]], Iterator[Finding]], ...] = (
        _finished,
        _whole,
        _consistent,
        _rows,
        _protocols,
        _versions,
        _levels,
        _baseline,
        _seeds,
        _trained,
        _splits,
        _labels,
        _private,
    )
    return [finding for check in checks for finding in check(folder, scores, manifest)]


def _finished(folder: Path, scores: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    pending, errors = int(manifest.get("pending_cells", 0)), int(manifest.get("error_cells", 0))
    if manifest.get("state") != "complete" or pending:
        yield Finding("fault", f"the run is not finished: {pending} parts are missing", "run the same command again")
    if errors:
        yield Finding("fault", f"{errors} parts ended in an unexpected error", "run the same command again")
    if not pending and not errors:
        yield Finding("ok", f"the run is finished: {len(scores):,} rows")


def _whole(folder: Path, scores: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    """Every file has the content that its digest says."""
    n, faults = Store(folder).verified()
    if faults:
        for fault in faults[:_SHOWN]:
            yield Finding("fault", f"not what was stored: {fault}", _AGAIN)
        if len(faults) > _SHOWN:
            yield Finding("fault", f"and {len(faults) - _SHOWN} more files", _AGAIN)
    else:
        yield Finding("ok", f"all {n:,} files are what was stored")
    views = ("scores.parquet", "scores.csv", "splits.parquet")
    missing = [name for name in views if name not in manifest["files"]]
    if missing:
        yield Finding("fault", f"the folder lacks {', '.join(missing)}", _AGAIN)


def _consistent(folder: Path, scores: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    """Every score of the table is the one that the stored cell has."""
    store = Store(folder)
    cells: dict[str, dict[tuple[str, str], Any] | None] = {}
    lost, differing, n = set(), [], 0
    own = scores[~scores["derived"] & (scores["status"] == "ok")]
    for key, metric, subset, value, model in own[["cell_key", "metric", "subset", "value", "model"]].itertuples(
        index=False
    ):
        if key not in cells:
            cell = store.load_cell(str(key))
            cells[key] = (
                None
                if cell is None
                else {(row["metric"], row.get("subset") or ""): row.get("value") for row in cell["rows"]}
            )
        found = cells[key]
        if found is None:
            lost.add(key)
            continue
        n += 1
        stored = found.get((metric, subset))
        if stored is None or not math.isclose(float(stored), float(value), rel_tol=_SAME, abs_tol=_SAME):
            differing.append(f"{model}, {metric}: {value!r} in the table, {stored!r} in the cell")
    if lost:
        yield Finding(
            "fault", f"{len(lost)} cells behind the scores are missing or damaged", "run the same command again"
        )
    if differing:
        yield Finding(
            "fault",
            f"{len(differing)} scores are not those of their cells, first: {differing[0]}",
            "run the same command again",
        )
    if not lost and not differing:
        yield Finding("ok", f"all {n:,} scores are those of the stored cells")


def _rows(folder: Path, scores: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    ok = scores["status"] == "ok"
    numbers = scores.loc[ok, "value"]
    if numbers.isna().any() or not numbers.map(math.isfinite).all():
        yield Finding("fault", "a row is marked ok and has no number", "run the same command again")
    silent = int((scores.loc[~ok, "reason"].fillna("") == "").sum())
    if silent:
        yield Finding("fault", f"{silent} rows have neither a score nor a reason", "run the same command again")
    failed = scores[~ok]
    for reason, rows in failed.groupby("reason", sort=False):
        yield Finding("remark", f"{len(rows)} rows without a score: {reason}", "they will be shown as missing")


def _protocols(folder: Path, scores: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    shipped = {name: load_protocol(name).to_dict() for name in list_protocols()}
    skip = ("name", "description", "seeds", "fingerprint")
    for protocol in manifest.get("protocols", []):
        name = str(protocol.get("name"))
        if name not in shipped:
            yield Finding("remark", f"protocol {name!r} is your own", "it gets a board of its own")
            continue
        plain = [
            json.dumps({k: v for k, v in item.items() if k not in skip}, sort_keys=True, default=str)
            for item in (protocol, shipped[name])
        ]
        if plain[0] == plain[1]:
            yield Finding("ok", f"protocol {name}, as shipped")
        else:
            yield Finding(
                "remark", f"protocol {name!r} is not the one that ships with this version", "it gets a board of its own"
            )
    for config in manifest.get("configurations", []):
        if config.get("min_counts") is not None:
            yield Finding(
                "remark",
                f"quality control was changed: min_counts {config['min_counts']:g}",
                "scores get a board of their own, since the protocol's fingerprint has it",
            )
            break


def _versions(folder: Path, scores: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    versions = sorted(set(scores["txeval_version"]) - {""})
    if len(versions) == 1:
        yield Finding("ok", f"all of it by txeval {versions[0]}")
    else:
        yield Finding(
            "remark",
            f"computed by {len(versions)} versions of txeval: {', '.join(versions)}",
            "each gets columns of its own; --overwrite always computes everything again",
        )
    for text in manifest.get("warnings", []):
        if "other settings or another version" in str(text):
            yield Finding("fault", str(text), "run all of them again: --overwrite always")


def _levels(folder: Path, scores: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    every = {task.name: task.level for task in list_tasks()}
    for (dataset, protocol), part in scores.groupby(["dataset", "protocol"], sort=False):
        missing = [f"{level} ({name})" for name, level in every.items() if name not in set(part["task"])]
        if missing:
            yield Finding(
                "remark",
                f"{dataset}, {protocol}: no level {', '.join(missing)}",
                "these columns will be shown as missing",
            )
        else:
            yield Finding("ok", f"{dataset}, {protocol}: all levels")
        for task, rows in part.groupby("task", sort=False):
            posts = {frozenset(own["post_processing"]) for _, own in rows.groupby("model", sort=False)}
            if len(posts) > 1:
                yield Finding(
                    "fault",
                    f"{dataset}, {protocol}, {task}: not all models have the same post-processings, so that some have "
                    "more to choose from",
                    "run all models with the same --post-processing",
                )


def _baseline(folder: Path, scores: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    for (dataset, protocol), part in scores.groupby(["dataset", "protocol"], sort=False):
        found = [model for model, role in references(part).items() if role == "floor"]
        if not found:
            yield Finding(
                "fault", f"{dataset}, {protocol}: no random baseline", "run it as well: leave --no-baseline out"
            )
        else:
            yield Finding("ok", f"{dataset}, {protocol}: baseline {', '.join(sorted(found))}")


def _seeds(folder: Path, scores: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    wanted = {str(item.get("name")): int(item.get("seeds", 0) or 0) for item in manifest.get("protocols", [])}
    seeded = scores[scores["seed"].notna()]
    for (dataset, protocol), part in seeded.groupby(["dataset", "protocol"], sort=False):
        counts = part.groupby(["model", "task", "metric", "subset", "post_processing"])["seed"].nunique()
        low, high = int(counts.min()), int(counts.max())
        asked = wanted.get(str(protocol), 0)
        if low != high:
            yield Finding("remark", f"{dataset}, {protocol}: {low} to {high} seeds", "run all with the same --seeds")
        elif low < asked:
            yield Finding("remark", f"{dataset}, {protocol}: {low} seeds; the protocol has {asked}", f"--seeds {asked}")
        else:
            yield Finding("ok", f"{dataset}, {protocol}: {low} seeds")


def _trained(folder: Path, scores: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    marked = mark_untrained(scores)["model"]
    untrained = sorted({str(model) for model in marked if str(model).endswith("(untrained)")})
    if untrained:
        yield Finding(
            "fault", f"weights that were never trained: {', '.join(untrained)}", "use the model's real weights"
        )


def _splits(folder: Path, scores: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    missing = sorted(set(scores["split"]) - {split["id"] for split in manifest["splits"]} - {""})
    if missing:
        yield Finding("fault", f"the folder lacks {', '.join(missing)}", "run the same command again")
    else:
        yield Finding("ok", "the split of every sample is there")


def _labels(folder: Path, scores: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    for model in dict.fromkeys(scores["model"]):
        if len(str(model)) > _LONGEST_LABEL:
            yield Finding(
                "remark", f"the label {str(model)[:40]!r}... is {len(str(model))} characters long", "shorten it"
            )
        if not str(model).isprintable():
            yield Finding(
                "fault", f"the label {str(model)!r} holds control characters", "give it another: LABEL=SOURCE"
            )


def _private(folder: Path, scores: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    """Paths of the machine that it was computed on are in the manifest, and would be published with the folder."""
    paths = sorted({str(screen.get("path", "")) for screen in manifest.get("screens", [])} - {""})
    if paths:
        yield Finding(
            "remark",
            f"manifest.json, run.yaml and plans/ name files of your machine, such as {paths[0]}",
            "the site itself does not show them; look through them before you publish the folder",
        )
