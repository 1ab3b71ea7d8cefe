"""Simulated screens with a known truth, of any size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from txeval.compute.arrays import BLOCK_ELEMENTS, F32, F64, Ints
from txeval.compute.random import stream
from txeval.data.locate import Progress, whole_or_nothing
from txeval.errors import InputError

__all__ = ["CONTROL_LABEL", "Truth", "relations_folder", "simulate_screen"]

#: Label of the non-targeting controls.
CONTROL_LABEL = "non-targeting"

# Rows that share a random stream. Blocks are whole numbers of these, so no value depends on the block size.
_ROWS = 64
_FORMAT = 1
_INVERSE_DISPERSION = 10.0
_INTRINSIC = 0.2
_TRUTH_NOISE = 0.02
_NOISY_NOISE = 0.8
_OFF_MODULE = 0.2
_KNOCK_DOWN = 0.25
_UNEXPRESSED_MEAN = 0.02
_TARGET_MEAN = 1.0


@dataclass(frozen=True)
class Truth:
    """What a simulated screen was made of.

    Attributes
    ----------
    path
        The h5ad file.
    settings
        Arguments of `simulate_screen`.
    perturbations
        One row per perturbation: `perturbation`, `gene` (its target), `kind` ("active"; "none": without effect;
        "unexpressed": of a gene that is not expressed), `module` (number, -1 without one), `strength`.
    effects
        `perturbation`, `module`, `strength`: every shift of the activity of a module, in units of log expression
        at loading 1. Perturbations without effect have no row.
    modules
        `gene`, `module`, `loading` of every gene in a module.
    relations
        `entity1`, `entity2`: pairs of target genes in the same module.
    signal
        (n, n_modules) float32: the activity of every module in every sample, as in `obsm["X_truth"]`.
    """

    path: Path
    settings: dict[str, Any]
    perturbations: pd.DataFrame
    effects: pd.DataFrame
    modules: pd.DataFrame
    relations: pd.DataFrame
    signal: F32

    @classmethod
    def load(cls, path: Path | str) -> Truth:
        """Load the truth of a screen that `simulate_screen` wrote.

        Raises
        ------
        InputError
            Where the file or its truth is not there.
        """
        import h5py

        path = Path(path)
        beside = _truth_file(path)
        if not path.is_file() or not beside.is_file():
            raise InputError(f"{path} has no truth beside it ({beside.name})", remedy="simulate the screen again")
        content = json.loads(beside.read_text(encoding="utf-8"))
        with h5py.File(path, "r") as file:
            signal = np.asarray(file["obsm/X_truth"][...], dtype=np.float32)
        tables = {name: pd.DataFrame(content[name]) for name in ("perturbations", "effects", "modules", "relations")}
        return cls(path=path, settings=content["settings"], signal=signal, **tables)


def relations_folder(path: Path | str) -> Path:
    """Folder of the known relationships of a simulated screen, as `load_relations` reads it."""
    path = Path(path)
    return path.with_name(f"{path.stem}_relations")


def _truth_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}.truth.json")


def simulate_screen(
    out: Path | str,
    *,
    n_samples: int = 4000,
    n_genes: int = 300,
    n_perturbations: int = 40,
    n_batches: int = 6,
    n_modules: int = 8,
    effect: float = 1.0,
    batch_effect: float = 0.2,
    null_fraction: float = 0.1,
    unexpressed_targets: int = 25,
    control_fraction: float = 0.1,
    depth: float = 5000.0,
    seed: int = 0,
    max_elements: int | None = None,
    progress: Progress | None = None,
) -> Truth:
    """Simulate a perturbation screen and write it as h5ad, block by block.

    In sample i of batch b the activity of module m is z_im = strength of its perturbation on m + N(0, 0.2). Gene g
    is expressed in proportion to exp(base_g + sum_m z_im loading_mg + batch shift_bg), its own target at a quarter of
    that; counts are negative binomial around this share of the sample's library (variance mean + mean^2 / 10). A
    perturbation acts on the module of its target with graded strength and, a fifth as strongly, on the others.

    `obs`: `perturbation` (the target gene's name, or "non-targeting"), `gene`, `batch`, `control` (bool). X: counts,
    CSR float32. `obsm`: `X_truth` (z with noise 0.02) and `X_noisy` (z with noise 0.8), without batch effects.
    The truth is written beside the file, and its relations as a folder of databases (`relations_folder`).

    Parameters
    ----------
    out
        The h5ad file; appears whole or not at all.
    n_samples, n_genes, n_batches, n_modules
        Dimensions. Memory does not grow with `n_samples` x `n_genes`.
    n_perturbations
        Perturbations of expressed genes, spread over the modules.
    effect
        Strength of the strongest perturbation; the others go down to a quarter of it. 0: nothing has an effect.
    batch_effect
        Standard deviation of the shift of each gene's log expression in a batch.
    null_fraction
        Share of `n_perturbations` that do nothing, not even to their target.
    unexpressed_targets
        Further perturbations, of genes that are not expressed (mean count about 0.02): they do nothing either.
    control_fraction
        Share of non-targeting controls, at least two in each batch.
    depth
        Median total count of a sample.
    seed
        Same seed and dimensions give the same content, whatever the block size.
    max_elements
        Values per block.
    progress
        Called with (samples done, samples, text).

    Raises
    ------
    InputError
        For dimensions that do not go together, and where the file cannot be written.
    """
    settings = {
        "n_samples": n_samples,
        "n_genes": n_genes,
        "n_perturbations": n_perturbations,
        "n_batches": n_batches,
        "n_modules": n_modules,
        "effect": effect,
        "batch_effect": batch_effect,
        "null_fraction": null_fraction,
        "unexpressed_targets": unexpressed_targets,
        "control_fraction": control_fraction,
        "depth": depth,
        "seed": seed,
    }
    design = _Design(settings)
    out = Path(out)
    with whole_or_nothing(out) as part:
        signal = _write(part, design, max_elements, progress)
        truth = Truth(out, settings, design.perturbations, design.effects, design.modules, design.relations, signal)
        _write_truth(truth)
    return truth


class _Design:
    """Everything but the samples' own values: small enough to be held."""

    def __init__(self, settings: dict[str, Any]) -> None:
        _check(settings)
        self.n = int(settings["n_samples"])
        self.g = int(settings["n_genes"])
        self.q = int(settings["n_modules"])
        self.seed = int(settings["seed"])
        self.depth = float(settings["depth"])
        self._make_genes(settings)
        self._make_effects(settings)
        self._make_samples(settings)

    def _make_genes(self, settings: dict[str, Any]) -> None:
        rng = stream(self.seed, "simulate", "genes")
        n_expressed, n_silent = int(settings["n_perturbations"]), int(settings["unexpressed_targets"])
        width = max(4, len(str(self.g)))
        self.genes = np.array([f"GENE{i + 1:0{width}d}" for i in range(self.g)])
        order = rng.permutation(self.g)
        # Targets are named in sorted order, so that a gene's number says nothing about its module.
        self.targets = np.sort(order[:n_expressed])
        self.silent = np.sort(order[n_expressed : n_expressed + n_silent])
        others = order[n_expressed + n_silent :]

        share = rng.lognormal(0.0, 1.2, self.g)
        share *= self.depth / share.sum()
        share[self.targets] = np.maximum(share[self.targets], _TARGET_MEAN)
        share[self.silent] = _UNEXPRESSED_MEAN
        self.log_base: F64 = np.log(share)

        self.target_module = rng.permutation(np.arange(n_expressed) % self.q)
        module = np.full(self.g, -1)
        module[self.targets] = self.target_module
        members = others[: int(0.6 * len(others))]
        module[members] = rng.integers(0, self.q, len(members))
        loading = rng.uniform(0.4, 1.0, self.g) * np.where(rng.random(self.g) < 0.75, 1.0, -1.0)
        self.loadings: F64 = np.zeros((self.q, self.g))
        inside = np.flatnonzero(module >= 0)
        self.loadings[module[inside], inside] = loading[inside]
        self.modules = pd.DataFrame(
            {"gene": self.genes[inside], "module": module[inside], "loading": loading[inside].round(6)}
        )
        self.loadings[module[inside], inside] = self.modules["loading"]

    def _make_effects(self, settings: dict[str, Any]) -> None:
        rng = stream(self.seed, "simulate", "effects")
        n = len(self.targets)
        strength = np.linspace(0.25, 1.0, n) if n > 1 else np.ones(n)
        strength = rng.permutation(strength) * float(settings["effect"])
        strength[rng.permutation(n)[: round(float(settings["null_fraction"]) * n)]] = 0.0
        sign = np.where(rng.random(self.q) < 0.5, -1.0, 1.0)[self.target_module]
        shifts = rng.normal(0.0, _OFF_MODULE, (n, self.q)) * strength[:, None]
        shifts[np.arange(n), self.target_module] = sign * strength
        # Row 0 is for controls, the last ones for targets that are not expressed.
        self.shifts: F64 = np.zeros((1 + n + len(self.silent), self.q))
        self.shifts[1 : n + 1] = shifts.round(6)
        target = np.concatenate([self.targets, self.silent]).astype(int)
        self.label_target = np.concatenate([[-1], target]).astype(int)
        active = np.concatenate([[False], strength != 0, np.zeros(len(self.silent), dtype=bool)])
        self.knocked_down = np.where(active, self.label_target, -1)
        self.labels = np.concatenate([[CONTROL_LABEL], self.genes[target]])
        kind = np.where(strength != 0, "active", "none").tolist() + ["unexpressed"] * len(self.silent)
        self.perturbations = pd.DataFrame(
            {
                "perturbation": self.labels[1:],
                "gene": self.labels[1:],
                "kind": kind,
                "module": np.concatenate([self.target_module, np.full(len(self.silent), -1)]).astype(int),
                "strength": np.concatenate([(sign * strength).round(6) + 0.0, np.zeros(len(self.silent))]),
            }
        )
        which, module = np.nonzero(self.shifts)
        self.effects = pd.DataFrame(
            {"perturbation": self.labels[which], "module": module, "strength": self.shifts[which, module]}
        )
        pairs = [
            (self.genes[self.targets[i]], self.genes[self.targets[j]])
            for i in range(n)
            for j in range(i + 1, n)
            if self.target_module[i] == self.target_module[j]
        ]
        self.relations = pd.DataFrame(pairs, columns=["entity1", "entity2"], dtype=object)

    def _make_samples(self, settings: dict[str, Any]) -> None:
        rng = stream(self.seed, "simulate", "samples")
        n_batches, n_labels = int(settings["n_batches"]), len(self.labels)
        n_control = max(round(float(settings["control_fraction"]) * self.n), 2 * n_batches)
        rest = self.n - n_control
        if rest < n_labels - 1:
            raise InputError(
                f"{self.n:,} samples are too few for {n_control:,} controls and {n_labels - 1:,} perturbations",
                remedy="ask for more samples or fewer perturbations and batches",
            )
        sizes = np.full(n_labels - 1, rest // max(1, n_labels - 1))
        sizes[: rest - sizes.sum()] += 1
        sizes = np.concatenate([[n_control], sizes])
        label = np.repeat(np.arange(n_labels), sizes)
        within = np.arange(self.n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        # Each label goes around the batches, so that controls are in all of them.
        batch = (within + label) % n_batches
        order = rng.permutation(self.n)
        self.label: Ints = label[order]
        self.batch: Ints = batch[order]
        scale = float(settings["batch_effect"])
        self.batch_shift: F64 = rng.normal(0.0, scale, (n_batches, self.g))
        self.batch_depth: F64 = rng.normal(0.0, scale / 2, n_batches)
        self.batches = np.array([f"batch_{i + 1}" for i in range(n_batches)])

    def obs(self) -> pd.DataFrame:
        """Columns of the samples."""
        names = pd.Categorical.from_codes(self.label, categories=pd.Index(self.labels))
        gene = pd.Categorical.from_codes(self.label, categories=pd.Index(["", *self.labels[1:]]))
        batch = pd.Categorical.from_codes(self.batch, categories=pd.Index(self.batches))
        index = pd.Index([f"sample_{i + 1}" for i in range(self.n)])
        columns = {"perturbation": names, "gene": gene, "batch": batch, "control": self.label == 0}
        return pd.DataFrame(columns, index=index)

    def rows(self, part: int) -> tuple[slice, F32, F32, F32]:
        """Samples of one stream: where, counts (m, g), truth (m, q), noisy truth (m, q)."""
        where = slice(part * _ROWS, min(self.n, (part + 1) * _ROWS))
        label, batch = self.label[where], self.batch[where]
        m = len(label)
        rng = stream(self.seed, "simulate", "values", part)
        state = self.shifts[label] + rng.normal(0.0, _INTRINSIC, (m, self.q))
        library = self.depth * np.exp(self.batch_depth[batch] + rng.normal(0.0, 0.25, m))
        truth = state + rng.normal(0.0, _TRUTH_NOISE, (m, self.q))
        noisy = state + rng.normal(0.0, _NOISY_NOISE, (m, self.q))
        rate = np.exp(self.log_base + self.batch_shift[batch] + state @ self.loadings)
        hit = np.flatnonzero(self.knocked_down[label] >= 0)
        rate[hit, self.knocked_down[label[hit]]] *= _KNOCK_DOWN
        rate *= (library / rate.sum(axis=1))[:, None]
        rate *= rng.standard_gamma(_INVERSE_DISPERSION, (m, self.g)) / _INVERSE_DISPERSION
        counts = rng.poisson(rate)
        return where, counts.astype(np.float32), truth.astype(np.float32), noisy.astype(np.float32)


def _check(settings: dict[str, Any]) -> None:
    least = {"n_samples": 1, "n_genes": 1, "n_perturbations": 1, "n_batches": 1, "n_modules": 1}
    for name, low in (least | {"unexpressed_targets": 0}).items():
        value = settings[name]
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < low:
            raise InputError(f"{name} is {value!r}", remedy=f"give a whole number, at least {low}")
    for name in ("null_fraction", "control_fraction"):
        if not 0 <= settings[name] <= 1:
            raise InputError(f"{name} is {settings[name]!r}", remedy="give a share from 0 to 1")
    for name in ("effect", "batch_effect"):
        if not 0 <= settings[name] < 10:
            raise InputError(f"{name} is {settings[name]!r}", remedy="give a number from 0 to below 10")
    if not 0 < settings["depth"] < 1e8:
        raise InputError(f"depth is {settings['depth']!r}", remedy="give a positive total count")
    targets = settings["n_perturbations"] + settings["unexpressed_targets"]
    if targets >= settings["n_genes"]:
        raise InputError(
            f"{settings['n_genes']:,} genes are too few for {targets:,} target genes",
            remedy="ask for more genes, or fewer perturbations (n_perturbations, unexpressed_targets)",
        )


def _blocks(design: _Design, max_elements: int | None) -> Iterator[tuple[slice, F32, F32, F32]]:
    """Blocks of at most `max_elements` counts, but at least one stream's rows."""
    per_block = max(1, (max_elements or BLOCK_ELEMENTS) // (design.g * _ROWS))
    n_parts = -(-design.n // _ROWS)
    for first in range(0, n_parts, per_block):
        parts = [design.rows(part) for part in range(first, min(n_parts, first + per_block))]
        where = slice(parts[0][0].start, parts[-1][0].stop)
        yield where, *(np.concatenate([part[i] for part in parts]) for i in (1, 2, 3))  # type: ignore[misc]


def _write(path: Path, design: _Design, max_elements: int | None, progress: Progress | None) -> F32:
    """Write the file and give the truth (n, q)."""
    import anndata
    import h5py

    signal = np.empty((design.n, design.q), dtype=np.float32)
    noisy = np.empty((design.n, design.q), dtype=np.float32)
    anndata.AnnData(
        obs=design.obs(),
        var=pd.DataFrame(index=pd.Index(design.genes)),
        obsm={"X_truth": signal, "X_noisy": noisy},
        uns={"simulated": True},
    ).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        if "X" in file:
            del file["X"]
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array([design.n, design.g], dtype=np.int64)
        storage: dict[str, Any] = {"maxshape": (None,), "chunks": (1 << 16,), "compression": "gzip", "shuffle": True}
        storage["compression_opts"] = 1
        data = group.create_dataset("data", (0,), dtype=np.float32, **storage)
        indices = group.create_dataset("indices", (0,), dtype=np.int32, **storage)
        indptr = np.zeros(design.n + 1, dtype=np.int64)
        filled = 0
        for where, counts, truth_rows, noisy_rows in _blocks(design, max_elements):
            block = sp.csr_matrix(counts)
            for dataset, values in ((data, block.data), (indices, block.indices)):
                dataset.resize((filled + block.nnz,))
                dataset[filled:] = values
            indptr[where.start + 1 : where.stop + 1] = filled + block.indptr[1:]
            filled += block.nnz
            signal[where], noisy[where] = truth_rows, noisy_rows
            if progress is not None:
                progress(where.stop, design.n, "simulating a screen")
        group.create_dataset("indptr", data=indptr)
        for name in ("data", "indices", "indptr"):
            group[name].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        file["obsm/X_truth"][...] = signal
        file["obsm/X_noisy"][...] = noisy
    return signal


def _write_truth(truth: Truth) -> None:
    content = {"format": _FORMAT, "settings": truth.settings}
    for name in ("perturbations", "effects", "modules", "relations"):
        content[name] = getattr(truth, name).to_dict("list")
    with whole_or_nothing(_truth_file(truth.path)) as part:
        part.write_text(json.dumps(content), encoding="utf-8")
    pairs = relations_folder(truth.path) / "simulated_modules.csv"
    pairs.unlink(missing_ok=True)
    if len(truth.relations):
        with whole_or_nothing(pairs) as part:
            truth.relations.to_csv(part, index=False, lineterminator="\n")
