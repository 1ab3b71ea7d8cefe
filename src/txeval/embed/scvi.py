"""scVI (Lopez et al. 2018), trained on the screen itself or on another one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from txeval._version import __version__
from txeval.compute.arrays import Ints, row_blocks
from txeval.compute.variable_genes import gene_moments, variable_genes
from txeval.data.expression import TARGET_TOTAL
from txeval.data.locate import cache_folder
from txeval.data.roles import Roles
from txeval.data.scale import require_scale
from txeval.data.screen import open_screen
from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext
from txeval.embed.frozen import pick_device
from txeval.embed.genes import GeneMatch, match_genes, read_aliases
from txeval.embed.rows import NpyRows, write_npy
from txeval.embed.scvi_model import (
    DISPERSIONS,
    LIKELIHOODS,
    Architecture,
    History,
    ScVIModel,
    SparseRows,
    Training,
    default_epochs,
    fit,
    require_scvi,
)
from txeval.errors import InputError, unknown

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = ["EMBEDDERS", "ScVI", "TransferScVI", "align", "embed_with", "load_scvi", "train_scvi"]

#: What a model may read.
INPUTS = ("lognorm", "counts")

#: A training matrix above this size lies in a file.
TRAINING_IN_MEMORY_BYTES = 2**30

#: Name of the folder, within that of the embedder, where a model lies that was trained for an embedding.
TRAINED = "model"

_TRAINING: Mapping[str, tuple[Any, str]] = {
    "likelihood": ("zinb", "zinb, nb or poisson"),
    "genes": (8000, "number of variable genes, chosen on the training samples; 0: all genes"),
    "input": (
        "lognorm",
        "lognorm (normalised to 10,000, then log1p, as in the paper) or counts, as scvi-tools advises",
    ),
    "batch_key": (True, "whether the decoder is told the batch, so that the latent space need not hold it"),
    "latent": (256, "dimensions of the latent space"),
    "layers": (2, "hidden layers"),
    "hidden": (512, "nodes of a hidden layer"),
    "dropout": (0.0, "dropout of the encoder"),
    "dispersion": ("gene", "gene, gene-batch or gene-cell"),
    "max_epochs": (0, "passes over the training samples; 0: 400, and fewer above 20,000 samples, as in scvi-tools"),
    "early_stopping": (False, "whether to stop where the ELBO of the validation samples gets no better"),
    "patience": (45, "epochs without a better ELBO before stopping early"),
    "batch_size": (128, "samples of a minibatch"),
    "lr": (1e-3, "learning rate"),
    "kl_warmup": (400, "epochs over which the weight of the Kullback-Leibler term rises to 1"),
}
_DEVICE: Mapping[str, tuple[Any, str]] = {"device": ("", "auto, cpu or cuda; default: the device of the run")}


def _complete(info: EmbedderInfo, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the defaults filled in, those of the training checked."""
    options = {name: given.get(name, default) for name, (default, _) in info.options.items()}
    for name, allowed in (("likelihood", LIKELIHOODS), ("dispersion", DISPERSIONS), ("input", INPUTS)):
        if options[name] not in allowed:
            raise unknown(name, str(options[name]), allowed, where=f"embedding {info.name}")
    least = dict.fromkeys(("latent", "layers", "hidden", "patience"), 1) | {"batch_size": 3}
    for name in ("genes", "max_epochs", "kl_warmup", *least):
        low = least.get(name, 0)
        if options[name] < low:
            raise InputError(f"embedding {info.name}: {name} is {options[name]}", remedy=f"use at least {low}")
    if not 0 <= options["dropout"] < 1:
        raise InputError(f"embedding {info.name}: dropout is {options['dropout']}", remedy="use 0 up to below 1")
    if not 0 < options["lr"] < 1:
        raise InputError(f"embedding {info.name}: lr is {options['lr']}", remedy="use a number between 0 and 1")
    return options


