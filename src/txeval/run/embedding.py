"""One embedding in a folder of its own, to be used in any run."""

from __future__ import annotations

import csv
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from txeval._version import __version__
from txeval.compute.arrays import Ints, Strings
from txeval.compute.machine import resolve_device
from txeval.data import Roles, Screen, open_screen
from txeval.destination import check_destination
from txeval.embed import check_options, embedding_fingerprint, make_embedding, resolve
from txeval.embed.base import Embedding, EmbeddingContext, EmbeddingSpec
from txeval.errors import InputError, NotComputable
from txeval.protocol import Protocol
from txeval.run.execution import environment
from txeval.run.files import folder_lock, now, storing, write_atomically, write_json, write_rows
from txeval.run.folder import read_json
from txeval.run.plan import screen_record, split_screen
from txeval.run.worker import PeakMemory, single_threaded

__all__ = ["Embedded", "embed_to_folder"]

VALUES, RECORD = "embedding.npy", "embedding.json"

#: Version of the layout of the folder.
FORMAT = 1


@dataclass(frozen=True)
class Embedded:
    """An embedding in its folder.

    Attributes
    ----------
    values
        The .npy file, (n, d) float32.
    record
        What went into it, as `embedding.json` holds it.
    reused
        Whether it was there already.
    saved
        Folder of the trained model, where one was asked for.
    reader
        Embedder whose option `model` reads that folder.
    """

    values: Path
    record: Mapping[str, Any]
    reused: bool = False
    saved: Path | None = None
    reader: str = ""


