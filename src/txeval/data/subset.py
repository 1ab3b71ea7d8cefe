"""A part of a screen that keeps its composition: drawn within every batch and perturbation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem

from txeval.compute.arrays import Ints
from txeval.compute.random import stream
from txeval.data.locate import whole_or_nothing
from txeval.data.matrix import RAW, open_store, var_of
from txeval.data.roles import Roles
from txeval.data.screen import Progress, Screen, open_screen
from txeval.data.writing import open_writer
from txeval.destination import check_destination
from txeval.errors import InputError

__all__ = ["Subset", "draw", "subset_screen"]


@dataclass(frozen=True)
class Subset:
    """A part of a screen that was written.

    Attributes
    ----------
    path
        The new file.
    rows
        (m,) int64, row numbers in the file of the samples, increasing.
    record
        What was drawn from what, as plain data; it is in `uns["txeval"]["subset"]` of the file, too.
    """

    path: Path
    rows: Ints
    record: dict[str, Any]


def draw(screen: Screen, n: int, *, seed: int) -> Ints:
    """Draw samples of a screen within each batch and perturbation, in proportion.

    Every combination of a batch and a perturbation keeps one sample where `n` allows it; the rest is shared out in
    proportion to what is left of each, by largest remainders. Which samples are drawn within a combination depends
    on the seed, the labels and the names of its samples, not on the order of the file.

    Parameters
    ----------
    n
        Number of samples; all where there are no more.

    Returns
    -------
    (m,) int64 numbers of kept samples, increasing
    """
    samples = screen.samples
    if n >= samples.n:
        return np.arange(samples.n)
    stratum = samples.perturbation * len(samples.batches) + samples.batch
    present, code, sizes = np.unique(stratum, return_inverse=True, return_counts=True)
    labels = [
        (str(samples.perturbations[s // len(samples.batches)]), str(samples.batches[s % len(samples.batches)]))
        for s in present.tolist()
    ]
    quota = _shares(sizes, n, [stream(seed, "subset", *label).random() for label in labels])
    order = np.argsort(code.reshape(-1), kind="stable")
    chosen = []
    names = screen.sample_names
    for label, size, stop, want in zip(labels, sizes, np.cumsum(sizes), quota, strict=True):
        rows = order[stop - size : stop]
        rows = rows[np.argsort(names[rows].astype(str), kind="stable")]
        chosen.append(rows[stream(seed, "subset rows", *label).permutation(size)[:want]])
    drawn: Ints = np.sort(np.concatenate(chosen).astype(np.int64))
    return drawn


def _shares(sizes: Ints, n: int, ties: list[float]) -> Ints:
    """Samples to draw from each stratum, n in all: one of each where that is possible, the rest in proportion."""
    base = np.ones_like(sizes) if n >= len(sizes) else np.zeros_like(sizes)
    rest = sizes - base
    exact = (n - base.sum()) * rest / max(1, rest.sum())
    share = np.floor(exact).astype(np.int64)
    order = np.lexsort((ties, -(exact - share)))
    share[order[: int(n - base.sum() - share.sum())]] += 1
    made: Ints = base + share
    return made


def subset_screen(
    path: str | Path,
    out: str | Path,
    roles: Roles,
    *,
    n: int,
    seed: int = 0,
    layer: str | None = None,
    labels: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Subset:
    """Write a part of a screen as .h5ad, stratified by batch and perturbation.

    X, every layer and every embedding are kept, with all columns of obs and var. Samples without a label are left out
    and counted; those of labels that the roles exclude stay, so that the same roles fit the part. Only rows that were
    drawn are read; one layer of them is in memory at a time.

    Parameters
    ----------
    n
        Number of samples, from 1 up.
    layer
        Which matrix the scale is checked on; all are copied.
    overwrite
        Whether an existing file may be replaced.

    Raises
    ------
    InputError
        The screen or `out` cannot be used, or `n` is no number of samples.
    """
    path = Path(path)
    if n < 1:
        raise InputError(f"a part of {n} samples", remedy="ask for 1 or more")
    out = check_destination(out, suffixes=(".h5ad",), overwrite=overwrite)
    if out.exists() and out.resolve() == path.resolve():
        raise InputError(f"{out} is the screen itself", remedy="name another file")
    with open_screen(path, replace(roles, exclude=()), layer=layer, labels=labels) as screen:
        chosen = draw(screen, n, seed=seed)
        rows = screen.kept[chosen]
        record = {
            "of": path.name,
            "fingerprint": screen.fingerprint,
            "samples_asked": n,
            "samples": len(rows),
            "of_samples": screen.n_file,
            "seed": seed,
            "stratified_by": [name for name in (roles.perturbation, roles.batch) if name],
            "perturbations": len(np.unique(screen.samples.perturbation[chosen])),
            "of_perturbations": len(screen.samples.perturbations),
            "batches": len(np.unique(screen.samples.batch[chosen])),
            "of_batches": len(screen.samples.batches),
            "left_out": dict(screen.report["dropped"]),
        }
        obsm = {key: np.asarray(screen.read_obsm(key, chosen), dtype=np.float32) for key in screen.obsm_keys()}
    store = open_store(path, labels=None if labels is None else Path(labels))
    try:
        obs, var = store.frame("obs").iloc[rows], store.frame("var")
        for name in obs.columns:
            if isinstance(obs[name].dtype, pd.CategoricalDtype):
                obs = obs.assign(**{name: obs[name].cat.remove_unused_categories()})
        places = [store.place(name) for name in store.layers()]
        with whole_or_nothing(out) as part:
            first = "X" if _has_x(store) else places.pop(0)
            matrix = store.matrix(first)
            with open_writer(
                part,
                genes=store.names("var"),
                obs=obs,
                var=var,
                obsm=obsm,
                uns={"txeval": {"subset": record}},
                layout="dense" if matrix.stored.startswith(("dense", "text by genes")) else "csr",
            ) as writer:
                for start in range(0, len(rows), step := max(1, 4_000_000 // max(1, matrix.shape[1]))):
                    writer.append(matrix.rows(rows[start : start + step]))
                    if progress is not None:
                        progress(min(len(rows), start + step), len(rows), "writing the part")
            with h5py.File(part, "r+") as file:
                if "layers" not in file:
                    write_elem(file, "layers", {})
                for place in places:
                    block = store.matrix(place).rows(rows)
                    write_elem(
                        file,
                        place,
                        sp.csr_matrix(block) if sp.issparse(block) else block,
                        dataset_kwargs={"compression": "gzip", "compression_opts": 1},
                    )
                if RAW in places:
                    file["raw"].attrs.update({"encoding-type": "raw", "encoding-version": "0.1.0"})
                    write_elem(file, "raw/var", store.frame(var_of(RAW)))
            record["notes"] = store.notes
    finally:
        store.close()
    return Subset(out, rows, record)


def _has_x(store: Any) -> bool:
    try:
        store.matrix("X")
    except InputError:
        return False
    return True