def _require_scale(screen: Screen, kind: str, name: str) -> None:
    """Refuse a screen whose values cannot be brought to the scale that a model reads."""
    allowed = {"counts"} if kind == "counts" else {"counts", "normalized", "log1p"}
    try:
        require_scale(screen, allowed, step=f"{name} with input={kind}")
    except InputError as why:
        if kind == "counts" and screen.scale in ("normalized", "log1p"):
            raise InputError(why.problem, remedy=f"{why.remedy}; or use a model with input=lognorm") from None
        raise


class _Profiles:
    """What a model reads of a screen, by blocks of samples.

    Parameters
    ----------
    genes
        Which column is which gene of the model, in the model's order.
    input
        "counts", or "lognorm": normalised to 10,000 over all genes of the screen, then log1p; columns of one gene are
        added before the logarithm.
    """

    def __init__(self, screen: Screen, genes: GeneMatch, kind: str) -> None:
        self.screen = screen
        self.genes = genes
        self.kind = kind
        self._as_is = np.array_equal(genes.target, np.arange(len(genes.genes)))

    def blocks(self, rows: Ints, *, max_elements: int | None = None) -> Iterator[tuple[slice, sp.csr_matrix]]:
        """Blocks of rows, in their order: (slice into `rows`, float32 CSR matrix (m, k))."""
        for part, block in self.screen.blocks(rows, max_elements=max_elements):
            yield part, self._read(sp.csr_matrix(block))

    def _read(self, block: sp.csr_matrix) -> sp.csr_matrix:
        if self.kind == "counts":
            return self._collapse(block)
        scale = self.screen.scale
        if scale == "log1p" and not self.genes.summed:
            return self._collapse(block)
        values = block.data
        if scale == "counts":
            totals = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
            factors = (TARGET_TOTAL / np.where(totals > 0, totals, 1.0)).astype(np.float32)
            values = values * np.repeat(factors, np.diff(block.indptr))
        elif scale == "log1p":
            values = np.expm1(values)
        made = self._collapse(sp.csr_matrix((values, block.indices, block.indptr), shape=block.shape))
        made.data = np.log1p(made.data)
        return made

    def _collapse(self, block: sp.csr_matrix) -> sp.csr_matrix:
        return block if self._as_is else self.genes.collapse(block)

    def lifted(self, rows: Ints, *, max_elements: int | None = None) -> Iterator[tuple[slice, sp.csr_matrix]]:
        """As `blocks`, without the logarithm."""
        for part, block in self.blocks(rows, max_elements=max_elements):
            yield part, sp.csr_matrix((np.expm1(block.data), block.indices, block.indptr), shape=block.shape)


def align(screen: Screen, genes: tuple[str, ...], *, aliases: Mapping[str, str] | None = None) -> GeneMatch:
    """Match the columns of a screen to the genes of a model, in the order of the model.

    Genes that the screen lacks are columns that nothing is added to, so that they read 0.
    """
    found = match_genes(screen.genes, genes, aliases=aliases)
    place = {gene: number for number, gene in enumerate(genes)}
    moved = np.array([place[gene] for gene in found.genes] + [-1], dtype=np.int64)
    return replace(found, target=moved[found.target], genes=genes)


