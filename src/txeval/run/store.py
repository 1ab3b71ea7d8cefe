"""A results folder: finished cells, embeddings and fitted post-processings under digests of what determines them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
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
    remove_temporary,
    storing,
    write_atomically,
    write_document,
    write_rows,
    write_table,
)
from txeval.run.folder import (
    Damaged,
    fault_of,
    inside,
    is_whole,
    open_regular,
    open_table,
    read_bytes,
    read_document,
    read_json,
    seal_of,
    table_frame,
    unreadable,
    verify,
)
from txeval.run.rows import score_frame
from txeval.run.schemas import IDENTIFIER, AboutEmbedding, Cell, Manifest, Seal, Sealed
from txeval.run.schemas import Plan as PlanForm

if TYPE_CHECKING:
    from txeval.data.samples import Samples
    from txeval.run.plan import Plan

__all__ = ["UNITS_TABLE", "Store", "read_details", "read_scores"]

#: Name of the details table that holds the contributions of resampling units to each score.
UNITS_TABLE = "units"

_FOLDERS = ("cells", "embeddings", "postprocessing", "plans", "protocols", "samples", "splits")

#: Documents by where they are; those without a form are YAML.
_FORMS: Mapping[str, type | None] = {
    "manifest.json": Manifest,
    "run.yaml": None,
    "cells/*.json": Cell,
    "embeddings/*.json": AboutEmbedding,
    "plans/*.json": PlanForm,
    "postprocessing/*.json": Sealed,
    "protocols/*.yaml": None,
    "samples/*.json": Sealed,
    "splits/*.json": Sealed,
}

_AGAIN = "run the same command again; it writes the tables anew and computes nothing twice"

Record = dict[str, Any]


class Store:
    """A results folder.

    - `cells/<key>.json` (scores, time, memory) and `cells/<key>.<table>.parquet` (details) of each finished cell;
    - `embeddings/<key>.npy` (or `.index.npy`: rows of another file), `.json`; `postprocessing/<key>.npz`, `.json`;
    - `plans/<id>.json`: what was asked for, `splits/<digest>.parquet`, `.json`, `protocols/*.yaml`, `run.yaml`;
    - `samples/<screen>.parquet`, `.json`: label, target, batch and control flag of every kept sample, so that reports
      can be made where the screen is not;
    - views made from these by `assemble`: `scores.parquet`, `scores.csv`, `details/<task>.<table>.parquet`,
      `splits.parquet`, `manifest.json`.

    Documents (JSON, YAML) have the digest of their content at their head; the digest of any other file is in the
    document that names it: that of its cell, the `.json` beside it, or the manifest.

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
        for name in (*_FOLDERS, "details", "scratch"):
            inside(self.folder, name, "any")
        path = self.folder / "manifest.json"
        try:
            manifest = read_json(path)
            if manifest is not None and not is_whole(read_bytes(path)) and _format(manifest) == FORMAT:
                raise Damaged("its content is not what its digest says")
        except ValueError as why:
            self.warn(f"{path} is damaged and will be written again ({why})")
            if not needed:
                return
            raise InputError(f"{path} is damaged: {why}", remedy=_AGAIN) from None
        if manifest is not None:
            self._check_format(manifest)
        elif needed and not (self.folder / "plans").is_dir():
            what = "holds no results of txeval" if self.folder.is_dir() else "does not exist"
            raise InputError(f"{self.folder} {what}", remedy="give the folder that `txeval run --out` wrote")

    def _check_format(self, manifest: Any) -> None:
        found = _format(manifest)
        if found is None:
            raise InputError(
                f"{self.folder / 'manifest.json'} is not a manifest of txeval", remedy="give another folder"
            )
        if found != FORMAT:
            by = f"{self.folder} was written by txeval {str(manifest.get('txeval_version'))[:20]} in format {found}; "
            if found > FORMAT:
                raise InputError(
                    f"{by}this is txeval {__version__}, which knows formats up to {FORMAT}",
                    remedy="update txeval, or give another folder",
                )
            raise InputError(
                f"{by}txeval {__version__} writes format {FORMAT} and does not mix the two",
                remedy="give another folder; that version still reads this one",
            )

    def manifest(self) -> Record:
        """What the folder holds, as the last run has written it down.

        Raises
        ------
        InputError
            The folder holds no results, or its manifest is damaged.
        """
        self.check(needed=True)
        try:
            return read_document(self.folder / "manifest.json", Manifest) or {}
        except Damaged as why:
            raise InputError(f"{self.folder / 'manifest.json'} is damaged: {why}", remedy=_AGAIN) from None

    def prepare(self) -> None:
        """Make the folder and its rooms, and check that it can be written to."""
        self.check()
        with storing(self.folder):
            for name in _FOLDERS:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        if not (self.folder / "manifest.json").exists():
            write_document(self.folder / "manifest.json", {"format": FORMAT, "txeval_version": __version__})

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
        return inside(self.folder, "cells", f"{key}.json")

    def save_cell(self, key: str, cell: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> None:
        """Keep a finished cell: its tables first, then the file that says that it is finished."""
        seals = {}
        for name, table in tables.items():
            if not re.fullmatch(IDENTIFIER, name):
                raise ValueError(f"a details table is called {name!r}; use letters, digits, - and _")
            seals[name] = write_table(self._table_path(key, name), table)
        before: Record | None = None
        with contextlib.suppress(ValueError, InputError):
            before = read_document(self.cell_path(key), Cell)
        write_document(self.cell_path(key), {"format": FORMAT, "key": key, **cell, "tables": seals})
        for name in set(before["tables"] if before else ()) - set(seals):
            with contextlib.suppress(OSError):
                self._table_path(key, name).unlink()

    def load_cell(self, key: str) -> Record | None:
        """Give a stored cell; None where there is none, or (with a warning) where it or a table of it is damaged."""
        path = self.cell_path(key)
        try:
            cell = read_document(path, Cell)
            if cell is None:
                return None
            if cell["key"] != key:
                raise Damaged("it does not hold what its name says")
            if cell["format"] != FORMAT:
                raise Damaged(f"it has format {cell['format']}")
            for name, seal in cell["tables"].items():
                table = self._table_path(key, name)
                with _naming(table):
                    verify(table, seal)
        except ValueError as why:
            self.warn(f"the stored cell {path.name} is damaged and does not count: {why}")
            return None
        return cell

    def load_table(self, cell: Mapping[str, Any], name: str) -> pd.DataFrame:
        """Give a details table of a cell that was loaded."""
        path = self._table_path(cell["key"], name)
        with _naming(path):
            return table_frame(path, cell["tables"][name])

    def copy_cell(self, source: Store, key: str) -> None:
        """Take over a cell of another folder, its tables first."""
        cell = source.load_cell(key)
        if cell is None:
            return
        for name in cell["tables"]:
            _copy(source._table_path(key, name), self._table_path(key, name))
        _copy(source.cell_path(key), self.cell_path(key))

    def load_units(self, key: str) -> dict[tuple[str, str], Units]:
        """Give the units of the scores of a cell by (metric, subset); empty where it has none with labels."""
        cell = self.load_cell(key)
        if cell is None or UNITS_TABLE not in cell["tables"]:
            return {}
        return units_from_frame(self.load_table(cell, UNITS_TABLE))

    def forget_cell(self, key: str) -> None:
        """Take a cell out, so that the next run computes it again."""
        with contextlib.suppress(OSError):
            self.cell_path(key).unlink(missing_ok=True)

    def _table_path(self, key: str, name: str) -> Path:
        return inside(self.folder, "cells", f"{key}.{name}.parquet")

    # Embeddings and fitted post-processings

    def embedding_folder(self, key: str) -> Path:
        """Where the embedder may keep files of its own."""
        path = inside(self.folder, "embeddings", f"{key}.work")
        with storing(path):
            if path.is_symlink():
                path.unlink()
            path.mkdir(parents=True, exist_ok=True)
        return path

    def forget_embedding_folder(self, key: str) -> None:
        """Remove the embedder's own files, once the embedding is kept."""
        shutil.rmtree(self.folder / "embeddings" / f"{key}.work", ignore_errors=True)

    def save_embedding(self, key: str, values: Rows, about: Mapping[str, Any], max_elements: int | None = None) -> None:
        """Keep an embedding, with where it is from.

        As float32 in an .npy file; where it consists of rows of another file that stays (a stored embedding, or an
        .npy file of the user), as the numbers of these rows. The document is written last: with it, it is there.
        """
        target, index = self._of_embedding(key, "npy"), self._of_embedding(key, "index.npy")
        record = dict(about)
        if not isinstance(values, NpyRows):
            record["file"] = write_rows(target, values, max_elements)
        elif not _within(values.path, self._of_embedding(key, "work")):
            own = _within(values.path, self.folder / "embeddings")
            record |= {"of": values.path.name if own else str(values.path.absolute()), "file": seal_of(values.path)}
            if values.index is not None:
                picked = values.index
                write_atomically(index, lambda handle: np.save(handle, picked))
                record["index"] = seal_of(index)
        elif values.index is None and values.dtype == np.float32:
            with storing(target):
                values.path.replace(target)
            record["file"] = seal_of(target)
        else:
            record["file"] = write_rows(target, values, max_elements)
        write_document(self._of_embedding(key, "json"), record)

    def load_embedding(self, key: str, n: int) -> Rows | None:
        """Give a stored embedding of n samples, memory-mapped; None where there is none or it is damaged."""
        try:
            about = read_document(self._of_embedding(key, "json"), AboutEmbedding)
            if about is None:
                return None
            return _open_rows(self._values_path(key, about), about, self._of_embedding(key, "index.npy"), n)
        except FileNotFoundError:
            # Merging leaves the values behind.
            return None
        except ValueError as why:
            self.warn(f"the stored embedding {key} is damaged and will be made again: {why}")
            return None

    def _of_embedding(self, key: str, ending: str) -> Path:
        return inside(self.folder, "embeddings", f"{key}.{ending}")

    def _values_path(self, key: str, about: Mapping[str, Any]) -> Path:
        of = about.get("of")
        if of is None:
            return self._of_embedding(key, "npy")
        # A file of the user stays where it is; its content is known by its digest, so that no other is read for it.
        return Path(of) if Path(of).is_absolute() else inside(self.folder, "embeddings", of)

    def forget_made(self, key: str, fit_key: str) -> None:
        """Take an embedding and a fitted post-processing out, so that they are made again."""
        for path in (self._of_embedding(key, "json"), self._of_embedding(key, "npy"), self._fit_path(fit_key)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def embedding_about(self, key: str) -> Record:
        """Where a stored embedding is from."""
        with contextlib.suppress(ValueError):
            return read_document(self._of_embedding(key, "json"), AboutEmbedding) or {}
        return {}

    def _fit_path(self, key: str) -> Path:
        return inside(self.folder, "postprocessing", f"{key}.npz")

    def save_fitted(self, key: str, fitted: Fitted) -> None:
        """Keep a fitted post-processing."""
        path = self._fit_path(key)
        with storing(path):
            fitted.save(path)
        write_document(path.with_suffix(".json"), {"file": seal_of(path)})

    def load_fitted(self, key: str) -> Fitted | None:
        """Give a fitted post-processing; None where there is none or it is damaged."""
        path = self._fit_path(key)
        try:
            self._verify_sealed(path)
            with zipfile.ZipFile(path) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise Damaged("it is compressed")
            return Fitted.load(path)
        except FileNotFoundError:
            return None
        except (ValueError, InputError, zipfile.BadZipFile) as why:
            self.warn(f"the fitted post-processing {path.name} is damaged and will be fitted again: {why}")
            return None

    def _verify_sealed(self, path: Path) -> Seal:
        """Check a file against the document beside it, and give its seal."""
        about = read_document(path.with_suffix(".json"), Sealed)
        if about is None:
            raise FileNotFoundError(path)
        seal: Seal = about["file"]
        verify(path, seal)
        return seal

    def _sealed_table(self, path: Path) -> pd.DataFrame:
        """Read a table that has a document beside it; FileNotFoundError or Damaged where it is not as it was stored."""
        return table_frame(path, self._verify_sealed(path))

    def _save_sealed(self, path: Path, make: Callable[[], pd.DataFrame]) -> None:
        """Write a table and the document beside it, where they are not there as they should be."""
        try:
            self._verify_sealed(path)
        except (ValueError, FileNotFoundError) as why:
            if isinstance(why, ValueError):
                self.warn(f"{path} is damaged and is written again: {why}")
            write_document(path.with_suffix(".json"), {"file": write_table(path, make())})

    @contextmanager
    def making(self, room: str, key: str) -> Iterator[None]:
        """Hold one embedding or post-processing, so that two workers do not make it both."""
        with folder_lock(self.folder / room, wait=True, name=f".{key}.lock"):
            yield
            # While it is held: whoever waits for it notices that its file has gone, and takes a new one.
            with contextlib.suppress(OSError):
                (self.folder / room / f".{key}.lock").unlink()

    # Plans

    def plans(self, *, strict: bool = False) -> list[Record]:
        """Everything that was asked of this folder, the oldest first.

        Parameters
        ----------
        strict
            Raise InputError for a damaged one, instead of leaving it out with a warning.
        """
        found = []
        for path in sorted((self.folder / "plans").glob("*.json")):
            try:
                record = read_document(inside(self.folder, "plans", path.name), PlanForm)
                if record is None or record["id"] != path.stem:
                    raise Damaged("it does not hold what its name says")
                found.append(record)
            except ValueError as why:
                if strict:
                    raise InputError(f"{path} is damaged: {why}", remedy="run its command again") from None
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
        write_document(inside(self.folder, "plans", f"{record['id']}.json"), record)

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
        name = self.write_protocol(plan.config.protocol.to_dict(), plan.protocol_digest)
        write_document(self.folder / "run.yaml", _yaml(plan.config.to_dict(name)))

    def write_protocol(self, protocol: Mapping[str, Any], digest: str) -> str:
        """Write a protocol, and give its name in the folder."""
        safe = re.sub(r"[^A-Za-z0-9_-]+", "-", protocol["name"])[:80] or "protocol"
        write_document(inside(self.folder, "protocols", f"{safe}-{digest}.yaml"), _yaml(protocol))
        return f"protocols/{safe}-{digest}.yaml"

    def split_path(self, digest: str) -> Path:
        """File with the splits of a digest."""
        return inside(self.folder, "splits", f"{digest}.parquet")

    def save_split(self, digest: str, make: Callable[[], pd.DataFrame]) -> None:
        """Keep which samples are in which split."""
        self._save_sealed(self.split_path(digest), make)

    def load_split(self, digest: str) -> pd.DataFrame:
        """One row per kept sample: split, row, sample, train, test, heldout.

        Raises
        ------
        FileNotFoundError, Damaged
            The folder does not have it as it was stored.
        """
        return self._sealed_table(self.split_path(digest))

    def samples_path(self, screen: str) -> Path:
        """File with the roles of the samples of a screen, by its fingerprint."""
        return inside(self.folder, "samples", f"{screen}.parquet")

    def save_samples(self, screen: str, samples: Samples) -> None:
        """Keep the roles of the samples of a screen."""
        self._save_sealed(self.samples_path(screen), lambda: _samples_table(samples))

    def load_samples(self, screen: str) -> pd.DataFrame | None:
        """Give one row per kept sample: perturbation, target_gene, batch, is_control, cell_line where there is one.

        None where the file is missing, or (with a warning) damaged.
        """
        path = self.samples_path(screen)
        try:
            return self._sealed_table(path)
        except FileNotFoundError:
            return None
        except Damaged as why:
            self.warn(f"{path} is damaged and does not count: {why}")
            return None

    def copy_sources(self, source: Store, record: Record) -> None:
        """Take over the split and the samples of a plan of another folder, and where its embeddings are from."""
        for room, name in (("splits", record["split"]["digest"]), ("samples", record["screen"]["fingerprint"])):
            path, seal = (inside(store.folder, room, f"{name}.parquet") for store in (source, self))
            try:
                source._verify_sealed(path)
            except FileNotFoundError:
                continue
            except Damaged as why:
                self.warn(f"{path} is damaged and left out: {why}")
                continue
            if not seal.with_suffix(".json").exists():
                for ending in (".parquet", ".json"):
                    _copy(path.with_suffix(ending), seal.with_suffix(ending))
        for key in (key for model in record["models"] for key in model["fingerprints"]):
            path = self._of_embedding(key, "json")
            about = source.embedding_about(key)
            if about and not path.exists():
                _copy(source._of_embedding(key, "json"), path)

    # Views

    def view(self, *parts: str) -> tuple[Path, Seal]:
        """File of a table that was made from the cells, and what is known of it.

        Raises
        ------
        InputError
            The folder holds no results, or it was changed since they were made.
        FileNotFoundError
            There is no such table.
        """
        path = inside(self.folder, *parts)
        seal = self.manifest().get("files", {}).get("/".join(parts))
        if seal is None:
            raise FileNotFoundError(path)
        try:
            verify(path, seal)
        except (FileNotFoundError, Damaged) as why:
            raise InputError(f"{path} {fault_of(why)}", remedy=_AGAIN) from None
        return path, seal

    def details(self) -> list[tuple[str, str]]:
        """Task and name of each details table."""
        names = [name.removeprefix("details/") for name in self.manifest().get("files", {}) if "/" in name]
        return sorted((task, rest.removesuffix(".parquet")) for task, _, rest in (n.partition(".") for n in names))

    def read_units(self, task: str, metric: str) -> pd.DataFrame:
        """Contributions of the units to the scores of one metric; FileNotFoundError where there are none."""
        texts = ["dataset", "protocol", "model", "post_processing", "metric", "subset"]
        texts += ["factor_a", "factor_b", "label_a", "label_b"]
        path, seal = self.view("details", f"{task}.{UNITS_TABLE}.parquet")
        return table_frame(path, seal, where=("metric", metric), dictionary=texts)

    def open_details(self, task: str, table: str) -> contextlib.AbstractContextManager[pq.ParquetFile]:
        """Open a details table; FileNotFoundError where there is none, InputError where it is damaged."""
        return open_table(*self.view("details", f"{task}.{table}.parquet"))

    def verified(self) -> tuple[int, list[str]]:
        """Number of stored files, and what is wrong with those that are not what was stored."""
        seals: dict[Path, Seal] = {}
        faults = []
        n = 0
        for pattern, form in _FORMS.items():
            for path in sorted(self.folder.glob(pattern)):
                n += 1
                try:
                    name = path.relative_to(self.folder)
                    inside(self.folder, *name.parts)
                    if form is None:
                        if not is_whole(read_bytes(path)):
                            raise Damaged("its content is not what its digest says")
                        continue
                    found = read_document(path, form) or {}
                except (ValueError, InputError) as why:
                    faults.append(f"{path}: {why}")
                    continue
                if form is Manifest:
                    seals |= {inside(self.folder, *name.split("/")): seal for name, seal in found["files"].items()}
                elif form is Cell:
                    seals |= {self._table_path(path.stem, name): seal for name, seal in found["tables"].items()}
                elif form is Sealed:
                    seals[path.with_suffix(".npz" if name.parts[0] == "postprocessing" else ".parquet")] = found["file"]
                elif form is AboutEmbedding:
                    ours = self._of_embedding(path.stem, "npy")
                    # Merging leaves the values behind.
                    if ours.exists() and found.get("of") is None:
                        seals[ours] = found["file"]
                    if found.get("index") is not None and self._of_embedding(path.stem, "index.npy").exists():
                        seals[self._of_embedding(path.stem, "index.npy")] = found["index"]
        for path, seal in seals.items():
            try:
                verify(path, seal)
            except (FileNotFoundError, Damaged) as why:
                faults.append(f"{path}: {'it is missing' if isinstance(why, FileNotFoundError) else why}")
        return n + len(seals), faults

    def assemble(self) -> Assembled:
        """Make scores, details, splits and manifest from what is stored."""
        return assemble(self)


def _format(manifest: Any) -> int | None:
    found = manifest.get("format") if isinstance(manifest, dict) else None
    return found if isinstance(found, int) else None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file is damaged."""
    try:
        yield
    except (FileNotFoundError, Damaged) as why:
        raise Damaged(f"its table {path.name} {fault_of(why)}") from None


def _copy(source: Path, target: Path) -> None:
    with storing(target), open_regular(source) as content:
        write_atomically(target, lambda handle: shutil.copyfileobj(content, handle))


def _yaml(data: Any) -> str:
    # By way of JSON, so that the file holds plain YAML and nothing of Python's.
    text: str = yaml.safe_dump(json.loads(json.dumps(data, default=str)), sort_keys=False, allow_unicode=True)
    return text


def _samples_table(samples: Samples) -> pd.DataFrame:
    codes = pd.Categorical.from_codes
    perturbation = codes(samples.perturbation, pd.Index(samples.perturbations.astype(object)))
    table = pd.DataFrame({"perturbation": perturbation})
    table["target_gene"] = pd.Categorical(samples.target_genes.astype(object)[samples.perturbation])
    table["batch"] = codes(samples.batch, pd.Index(samples.batches.astype(object)))
    table["is_control"] = samples.is_control
    if samples.cell_line is not None and samples.cell_lines is not None:
        table["cell_line"] = codes(samples.cell_line, pd.Index(samples.cell_lines.astype(object)))
    return table


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _open_rows(path: Path, about: Mapping[str, Any], index_path: Path, n: int) -> NpyRows:
    verify(path, about["file"])
    index = None
    if about.get("index") is not None:
        verify(index_path, about["index"])
        index = np.load(index_path, mmap_mode="r", allow_pickle=False)
    rows = NpyRows(path, index)
    shape = rows.mapped.shape
    if len(shape) != 2 or rows.shape[0] != n or rows.dtype.kind != "f":
        raise Damaged(f"it has shape {shape} and type {rows.dtype}")
    if index is not None and not (index.dtype.kind == "i" and ((index >= 0) & (index < shape[0])).all()):
        raise Damaged("it picks rows that do not exist")
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
    try:
        path, seal = Store(Path(folder)).view("scores.parquet")
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no scores yet: its run was stopped before it could write them",
            remedy="run the same command again; it goes on where it was",
        ) from None
    frame = table_frame(path, seal)
    try:
        scores = score_frame(frame)
        for text in scores["left_out"].unique():
            msgspec.json.decode(text or "{}", type=dict[str, int])
        return scores
    except (ValueError, TypeError, RecursionError) as why:
        raise unreadable(path, why) from None


def read_protocols(folder: Path | str) -> dict[str, Record]:
    """Read the protocols of a results folder: name -> plain data, as `Protocol.to_dict` gives it."""
    found = Store(Path(folder)).manifest().get("protocols", [])
    return {protocol["name"]: {k: v for k, v in protocol.items() if k != "fingerprint"} for protocol in found}


def read_details(folder: Path | str, task: str, table: str) -> pd.DataFrame:
    """Read a details table of a results folder: `perturbations`, `genes`, `units`, ... of one task.

    Raises
    ------
    InputError
        There is no such task or table, or it is damaged.
    """
    store = Store(Path(folder))
    there = store.details()
    tasks = sorted({name for name, _ in there})
    if task not in tasks:
        raise unknown("task with details", task, tasks, where=str(folder))
    tables = [name for own, name in there if own == task]
    if table not in tables:
        raise unknown(f"details table of {task}", table, tables, where=str(folder))
    return table_frame(*store.view("details", f"{task}.{table}.parquet"))
