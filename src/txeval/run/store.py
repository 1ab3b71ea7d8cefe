"""A results folder: finished cells, embeddings and fitted post-processings under digests of what determines them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

from txeval._version import __version__
from txeval.compute.arrays import Rows
from txeval.compute.intervals import Units, units_from_frame
from txeval.embed.rows import NpyRows
from txeval.errors import InputError, unknown
from txeval.postprocess import Fitted
from txeval.protocol import ABOUT
from txeval.run.assemble import Assembled, assemble
from txeval.run.files import (
    FORMAT,
    folder_lock,
    read_json,
    remove_temporary,
    storing,
    write_atomically,
    write_json,
    write_rows,
    write_table,
)
from txeval.run.rows import score_frame

if TYPE_CHECKING:
    from txeval.data.samples import Samples
    from txeval.run.plan import Plan

__all__ = ["UNITS_TABLE", "Store", "read_details", "read_scores"]

#: Name of the details table that holds the contributions of resampling units to each score.
UNITS_TABLE = "units"

_FOLDERS = ("cells", "embeddings", "postprocessing", "plans", "protocols", "samples", "splits")

_TABLE_NAME = r"[A-Za-z0-9_-]+"

Record = dict[str, Any]


class Store:
    """A results folder.

    - `cells/<key>.json` (scores, time, memory) and `cells/<key>.<table>.parquet` (details) of each finished cell;
    - `embeddings/<key>.npy`, `.json`; `postprocessing/<key>.npz`;
    - `plans/<id>.json`: what was asked for, `splits/<digest>.parquet`, `protocols/*.yaml`, `run.yaml`;
    - `samples/<screen>.parquet`: label, target, batch and control flag of every kept sample, so that reports can be
      made where the screen is not;
    - views made from these by `assemble`: `scores.parquet`, `scores.csv`, `details/<task>.<table>.parquet`,
      `splits.parquet`, `manifest.json`.

    Parameters
    ----------
    folder
        Where it is; made by `prepare`.
    warn
        Called with each warning.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] | None = None) -> None:
        self.folder = Path(folder)
        self.warnings: list[str] = []
        self._warn = warn

    def warn(self, text: str) -> None:
        """Record a warning and pass it on, once."""
        if text not in self.warnings:
            self.warnings.append(text)
            if self._warn is not None:
                self._warn(text)

    def check(self, *, needed: bool = False) -> None:
        """Check that the folder, where it exists, is one that this version can read.

        Raises
        ------
        InputError
            It is a file, was written by a newer version, or (`needed`) holds no results.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file", remedy="give a results folder")
        try:
            manifest = read_json(self.folder / "manifest.json")
        except ValueError as why:
            self.warn(f"{self.folder / 'manifest.json'} is damaged and will be written again ({why})")
            manifest = None
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if isinstance(found, int) and found > FORMAT:
            made_by = manifest.get("txeval_version", "a newer version") if isinstance(manifest, dict) else ""
            raise InputError(
                f"{self.folder} was written by txeval {made_by} in format {found}; this is txeval {__version__}, "
                f"which knows formats up to {FORMAT}",
                remedy="update txeval, or give another folder",
            )
        if isinstance(found, int) and found < FORMAT:
            made_by = manifest.get("txeval_version", "an older version") if isinstance(manifest, dict) else ""
            raise InputError(
                f"{self.folder} was written by txeval {made_by} in format {found}; txeval {__version__} writes format "
                f"{FORMAT} and does not mix the two",
                remedy="give another folder; that version still reads this one",
            )
        if manifest is not None and not isinstance(found, int):
            raise InputError(
                f"{self.folder / 'manifest.json'} is not a manifest of txeval", remedy="give another folder"
            )
        if needed and manifest is None and not (self.folder / "plans").is_dir():
            what = "holds no results of txeval" if self.folder.is_dir() else "does not exist"
            raise InputError(f"{self.folder} {what}", remedy="give the folder that `txeval run --out` wrote")

    def prepare(self) -> None:
        """Make the folder and its rooms, and check that it can be written to."""
        self.check()
        with storing(self.folder):
            for name in _FOLDERS:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        if not (self.folder / "manifest.json").exists():
            write_json(self.folder / "manifest.json", {"format": FORMAT, "txeval_version": __version__})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one run, and clear away what an interrupted one left half-written.

        Raises
        ------
        InputError
            Another process holds it.
        """
        with folder_lock(self.folder):
            for name in ("", *_FOLDERS, "details"):
                remove_temporary(self.folder / name, locks=bool(name))
            self.clear_scratch()
            try:
                yield
            finally:
                self.clear_scratch()

    @property
    def scratch(self) -> Path:
        """Folder for temporary files of a run, on the file system of the results; made where it is not there."""
        folder = self.folder / "scratch"
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clear_scratch(self) -> None:
        """Remove the temporary files of a run."""
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)

    # Cells

    def cell_path(self, key: str) -> Path:
        """File of a cell."""
        return self.folder / "cells" / f"{key}.json"

    def save_cell(self, key: str, cell: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> None:
        """Keep a finished cell: its tables first, then the file that says that it is finished."""
        sizes = {}
        for name, table in tables.items():
            if not re.fullmatch(_TABLE_NAME, name):
                raise ValueError(f"a details table is called {name!r}; use letters, digits, - and _")
            sizes[name] = write_table(self._table_path(key, name), table)
        before: Any = None
        with contextlib.suppress(ValueError):
            before = read_json(self.cell_path(key))
        write_json(self.cell_path(key), {"format": FORMAT, "key": key, **cell, "tables": sizes})
        former = before.get("tables") if isinstance(before, dict) else None
        for name in set(former if isinstance(former, dict) else ()) - set(sizes):
            if re.fullmatch(_TABLE_NAME, name):
                with contextlib.suppress(OSError):
                    self._table_path(key, name).unlink()

    def load_cell(self, key: str) -> Record | None:
        """Give a stored cell; None where there is none, or (with a warning) where it is damaged."""
        path = self.cell_path(key)
        try:
            cell = read_json(path)
            if cell is None:
                return None
            if not isinstance(cell, dict) or cell.get("key") != key or not isinstance(cell.get("rows"), list):
                raise ValueError("it does not hold what its name says")
            if cell.get("format") != FORMAT:
                raise ValueError(f"it has format {cell.get('format')}")
            for name, size in cell["tables"].items():
                table = self._table_path(key, name)
                if not table.is_file():
                    raise ValueError(f"its table {table.name} is missing")
                if table.stat().st_size != size:
                    raise ValueError(f"its table {table.name} has {table.stat().st_size} bytes instead of {size}")
        except (ValueError, KeyError, AttributeError) as why:
            self.warn(f"the stored cell {path.name} is damaged and does not count: {why}")
            return None
        return cell

    def load_table(self, key: str, name: str) -> pd.DataFrame:
        """Give a details table of a cell; ValueError where it cannot be read."""
        try:
            return pd.read_parquet(self._table_path(key, name))
        except Exception as why:  # the parquet library has no common error for damaged files
            raise ValueError(str(why).splitlines()[0] if str(why) else type(why).__name__) from None

    def load_units(self, key: str) -> dict[tuple[str, str], Units]:
        """Give the units of the scores of a cell by (metric, subset); empty where it has none with labels.

        Raises
        ------
        ValueError
            The stored table is damaged.
        """
        if not self._table_path(key, UNITS_TABLE).is_file():
            return {}
        return units_from_frame(self.load_table(key, UNITS_TABLE))

    def forget_cell(self, key: str) -> None:
        """Take a cell out, so that the next run computes it again."""
        with contextlib.suppress(OSError):
            self.cell_path(key).unlink(missing_ok=True)

    def _table_path(self, key: str, name: str) -> Path:
        return self.folder / "cells" / f"{key}.{name}.parquet"

    # Embeddings and fitted post-processings

    def embedding_folder(self, key: str) -> Path:
        """Where the embedder may keep files of its own."""
        path = self.folder / "embeddings" / f"{key}.work"
        with storing(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def forget_embedding_folder(self, key: str) -> None:
        """Remove the embedder's own files, once the embedding is kept."""
        shutil.rmtree(self.folder / "embeddings" / f"{key}.work", ignore_errors=True)

    def save_embedding(self, key: str, values: Rows, about: Mapping[str, Any], max_elements: int | None = None) -> None:
        """Keep an embedding, with where it is from.

        As float32 in an .npy file; where it consists of rows of another file that stays (a stored embedding, or an
        .npy file of the user), as the numbers of these rows.
        """
        folder = self.folder / "embeddings"
        write_json(folder / f"{key}.json", about)
        target = folder / f"{key}.npy"
        if not isinstance(values, NpyRows):
            write_rows(target, values, max_elements)
        elif not _within(values.path, folder / f"{key}.work"):
            state = values.path.stat()
            content: dict[str, Any] = {
                "of": np.str_(values.path.name if _within(values.path, folder) else values.path.absolute()),
                "size": np.int64(state.st_size),
                "modified": np.int64(state.st_mtime_ns),
            }
            if values.index is not None:
                content["index"] = values.index
            write_atomically(folder / f"{key}.npz", lambda handle: np.savez(handle, **content))
        elif values.index is None and values.dtype == np.float32:
            with storing(target):
                values.path.replace(target)
        else:
            write_rows(target, values, max_elements)

    def load_embedding(self, key: str, n: int) -> Rows | None:
        """Give a stored embedding of n samples, memory-mapped; None where there is none or it is damaged."""
        folder = self.folder / "embeddings"
        for path in (folder / f"{key}.npy", folder / f"{key}.npz"):
            if not path.is_file():
                continue
            try:
                return _open_rows(path, n)
            except Exception as why:  # npy, zip and missing names each have their own error
                self.warn(f"the stored embedding {path.name} is damaged and will be made again: {why}")
        return None

    def forget_made(self, key: str, fit_key: str) -> None:
        """Take an embedding and a fitted post-processing out, so that they are made again."""
        for path in (
            self.folder / "embeddings" / f"{key}.npy",
            self.folder / "embeddings" / f"{key}.npz",
            self.folder / "postprocessing" / f"{fit_key}.npz",
        ):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def embedding_about(self, key: str) -> Record:
        """Where a stored embedding is from."""
        try:
            about = read_json(self.folder / "embeddings" / f"{key}.json")
        except ValueError:
            about = None
        return about if isinstance(about, dict) else {}

    def save_fitted(self, key: str, fitted: Fitted) -> None:
        """Keep a fitted post-processing."""
        path = self.folder / "postprocessing" / f"{key}.npz"
        with storing(path):
            fitted.save(path)

    def load_fitted(self, key: str) -> Fitted | None:
        """Give a fitted post-processing; None where there is none or it is damaged."""
        path = self.folder / "postprocessing" / f"{key}.npz"
        if not path.is_file():
            return None
        try:
            return Fitted.load(path)
        except Exception as why:  # zip, npy and missing names each have their own error
            self.warn(f"the fitted post-processing {path.name} is damaged and will be fitted again: {why}")
            return None

    @contextmanager
    def making(self, room: str, key: str) -> Iterator[None]:
        """Hold one embedding or post-processing, so that two workers do not make it both."""
        with folder_lock(self.folder / room, wait=True, name=f".{key}.lock"):
            yield
            # While it is held: whoever waits for it notices that its file has gone, and takes a new one.
            with contextlib.suppress(OSError):
                (self.folder / room / f".{key}.lock").unlink()

    # Plans

    def plans(self) -> list[Record]:
        """Everything that was asked of this folder, the oldest first."""
        found = []
        for path in sorted((self.folder / "plans").glob("*.json")):
            try:
                record = read_json(path)
                if not isinstance(record, dict) or not isinstance(record.get("entries"), list):
                    raise ValueError("it is not a plan")
                found.append(record)
            except ValueError as why:
                self.warn(f"{path} is damaged and does not count: {why}; run its command again to have its rows back")
        return sorted(found, key=lambda record: int(record["order"]))

    def save_plan(self, record: Mapping[str, Any], *, again: bool = False) -> None:
        """Keep what was asked for, as the newest: of it alone are missing cells shown as not computed yet.

        Parameters
        ----------
        again
            Whether the same run writes it once more.
        """
        plans = {plan["id"]: plan for plan in self.plans()}
        before = plans.pop(record["id"], None)
        runs = [] if before is None else before["runs"][: -1 if again else None]
        order = 1 + max((plan["order"] for plan in plans.values()), default=0)
        created = order if before is None else before["created"]
        runs = [*runs, *record["runs"]]
        self._write_plan({**record, "order": order, "created": created, "current": True, "runs": runs})
        for plan in plans.values():
            if plan["current"]:
                self._write_plan({**plan, "current": False})

    def add_plan(self, record: Mapping[str, Any]) -> None:
        """Keep a plan of another folder beside those that are here."""
        plans = {plan["id"]: plan for plan in self.plans()}
        before = plans.get(record["id"])
        runs = [run for run in (before or {"runs": []})["runs"] if run not in record["runs"]]
        order = before["order"] if before else 1 + max((plan["order"] for plan in plans.values()), default=0)
        created = before["created"] if before else order
        self._write_plan({**record, "order": order, "created": created, "runs": [*runs, *record["runs"]]})

    def _write_plan(self, record: Mapping[str, Any]) -> None:
        write_json(self.folder / "plans" / f"{record['id']}.json", record)

    def check_fits(self, plan: Plan) -> None:
        """Check that the rows of a plan may stand beside those that the folder has.

        Raises
        ------
        InputError
            The folder is for another screen, or has another protocol of the same name.
        """
        records = self.plans()
        screens = {record["screen"]["fingerprint"]: record["screen"] for record in records}
        if screens and plan.screen.fingerprint not in screens:
            raise InputError(
                f"{self.folder} holds scores of another screen: {_differences(list(screens.values())[-1], plan)}",
                remedy="give another folder; `txeval merge` puts several together",
            )
        for record in records:
            name = plan.config.protocol.name
            if record["protocol"]["name"] == name and record["protocol_digest"] != plan.protocol_digest:
                raise InputError(
                    f"{self.folder} holds scores of another protocol of the name {name!r}: "
                    + "; ".join(changes(record["protocol"], plan.config.protocol.to_dict()) or ["min_counts"]),
                    remedy="give the changed protocol a name of its own (name: ...), or give another folder",
                )

    def write_repeat(self, plan: Plan) -> None:
        """Write `run.yaml` and its protocol, from which the run can be repeated."""
        protocol = plan.config.protocol
        safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", protocol.name) or "protocol"
        name = f"protocols/{safe}-{plan.protocol_digest}.yaml"
        self._write_yaml(self.folder / name, protocol.to_dict())
        self._write_yaml(self.folder / "run.yaml", plan.config.to_dict(name))

    def _write_yaml(self, path: Path, data: Any) -> None:
        # By way of JSON, so that the file holds plain YAML and nothing of Python's.
        text = yaml.safe_dump(json.loads(json.dumps(data, default=str)), sort_keys=False, allow_unicode=True)
        write_atomically(path, lambda handle: _write(handle, text.encode()))

    def save_split(self, digest: str, table: pd.DataFrame) -> None:
        """Keep which samples are in which split."""
        path = self.folder / "splits" / f"{digest}.parquet"
        if not path.exists():
            write_table(path, table)

    def samples_path(self, screen: str) -> Path:
        """File with the roles of the samples of a screen, by its fingerprint."""
        return self.folder / "samples" / f"{screen}.parquet"

    def save_samples(self, screen: str, samples: Samples) -> None:
        """Keep the roles of the samples of a screen."""
        path = self.samples_path(screen)
        if path.exists():
            return
        codes = pd.Categorical.from_codes
        perturbation = codes(samples.perturbation, pd.Index(samples.perturbations.astype(object)))
        table = pd.DataFrame({"perturbation": perturbation})
        table["target_gene"] = pd.Categorical(samples.target_genes.astype(object)[samples.perturbation])
        table["batch"] = codes(samples.batch, pd.Index(samples.batches.astype(object)))
        table["is_control"] = samples.is_control
        if samples.cell_line is not None and samples.cell_lines is not None:
            table["cell_line"] = codes(samples.cell_line, pd.Index(samples.cell_lines.astype(object)))
        write_table(path, table)

    def load_samples(self, screen: str) -> pd.DataFrame | None:
        """Give one row per kept sample: perturbation, target_gene, batch, is_control, cell_line where there is one.

        None where the file is missing, or (with a warning) damaged.
        """
        path = self.samples_path(screen)
        if not path.is_file():
            return None
        try:
            return pd.read_parquet(path)
        except Exception as why:  # the parquet library has no common error for damaged files
            self.warn(f"{path} is damaged and does not count: {str(why).splitlines()[0] if str(why) else why!r}")
            return None

    def assemble(self) -> Assembled:
        """Make scores, details, splits and manifest from what is stored."""
        return assemble(self)


def _write(handle: Any, content: bytes) -> None:
    handle.write(content)


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _open_rows(path: Path, n: int) -> NpyRows:
    index = None
    file = path
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as content:
            # A path that is absolute already stays as it is.
            file = path.parent / str(content["of"])
            index = content.get("index")
            state = file.stat()
            if (state.st_size, state.st_mtime_ns) != (int(content["size"]), int(content["modified"])):
                raise ValueError(f"{file} has changed since")
    rows = NpyRows(file, index)
    shape = rows.mapped.shape
    if len(shape) != 2 or rows.shape[0] != n or rows.dtype.kind != "f":
        raise ValueError(f"it has shape {shape} and type {rows.dtype}")
    if index is not None and not ((index >= 0) & (index < shape[0])).all():
        raise ValueError("it picks rows that do not exist")
    return rows


def _differences(record: Mapping[str, Any], plan: Plan) -> str:
    from txeval.run.plan import screen_record

    ours = screen_record(plan.screen)
    found = [
        f"{name} {record.get(name)!r} there, {ours[name]!r} now"
        for name in ("path", "layer", "scale", "roles", "n_file", "n", "n_genes")
        if record.get(name) != ours[name]
    ]
    return "; ".join(found) or "the values in the file have changed"


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two protocols differ, as text."""
    found = []
    for key in sorted({*old, *new}):
        if not prefix and key in ABOUT:
            continue
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += changes(one, other, f"{prefix}{key}.")
        elif one != other:
            found.append(f"{prefix}{key} {one!r} there, {other!r} now")
    return found


def read_scores(folder: Path | str) -> pd.DataFrame:
    """Read the scores of a results folder: one row per score, the columns of `txeval.run.rows.COLUMNS`.

    Raises
    ------
    InputError
        The folder does not exist, holds no results, or its table is damaged.
    """
    path = Path(folder) / "scores.parquet"
    Store(Path(folder)).check(needed=True)
    if not path.is_file():
        raise InputError(
            f"{folder} has no scores yet: its run was stopped before it could write them",
            remedy="run the same command again; it goes on where it was",
        )
    try:
        return score_frame(pd.read_parquet(path))
    except Exception as why:  # the parquet library has no common error for damaged files
        raise InputError(
            f"{path} cannot be read: {str(why).splitlines()[0] if str(why) else type(why).__name__}",
            remedy="run the same command again; it writes the table anew and computes nothing twice",
        ) from None


def read_protocols(folder: Path | str) -> dict[str, Record]:
    """Read the protocols of a results folder: name -> plain data, as `Protocol.to_dict` gives it."""
    return {record["protocol"]["name"]: dict(record["protocol"]) for record in Store(Path(folder)).plans()}


def read_details(folder: Path | str, task: str, table: str) -> pd.DataFrame:
    """Read a details table of a results folder: `perturbations`, `genes`, `units`, ... of one task.

    Raises
    ------
    InputError
        There is no such task or table.
    """
    Store(Path(folder)).check(needed=True)
    there = sorted((Path(folder) / "details").glob("*.parquet"))
    names = [path.name.removesuffix(".parquet") for path in there]
    tasks = sorted({name.partition(".")[0] for name in names})
    if task not in tasks:
        raise unknown("task with details", task, tasks, where=str(folder))
    tables = [name.partition(".")[2] for name in names if name.partition(".")[0] == task]
    if table not in tables:
        raise unknown(f"details table of {task}", table, tables, where=str(folder))
    return pd.read_parquet(Path(folder) / "details" / f"{task}.{table}.parquet")