def _training_matrix(
    profiles: _Profiles, rows: Ints, nonzero: int, folder: Path, context: EmbeddingContext
) -> tuple[SparseRows, Ints, dict[str, Any]]:
    """Profiles of the training samples; those without any expression are left out.

    Parameters
    ----------
    nonzero
        Number of values other than 0, counted before.

    Returns
    -------
    (matrix, numbers of the samples that are its rows, what it is as plain data)
    """
    in_file = 8 * nonzero > TRAINING_IN_MEMORY_BYTES
    folder.mkdir(parents=True, exist_ok=True)

    def room(name: str, dtype: Any) -> Any:
        if not in_file:
            return np.empty(nonzero, dtype=dtype)
        try:
            with (folder / name).open("w+b") as handle:
                if hasattr(os, "posix_fallocate"):
                    # A full disk is an error here; met while writing to the map, it would kill the process.
                    os.posix_fallocate(handle.fileno(), 0, nonzero * np.dtype(dtype).itemsize)
                return np.memmap(handle, dtype=dtype, mode="w+", shape=(nonzero,))
        except OSError as why:
            raise InputError(
                f"the training matrix of scVI ({8 * nonzero / 1e9:.1f} GB) cannot be written to {folder}"
                f" ({why.strerror or why})",
                remedy="free some space, choose another output folder, or take fewer variable genes (genes=...)",
            ) from why

    values, columns = room("values.bin", np.float32), room("columns.bin", np.int32)
    lengths = np.zeros(len(rows), dtype=np.int64)
    end = 0
    for part, block in profiles.blocks(rows, max_elements=context.max_elements):
        block.eliminate_zeros()
        values[end : end + block.nnz], columns[end : end + block.nnz] = block.data, block.indices
        lengths[part] = np.diff(block.indptr)
        end += block.nnz
        context.progress(part.stop, len(rows), "scVI: reading the training samples")
    used = lengths > 0
    ends = np.concatenate([[0], np.cumsum(lengths[used])])
    kept, order, ordered_by = rows[used], None, "position in the file, since sample names are not unique"
    if profiles.screen.has_unique_names:
        # Minibatches are drawn by position: with that of the names, the order of the file does not matter.
        order = np.argsort(profiles.screen.sample_names[kept].astype(str), kind="stable")
        kept, ordered_by = kept[order], "sample name"
    matrix = SparseRows(values[:end], columns[:end], ends, len(profiles.genes.genes), order)
    told = {
        "samples": matrix.shape[0],
        "genes": matrix.shape[1],
        "values": end,
        "bytes": matrix.nbytes,
        "held_in": "a memory-mapped file" if in_file else "memory",
        "ordered_by": ordered_by,
    }
    return matrix, kept, told


def _architecture(options: Mapping[str, Any], genes: int, batches: int) -> Architecture:
    return Architecture(
        genes=genes,
        batches=max(1, batches),
        latent=options["latent"],
        layers=options["layers"],
        hidden=options["hidden"],
        dropout=float(options["dropout"]),
        dispersion=options["dispersion"],
        likelihood=options["likelihood"],
    )


def _training(options: Mapping[str, Any]) -> Training:
    return Training(
        max_epochs=options["max_epochs"],
        batch_size=options["batch_size"],
        lr=float(options["lr"]),
        kl_warmup=options["kl_warmup"],
        early_stopping=options["early_stopping"],
        patience=options["patience"],
    )