def embed_to_folder(
    path: Path,
    roles: Roles,
    spec: EmbeddingSpec,
    out: Path,
    *,
    protocol: Protocol,
    layer: str | None = None,
    labels: Path | None = None,
    scale: str | None = None,
    name: str | None = None,
    min_counts: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    save: Path | None = None,
    overwrite: bool = False,
    max_elements: int | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Embedded:
    """Embed the samples of a screen into `out`: `embedding.npy`, the sample names beside it, and `embedding.json`.

    An embedding of the same content that is there already is left as it is; an interrupted one goes on.

    Parameters
    ----------
    spec
        What makes the embedding.
    protocol
        An embedder that learns gets the train split that a run under this protocol would give it.
    min_counts
        Embed samples with a total count above it only, and learn from such. None: embed all samples, and learn from
        those that the quality control of the protocol keeps.
    save
        Folder for the model, where one is trained.
    overwrite
        Whether an embedding of another content in `out` may be replaced.

    Raises
    ------
    InputError
        For everything that the user can put right.
    """
    info = resolve(spec).info
    options = check_options(info, spec.options, label=spec.label)
    out = check_destination(out, folder=True)
    # A model that is trained already is named by the option of this name.
    ready = bool(options.get("model")) and bool(info.model_reader)
    if save is not None:
        if not info.model_reader or ready:
            raise InputError(f"{spec.source} trains no model, so there is nothing to save", remedy="leave --save out")
        save = check_destination(save, option="--save", folder=True, overwrite=False, remedy="remove it")
        if save.resolve() in (out.resolve(), *out.resolve().parents):
            raise InputError(
                f"{save} cannot hold the model: the embedding goes to {out}", remedy="name another folder with --save"
            )
    with open_screen(
        path,
        roles,
        layer=layer,
        scale=scale,
        min_counts=min_counts or 0,
        name=name,
        max_elements=max_elements,
        labels=labels,
    ) as screen:
        train, train_note = None, ""
        if info.uses_train and not ready:
            qc = protocol.quality_control.get("min_counts", 0) if min_counts is None else min_counts
            train, train_note = _train_rows(screen, qc, protocol)
        fingerprint = embedding_fingerprint(spec, screen, seed, train_rows=train)
        out.mkdir(parents=True, exist_ok=True)
        with folder_lock(out):
            there = _there(out, screen.n, fingerprint, overwrite=overwrite)
            if there is not None and save is None:
                return Embedded(out / VALUES, there, reused=True)
            work = out / f".work-{fingerprint[:16]}"
            work.mkdir(exist_ok=True)
            context = EmbeddingContext(
                folder=work,
                seed=seed,
                train_rows=train,
                device=resolve_device(device),
                max_elements=max_elements,
                progress=progress,
            )
            started, begun = time.perf_counter(), now()
            try:
                with PeakMemory() as memory, single_threaded():
                    made = make_embedding(spec, screen, context)
            except NotComputable as why:
                raise InputError(f"{spec.source}: {why}", remedy="give more samples, or other options") from why
            record = {
                "format": FORMAT,
                "embedder": spec.source,
                "options": options,
                "fingerprint": fingerprint,
                "shape": list(made.shape),
                "seed": seed if info.stochastic else None,
                "device": made.provenance.get("device", "cpu"),
                "train": train_note or None,
                "weights": made.provenance.get("weights"),
                "genes": made.provenance.get("genes"),
                "provenance": {**made.provenance, **({} if save is None else {"trained_model": str(save)})},
                "screen": screen_record(screen),
                "made": begun,
                "seconds": round(time.perf_counter() - started, 3),
                "peak_memory_mb": round(memory.peak, 1),
                "txeval_version": __version__,
                **environment(),
            }
            _store(out, screen, made, record, max_elements)
            saved = _keep_model(made.model, save)
            for left in out.glob(".work-*"):
                shutil.rmtree(left, ignore_errors=True)
            return Embedded(out / VALUES, record, saved=saved, reader=info.model_reader)


def _train_rows(screen: Screen, min_counts: float | None, protocol: Protocol) -> tuple[Ints, str]:
    """Rows of the train split that a run would make, among the samples of a screen."""
    with open_screen(
        screen.path,
        screen.roles,
        layer=screen.layer,
        scale=screen.scale if screen.scale_declared else None,
        min_counts=min_counts,
        max_elements=screen.max_elements,
        labels=screen.labels,
    ) as kept:
        rows = split_screen(kept, protocol)["train"]
        if not len(rows):
            raise InputError(f"{screen.path}: the train split is empty", remedy="see txeval validate")
        found: Ints = np.searchsorted(screen.kept, kept.kept[rows]).astype(np.int64)
        control = kept.report["quality_control"]
    return found, f"{len(found):,} samples: the train split of protocol {protocol.name} (quality control: {control})"


def _there(out: Path, n: int, fingerprint: str, *, overwrite: bool) -> dict[str, Any] | None:
    """Record of the embedding in a folder, where it is the one wanted."""
    try:
        record = read_json(out / RECORD)
        known = "" if record is None else str(record["fingerprint"])
    except (ValueError, KeyError, TypeError):
        known, record = "damaged", None
    if record is not None and known == fingerprint:
        try:
            shape = np.load(out / VALUES, mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError):
            return None
        return dict(record) if shape[0] == n else None
    if known and not overwrite:
        raise InputError(
            f"{out} holds the embedding of another model, other settings or another screen",
            remedy="name another folder with --out, or allow to replace it with --overwrite",
        )
    return None


def _store(out: Path, screen: Screen, made: Embedding, record: Mapping[str, Any], max_elements: int | None) -> None:
    """Values and names, and the record last: a folder with it is complete."""
    (out / RECORD).unlink(missing_ok=True)
    write_rows(out / VALUES, made.values, max_elements)
    for old in ("embedding.names.txt", "embedding.names.csv"):
        (out / old).unlink(missing_ok=True)
    if screen.has_unique_names:
        _write_names(out, screen.sample_names)
    write_json(out / RECORD, record, indent=1)


def _write_names(out: Path, names: Strings) -> None:
    texts = [str(name) for name in names]
    if all(len(text.splitlines()) == 1 or not text for text in texts):
        content = "".join(f"{text}\n" for text in texts).encode()

        def write(handle: IO[bytes]) -> None:
            handle.write(content)

        write_atomically(out / "embedding.names.txt", write)
        return
    # A name with a line break needs quotes.
    with (out / "embedding.names.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, quoting=csv.QUOTE_ALL).writerows([text] for text in texts)


def _keep_model(trained: Path | None, save: Path | None) -> Path | None:
    """Copy the folder of a trained model to the place that the user named, whole or not at all."""
    if save is None:
        return None
    if trained is None:
        raise InputError("the embedder gave no trained model", remedy="leave --save out; the embedding itself is kept")
    with storing(save):
        save.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=save.parent, prefix=f".{save.name}-"))
        try:
            shutil.copytree(trained, part / "model")
            if save.is_dir():
                save.rmdir()
            (part / "model").replace(save)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return save