def train_scvi(
    screen: Screen,
    rows: Ints | None,
    options: Mapping[str, Any],
    context: EmbeddingContext,
    *,
    save: Path | None = None,
) -> ScVIModel:
    """Train scVI on samples of a screen.

    Variable genes are chosen on these samples. The state is kept in `context.folder` after each epoch: the same call
    goes on from there.

    Parameters
    ----------
    rows
        Numbers of kept samples; None: all.
    options
        As of the embedder `scvi`; what is missing has its default.
    context
        Seed, device, folder, progress.
    save
        Folder to save the model in. A model of this very training that is there already is read instead.

    Raises
    ------
    InputError
        Options or scale that cannot be used.
    NotComputable
        Too few samples with expression, or a training that diverges.
    """
    options = _complete(ScVI.info, options)
    _require_scale(screen, options["input"], "scVI")
    device = pick_device(options["device"] or context.device)
    where = "all kept samples" if rows is None else "the train split"
    rows = np.arange(screen.n) if rows is None else np.sort(np.asarray(rows, dtype=np.int64))
    key = _key(screen, rows, options, context.seed)
    if save is not None and ScVIModel.is_saved(save):
        model = ScVIModel.load(save, device=device)
        if model.about.get("key") == key:
            return model
        raise InputError(f"{save} holds another model", remedy="give another folder")
    started = time.perf_counter()
    own = tuple(dict.fromkeys(screen.genes.tolist()))
    every = _Profiles(screen, align(screen, own), "lognorm")

    def counted() -> Iterator[Any]:
        for part, block in every.lifted(rows, max_elements=context.max_elements):
            yield block
            context.progress(part.stop, len(rows), "scVI: choosing variable genes")

    moments = gene_moments(counted(), len(own))
    chosen = variable_genes(moments, options["genes"] or len(own))
    genes = tuple(own[i] for i in chosen)
    profiles = _Profiles(screen, align(screen, genes), options["input"])
    work = context.folder / "training"
    matrix, used_rows, told = _training_matrix(profiles, rows, int(moments.nonzero[chosen].sum()), work, context)
    codes = np.zeros(len(used_rows), dtype=np.int64)
    batches: tuple[str, ...] = ()
    if options["batch_key"]:
        present, codes = np.unique(screen.samples.batch[used_rows], return_inverse=True)
        codes = codes.astype(np.int64).reshape(-1)
        batches = tuple(str(screen.samples.batches[code]) for code in present) if len(present) > 1 else ()
    architecture = _architecture(options, len(genes), len(batches))
    module, history = fit(
        architecture,
        matrix,
        codes if batches else np.zeros_like(codes),
        _training(options),
        seed=context.seed,
        device=device,
        checkpoint=work / "checkpoint.pt",
        key=key,
        progress=context.progress,
    )
    about = {
        "name": f"scvi-{screen.name}-{key[:8]}",
        "key": key,
        "trained_on": {
            "screen": screen.name,
            "fingerprint": screen.fingerprint,
            "matrix": screen.where,
            "scale": screen.scale,
            "samples": f"{len(rows):,} ({where})",
            "left_out_without_expression": len(rows) - len(used_rows),
            "genes_to_choose_from": len(own),
        },
        "training_matrix": told,
        "training": _told(history, architecture, _training(options), len(used_rows)),
        "seed": context.seed,
        "device": str(device),
        "seconds": round(time.perf_counter() - started, 3),
        "versions": {"txeval": __version__, **{name: version(name) for name in ("scvi-tools", "torch")}},
    }
    model = ScVIModel(module, architecture, options["input"], genes, batches, about)
    if save is not None:
        model.save(save)
    del matrix
    shutil.rmtree(work, ignore_errors=True)
    return model


def load_scvi(folder: Path | str, *, device: str = "cpu") -> ScVIModel:
    """Read a model that `train_scvi` or `txeval embed --save` saved; see `ScVIModel.load`."""
    return ScVIModel.load(Path(folder).expanduser(), device=pick_device(device))


def _told(history: History, architecture: Architecture, training: Training, n: int) -> dict[str, Any]:
    """How a training went, as plain data."""
    made: dict[str, Any] = {
        "epochs": history.epochs,
        "max_epochs": training.max_epochs or default_epochs(n),
        "stopped_early": history.stopped_early,
        "negative_elbo_first_last": [round(value, 4) for value in (history.elbo_train[0], history.elbo_train[-1])],
        "optimiser": "Adam, as in scvi-tools",
        "settings": asdict(training),
        "architecture": asdict(architecture),
    }
    if history.elbo_validation:
        made["negative_elbo_validation"] = [round(value, 4) for value in history.elbo_validation]
    if history.resumed_at:
        made["resumed_after_epochs"] = history.resumed_at
    if history.notes:
        made["notes"] = history.notes
    return made


def _key(screen: Screen, rows: Ints, options: Mapping[str, Any], seed: int) -> str:
    """Digest of everything that determines a trained model."""
    content = {
        "screen": screen.fingerprint,
        "rows": hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest(),
        "options": {name: options[name] for name in _TRAINING},
        "seed": int(seed),
        "scvi-tools": require_scvi(),
        "version": ScVI.info.version,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def embed_with(
    model: ScVIModel, screen: Screen, genes: GeneMatch, context: EmbeddingContext, *, name: str = "scvi"
) -> tuple[NpyRows, Ints]:
    """Take every kept sample of a screen into the latent space of a model, by blocks.

    Returns
    -------
    ((n, latent) float32 rows in a file of `context.folder`, numbers of the samples without expression of any gene of
    the model)
    """
    _require_scale(screen, model.input, name)
    profiles = _Profiles(screen, genes, model.input)
    path = context.folder / f"{name}.npy"
    empty: list[int] = []
    with write_npy(path, (screen.n, model.architecture.latent)) as out:
        for part, block in profiles.blocks(np.arange(screen.n), max_elements=context.max_elements):
            # A block is bounded by the genes of the screen; the model's may be more, and its layers wide.
            width = max(block.shape[1], 4 * model.architecture.hidden)
            for piece in row_blocks(block.shape[0], width, context.max_elements):
                out[part.start + piece.start : part.start + piece.stop] = model.latent(block[piece].toarray())
            block.eliminate_zeros()
            used = np.diff(block.indptr) > 0
            empty += (np.flatnonzero(~used) + part.start).tolist()
            context.progress(part.stop, screen.n, f"{name}: embedding")
    return NpyRows(path), np.asarray(empty, dtype=np.int64)


def _provenance(model: ScVIModel, screen: Screen, genes: GeneMatch, empty: Ints, seconds: float) -> dict[str, Any]:
    known = set(model.batches)
    unseen = [str(batch) for batch in screen.samples.batches if str(batch) not in known] if known else []
    report = genes.report()
    found = int((np.bincount(genes.target[genes.target >= 0], minlength=len(genes.genes)) > 0).sum())
    return {
        "method": "scVI: mean of the latent distribution",
        "model": model.about,
        "input": model.input,
        "input_note": f"{screen.where}, {screen.scale} values",
        "genes": {
            "of_the_model": len(model.genes),
            "found_in_the_screen": found,
            "found_fraction": round(found / max(1, len(model.genes)), 6),
            "ways": report["ways"],
            "summed": report["summed"],
            "missing_read_as_0": len(model.genes) - found,
            "names_sha256": hashlib.sha256("\n".join(model.genes).encode()).hexdigest(),
        },
        "batches": {
            "told_to_the_decoder": list(model.batches),
            "not_in_the_training": unseen,
            "note": "the encoder reads no batch, as is the default of scvi-tools, so samples of batches that were not "
            "in the training are embedded like any others; SCVI.load_query_data without further training gives the "
            "same values",
        },
        "unusable": {
            "count": len(empty),
            "rows": empty.tolist(),
            "filled_with": "what the model gives for a sample without any expression",
        },
        "device": str(next(model.module.parameters()).device),
        "embedding_seconds": round(seconds, 3),
        **({"warnings": [_few(empty, screen)]} if len(empty) else {}),
    }


def _few(empty: Ints, screen: Screen) -> str:
    return f"{len(empty):,} of {screen.n:,} samples have no expression of any gene that scVI reads"


class ScVI:
    """scVI, trained on the train split of the screen, then embedding all of it."""

    info = EmbedderInfo(
        name="scvi",
        model_reader="transfer-scvi",
        summary="scVI trained on the screen's train split, with the paper's settings: 256 dimensions",
        stochastic=True,
        uses_train=True,
        options={**_TRAINING, **_DEVICE},
        needs="counts; with input=lognorm also normalized or log1p values; extra scvi (scvi-tools)",
        licence="code: BSD-3-Clause; no ready-made weights",
        citation="Lopez et al. 2018, doi:10.1038/s41592-018-0229-2",
    )

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check options and scale; the version of scvi-tools."""
        options = _complete(self.info, options)
        _require_scale(screen, options["input"], "scVI")
        return {"scvi-tools": require_scvi()}

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Train on the train split, then embed every sample; the model stays in the folder of the context."""
        self.fingerprint(screen, options)
        model = train_scvi(screen, context.train_rows, options, context, save=context.folder / TRAINED)
        started = time.perf_counter()
        genes = align(screen, model.genes)
        values, empty = embed_with(model, screen, genes, context)
        made = _provenance(model, screen, genes, empty, time.perf_counter() - started)
        return Embedding(values, made, context.folder / TRAINED)


class TransferScVI:
    """scVI trained on another screen, embedding this one without further training."""

    info = EmbedderInfo(
        name="transfer-scvi",
        model_reader="transfer-scvi",
        summary="scVI trained on another screen, applied without further training",
        options={
            "model": ("", "folder of a trained model, as `txeval embed SCREEN --model scvi --save DIR` writes it"),
            "reference": ("", "or: screen (.h5ad, .zarr) to train a model on; it is kept for the next time"),
            "reference_perturbation": ("", "its column of perturbation labels; default: that of the screen"),
            "reference_control": ("", "its label of controls; default: that of the screen"),
            "reference_batch": ("", "its column of batches; default: none"),
            "reference_gene_symbol": ("", "its var column with gene names; default: the names of var"),
            "reference_layer": ("", "its layer to read in place of X"),
            "reference_scale": ("", "scale of its values; default: determined from them"),
            "reference_min_counts": (0.0, "train on samples with a total count above it"),
            "seed": (0, "seed of the training on the reference"),
            "min_gene_overlap": (0.5, "smallest fraction of the model's genes that the screen has to have"),
            "aliases": ("", "file of other gene names (.tsv or .csv with the columns alias and gene, .json)"),
            **_TRAINING,
            **_DEVICE,
        },
        needs="the scale that the model was trained on; gene names as in its training; extra scvi (scvi-tools)",
        licence="code: BSD-3-Clause; weights: as the data they were trained on",
        citation="Lopez et al. 2018, doi:10.1038/s41592-018-0229-2",
    )

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        options = _complete(self.info, given)
        if bool(options["model"]) == bool(options["reference"]):
            what = "both are given" if options["model"] else "neither is given"
            raise InputError(
                f"embedding transfer-scvi needs a trained model (model=DIR) or a screen to train one on"
                f" (reference=FILE): {what}",
                remedy="give one of the two",
            )
        if not 0 <= options["min_gene_overlap"] <= 1:
            raise InputError(
                f"embedding transfer-scvi: min_gene_overlap is {options['min_gene_overlap']}",
                remedy="give a fraction from 0 to 1",
            )
        if options["model"]:
            idle = [
                name
                for name, (default, _) in self.info.options.items()
                if (name in _TRAINING or name == "seed" or name.startswith("reference")) and options[name] != default
            ]
            if idle:
                raise InputError(
                    f"embedding transfer-scvi: {', '.join(idle)} would have no effect: the model is trained already",
                    remedy="leave them out",
                )
        return options

    def _reference(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext | None = None) -> Screen:
        """The screen to train on."""
        control: tuple[str, ...] = (options["reference_control"],) if options["reference_control"] else ()
        try:
            roles = Roles(
                perturbation=options["reference_perturbation"] or screen.roles.perturbation,
                control=control or screen.roles.control,
                control_column=None if control or screen.roles.control else screen.roles.control_column,
                batch=options["reference_batch"] or None,
                gene_symbol=options["reference_gene_symbol"] or None,
            )
            return open_screen(
                Path(options["reference"]).expanduser(),
                roles,
                layer=options["reference_layer"] or None,
                scale=options["reference_scale"] or None,
                min_counts=options["reference_min_counts"],
                max_elements=None if context is None else context.max_elements,
            )
        except InputError as why:
            raise InputError(
                f"the reference of transfer-scvi: {why.problem}",
                remedy=f"{why.remedy}; its columns are named by the options reference_perturbation,"
                " reference_control, reference_batch, ...",
            ) from None

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check options, genes and scale; digest of the model, or of the screen that it is trained on."""
        options = self._options(options)
        added: dict[str, Any] = {"scvi-tools": require_scvi()}
        if options["aliases"]:
            added["aliases"] = _aliases(options)
        if options["model"]:
            folder = Path(options["model"]).expanduser()
            model = ScVIModel.load(folder)
            self._genes(model, screen, options)
            _require_scale(screen, model.input, "transfer-scvi")
            return {**added, "model": ScVIModel.digest(folder)}
        with self._reference(screen, options) as reference:
            _require_scale(reference, options["input"], "transfer-scvi, trained on its reference")
            _require_scale(screen, options["input"], "transfer-scvi")
            return {**added, "reference": reference.fingerprint}

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Read or train the model, align the genes, embed every sample."""
        options = self._options(options)
        if options["model"]:
            folder = Path(options["model"]).expanduser()
            model = ScVIModel.load(folder, device=pick_device(options["device"] or context.device))
            reused = True
        else:
            model, folder, reused = self._trained(screen, options, context)
        started = time.perf_counter()
        genes = self._genes(model, screen, options)
        values, empty = embed_with(model, screen, genes, context, name="transfer-scvi")
        made = _provenance(model, screen, genes, empty, time.perf_counter() - started)
        return Embedding(
            values,
            {
                **made,
                "weights": {"folder": str(folder), "sha256": ScVIModel.digest(folder)},
                "trained_model": str(folder),
                "trained_before": reused,
                "same_screen_as_in_training": model.about.get("trained_on", {}).get("fingerprint")
                == screen.fingerprint,
            },
            folder,
        )

    def _trained(
        self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext
    ) -> tuple[ScVIModel, Path, bool]:
        """A model of the reference: the one that is kept from an earlier time, or a new one."""
        with self._reference(screen, options, context) as reference:
            settings = {name: options[name] for name in (*_TRAINING, *_DEVICE)}
            key = _key(reference, np.arange(reference.n), settings, options["seed"])
            # Nothing is trained where the genes can never be enough.
            overlap = align(screen, tuple(dict.fromkeys(reference.genes.tolist())), aliases=_aliases(options))
            if not (overlap.target >= 0).any():
                _refuse(overlap, 0, len(overlap.genes), options["min_gene_overlap"], reference.name)
            folder = cache_folder() / "models" / f"scvi-{reference.name}-{key[:16]}"
            if ScVIModel.is_saved(folder):
                return ScVIModel.load(folder, device=pick_device(options["device"] or context.device)), folder, True
            own = replace(context, folder=context.folder / "reference", seed=options["seed"], train_rows=None)
            own.folder.mkdir(parents=True, exist_ok=True)
            model = train_scvi(reference, None, settings, own)
            model.save(folder, overwrite=True)
            return model, folder, False

    def _genes(self, model: ScVIModel, screen: Screen, options: Mapping[str, Any]) -> GeneMatch:
        genes = align(screen, model.genes, aliases=_aliases(options))
        found = len(np.unique(genes.target[genes.target >= 0]))
        if not found or found / len(model.genes) < options["min_gene_overlap"]:
            name = str(model.about.get("name", "the model"))
            _refuse(genes, found, len(model.genes), options["min_gene_overlap"], name)
        return genes


def _aliases(options: Mapping[str, Any]) -> dict[str, str] | None:
    return read_aliases(Path(options["aliases"]).expanduser()) if options["aliases"] else None


def _refuse(genes: GeneMatch, found: int, wanted: int, minimum: float, name: str) -> None:
    there = set(genes.target.tolist())
    missing = [gene for number, gene in enumerate(genes.genes) if number not in there]
    raise InputError(
        f"transfer-scvi: the screen has {found:,} of the {wanted:,} genes of {name} ({found / max(1, wanted):.1%}; at"
        f" least {minimum:.1%} are wanted); it lacks, for example, {', '.join(map(repr, missing[:5]))}, and has"
        f" {', '.join(map(repr, genes.unmatched[:5]))}",
        remedy="use names of the same kind in both (symbols or Ensembl ids), give a table of other names"
        " (aliases=FILE), or accept fewer genes with min_gene_overlap",
    )


EMBEDDERS = (ScVI(), TransferScVI())
