"""scGPT trained on the screen: masked values predicted from the others, then embeddings from the trained model."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from txeval.compute.arrays import F32, Ints
from txeval.compute.random import stream, stream_seed
from txeval.compute.variable_genes import gene_moments, variable_genes
from txeval.data.scale import require_scale
from txeval.destination import check_destination
from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext
from txeval.embed.checkpoints import load_json, weights_folder, write_whole
from txeval.embed.frozen import (
    SHARED_OPTIONS,
    Item,
    aliases_of,
    complete,
    describe,
    digests,
    embed_sequences,
    gene_names,
    inference,
    pad,
    pick_device,
    positive,
    sample_keys,
)
from txeval.embed.scgpt import (
    _SOURCE,
    Files,
    Model,
    Settings,
    bin_values,
    find_files,
    forward,
    load_model,
    load_settings,
    load_vocabulary,
    match,
)
from txeval.errors import InputError

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = [
    "EMBEDDERS",
    "Batch",
    "FinetunedScGPT",
    "History",
    "Training",
    "log_normalise",
    "make_batch",
    "mask_values",
    "masked_error",
    "tokenize_for_training",
    "train",
    "train_step",
]

_TARGET_TOTAL = 1e4

_WEIGHTS, _RECORD = "best_model.pt", "finetuning.json"

#: Numbers of activations that are kept for the gradient at a time: 512 M float32 values are 2 GiB.
_KEPT = 512_000_000


def log_normalise(counts: Any, scale: str = "counts") -> Any:
    """Counts (m, t) of the known genes -> log(1 + count / total * 10,000), float32 CSR.

    Normalised values get the logarithm only; log1p values are left as they are.
    """
    out = counts.astype(np.float32, copy=True)
    if scale == "counts":
        totals = np.asarray(out.sum(axis=1), dtype=np.float32).reshape(-1) / np.float32(_TARGET_TOTAL)
        totals[totals == 0] = 1
        out.data /= np.repeat(totals, np.diff(out.indptr))
    if scale != "log1p":
        out.data = np.log1p(out.data)
    return out


def tokenize_for_training(
    values: F32,
    tokens: Ints,
    rng: np.random.Generator,
    *,
    cls: int,
    n_bins: int = 51,
    max_length: int = 1536,
    all_tokens: Ints | None = None,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int16]]:
    """What scGPT is trained on: `<cls>` with value 0, then genes with their bins.

    Parameters
    ----------
    values, tokens
        (k,) of the expressed genes, in the order of the columns.
    rng
        The sample's own: k uniform numbers for the bins, then, where there are too many genes, which of them to take.
    all_tokens
        (t,) of every gene, increasing by column, to have those that are not expressed as well, with value 0.

    Returns
    -------
    tokens, values
        (length,) each.
    """
    binned = bin_values(values, rng.random(len(values)), n_bins) if len(values) else np.empty(0, dtype=np.int64)
    if all_tokens is not None:
        everything = np.zeros(len(all_tokens), dtype=np.int64)
        place = {token: number for number, token in enumerate(all_tokens.tolist())}
        everything[[place[token] for token in tokens.tolist()]] = binned
        tokens, binned = all_tokens, everything
    if len(tokens) > max_length - 1:
        taken = rng.choice(len(tokens), max_length - 1, replace=False)
        tokens, binned = tokens[taken], binned[taken]
    return np.concatenate([[cls], tokens]).astype(np.int32), np.concatenate([[0], binned]).astype(np.int16)


def mask_values(
    values: npt.NDArray[np.int16], rng: np.random.Generator, *, ratio: float = 0.4, mask_value: int = -1
) -> npt.NDArray[np.int16]:
    """Replace int(ratio x length) values of a sample, `<cls>` not spared, by the mask."""
    out = values.copy()
    out[rng.choice(len(values), int(len(values) * ratio), replace=False)] = mask_value
    return out


@dataclass(frozen=True)
class Batch:
    """Samples to train on; tensors are (m, length).

    Attributes
    ----------
    real
        True where there is no padding; None: there is none.
    masked
        True where the value is to be predicted.
    """

    tokens: Tensor
    inputs: Tensor
    targets: Tensor
    real: Tensor | None
    masked: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, rows: slice) -> Batch:
        """Some samples of the batch."""
        real = None if self.real is None else self.real[rows]
        return Batch(self.tokens[rows], self.inputs[rows], self.targets[rows], real, self.masked[rows])


def make_batch(
    items: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]],
    *,
    pad_token: int,
    pad_value: int = -2,
    mask_value: int = -1,
    device: torch.device | str = "cpu",
) -> Batch:
    """Pad samples to the longest of them.

    Parameters
    ----------
    items
        (tokens, values with masked ones replaced, values) of each.
    """
    longest = max(len(item[0]) for item in items)
    (tokens, inputs, targets), real = pad(items, longest, [pad_token, pad_value, pad_value], torch.device(device))
    return Batch(tokens.long(), inputs.float(), targets.float(), real, inputs == mask_value)


def masked_error(model: Model, batch: Batch) -> Tensor:
    """Sum of squared errors of the predictions of masked values."""
    predicted: Tensor = model.decoder(model(batch.tokens, batch.inputs, batch.real)).float()
    return ((predicted - batch.targets) ** 2 * batch.masked).sum()


def train_step(
    model: Model,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    clip: float = 1.0,
    micro_batch: int = 0,
    precision: str = "float32",
    scaler: Any = None,
) -> tuple[float, float]:
    """One step on the mean squared error of the masked values.

    Parameters
    ----------
    clip
        Largest norm of the gradient.
    micro_batch
        Samples whose activations are kept at a time; the gradient is that of the whole batch. 0: all.

    Returns
    -------
    loss, norm
        Before the step, the norm before clipping.
    """
    optimizer.zero_grad(set_to_none=True)
    n_masked = int(batch.masked.sum())
    if not n_masked:
        return 0.0, 0.0
    loss = 0.0
    step = micro_batch or len(batch)
    for low in range(0, len(batch), step):
        with torch.autocast(batch.tokens.device.type, enabled=precision != "float32", dtype=_half(precision)):
            error = masked_error(model, batch.part(slice(low, low + step))) / n_masked
        (error if scaler is None else scaler.scale(error)).backward()
        loss += float(error.detach())
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip))
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return loss, norm


def _half(precision: str) -> torch.dtype:
    return torch.float16 if precision == "float16" else torch.bfloat16


@dataclass(frozen=True)
class Training:
    """Settings of the fine-tuning; the defaults are the paper's."""

    epochs: int = 15
    batch_size: int = 32
    learning_rate: float = 1e-5
    decay: float = 0.9
    mask_ratio: float = 0.4
    clip: float = 1.0
    valid_fraction: float = 0.1
    precision: str = "float32"


@dataclass
class History:
    """Losses of each epoch, and which of them was kept."""

    train: list[float]
    valid: list[float]
    best: int = -1


#: (tokens, values) of a sample of the training set.
Sample = tuple[npt.NDArray[np.int32], npt.NDArray[np.int16]]


def train(
    model: Model,
    samples: Callable[[int], Sample],
    names: Sequence[str],
    settings: Training,
    *,
    seed: int,
    pad_token: int,
    pad_value: int,
    mask_value: int,
    micro_batch: Callable[[int], int] = lambda length: 0,
    checkpoint: Path | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> History:
    """Fine-tune a model in place; afterwards it holds the weights of the epoch with the smallest validation loss.

    Every draw is from a stream named by seed, epoch and sample name: neither the order of the samples nor an
    interruption changes the result. What is validated on is masked alike in every epoch.

    Parameters
    ----------
    samples
        Number -> its tokens and values.
    names
        What the random streams of the samples are named by.
    micro_batch
        Length -> samples of that length whose activations fit in memory; 0: any number.
    checkpoint
        File to which the state is written after every epoch, and from which a killed training goes on.
    """
    device = next(model.parameters()).device
    draws = np.array([stream(seed, "scgpt-finetuned", "valid", name).random() for name in names])
    # The same samples whatever their order: those with the smallest draws.
    order = np.argsort(draws, kind="stable")
    n_valid = min(round(settings.valid_fraction * len(names)), len(names) - 1)
    valid, learn = order[:n_valid], order[n_valid:]
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, eps=1e-8)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=settings.decay)
    scaler = torch.amp.GradScaler(device.type) if settings.precision == "float16" else None
    history = History([], [])
    best = {name: value.detach().clone() for name, value in model.state_dict().items()}
    if checkpoint is not None and checkpoint.is_file():
        try:
            with warnings.catch_warnings():
                # torch warns of kinds of pickle that it then refuses.
                warnings.simplefilter("ignore", UserWarning)
                state = torch.load(checkpoint, map_location=device, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            if scaler is not None:
                scaler.load_state_dict(state["scaler"])
            best, history = state["best"], History(**state["history"])
        # A file that was cut short can fail in any way, and may have changed the model by then.
        except Exception as why:
            raise InputError(
                f"{checkpoint}: not a whole state of a training ({(str(why).splitlines() or [''])[0][:120]})",
                remedy="remove it: the training then starts again",
            ) from why

    def batch_of(numbers: Ints, label: str) -> Batch:
        items = []
        for number in numbers:
            tokens, values = samples(int(number))
            rng = stream(seed, "scgpt-finetuned", "mask", label, names[number])
            masked = mask_values(values, rng, ratio=settings.mask_ratio, mask_value=mask_value)
            items.append((tokens, masked, values))
        return make_batch(items, pad_token=pad_token, pad_value=pad_value, mask_value=mask_value, device=device)

    for epoch in range(len(history.train), settings.epochs):
        keys = np.array([stream(seed, "scgpt-finetuned", "order", epoch, names[number]).random() for number in learn])
        shuffled = learn[np.argsort(keys, kind="stable")]
        losses: list[tuple[float, int]] = []
        model.train()
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(stream_seed(seed, "scgpt-finetuned", "dropout", epoch))
            for low in range(0, len(shuffled), settings.batch_size):
                batch = batch_of(shuffled[low : low + settings.batch_size], f"epoch {epoch}")
                loss, _ = train_step(
                    model,
                    optimizer,
                    batch,
                    clip=settings.clip,
                    micro_batch=micro_batch(batch.tokens.shape[1]),
                    precision=settings.precision,
                    scaler=scaler,
                )
                losses.append((loss, len(batch)))
                progress(
                    epoch * len(learn) + low + len(batch),
                    settings.epochs * len(learn),
                    f"scgpt-finetuned: epoch {epoch + 1} of {settings.epochs}, loss {loss:.1f}",
                )
        schedule.step()
        model.eval()
        error, masked = 0.0, 0
        with torch.inference_mode():
            for low in range(0, len(valid), settings.batch_size):
                batch = batch_of(valid[low : low + settings.batch_size], "valid")
                step = micro_batch(batch.tokens.shape[1]) or len(batch)
                for first in range(0, len(batch), step):
                    error += float(masked_error(model, batch.part(slice(first, first + step))))
                masked += int(batch.masked.sum())
        history.train.append(float(np.average([loss for loss, _ in losses], weights=[size for _, size in losses])))
        # Without validation samples the last epoch is kept.
        history.valid.append(error / masked if masked else -float(epoch))
        if history.best < 0 or history.valid[-1] < history.valid[history.best]:
            history.best = epoch
            best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if checkpoint is not None:
            state = {
                "model": model.state_dict(),
                "best": best,
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "history": asdict(history),
            }
            write_whole(checkpoint, partial(torch.save, state))
    model.load_state_dict(best)
    model.eval()
    return history


class _Corpus:
    """Tokenized samples in two files, read by number: a training set may be larger than the memory."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = (folder / "tokens.bin", folder / "values.bin")
        self.ends = [0]
        self._arrays: tuple[Any, Any] | None = None

    def fill(self, samples: Iterator[Sample]) -> None:
        """Write every sample."""
        with self.paths[0].open("wb") as first, self.paths[1].open("wb") as second:
            for tokens, values in samples:
                first.write(tokens.astype("<i4").tobytes())
                second.write(values.astype("<i2").tobytes())
                self.ends.append(self.ends[-1] + len(tokens))
        self._arrays = (np.memmap(self.paths[0], "<i4", "r"), np.memmap(self.paths[1], "<i2", "r"))

    def __call__(self, number: int) -> Sample:
        """Tokens and values of a sample."""
        assert self._arrays is not None
        part = slice(self.ends[number], self.ends[number + 1])
        return np.array(self._arrays[0][part], dtype=np.int32), np.array(self._arrays[1][part], dtype=np.int16)

    def close(self) -> None:
        """Remove the files."""
        self._arrays = None
        for path in self.paths:
            path.unlink(missing_ok=True)


class FinetunedScGPT:
    """scGPT fine-tuned on the train split of the screen, masked values only (MLM), with the paper's settings."""

    info = EmbedderInfo(
        name="scgpt-finetuned",
        model_reader="scgpt-finetuned",
        summary="scGPT trained on to predict masked values of the screen's train split: 512 dimensions",
        stochastic=True,
        uses_train=True,
        options={
            **SHARED_OPTIONS,
            "max_length": (1536, "most tokens of a sample, <cls> counted; more genes are replaced by a random subset"),
            "n_hvg": (5000, "number of variable genes, chosen on the train split; 0: all genes"),
            "include_zeros": (False, "whether genes that are not expressed are tokens as well, with value 0"),
            "epochs": (15, "passes over the train split"),
            "train_batch_size": (32, "samples of one step"),
            "learning_rate": (1e-5, "of Adam, in the first epoch"),
            "decay": (0.9, "factor of the learning rate after each epoch"),
            "mask_ratio": (0.4, "share of the values of a sample that are masked"),
            "clip": (1.0, "largest norm of the gradient"),
            "dropout": (-1.0, "dropout in training; -1: as in args.json (0.2)"),
            "valid_fraction": (0.1, "share of the train split that is validated on; the best epoch is kept"),
            "max_train": (0, "most samples of the train split that are used, drawn at random; 0: all"),
            "save": ("", "folder to keep the trained model in, one for each seed; default: it is not kept"),
            "model": ("", "folder of a model trained before, which embeds as it was trained; default: train one"),
        },
        needs="counts, normalized or log1p values; gene symbols; weights of scgpt",
        licence="code: MIT; weights: none stated",
        citation="Cui et al. 2024, doi:10.1038/s41592-024-02201-0",
    )

    def _open(self, screen: Screen, given: Mapping[str, Any]) -> tuple[dict[str, Any], Files, dict[str, Any] | None]:
        """Checked options, files of the model to start from, and the record of a model that is trained already."""
        options = complete(self.info, given)
        positive(self.info.name, options, "max_length", least=2)
        positive(self.info.name, options, "epochs", "train_batch_size")
        positive(self.info.name, options, "n_hvg", "max_train", least=0)
        for name in ("learning_rate", "decay", "clip"):
            if not options[name] > 0:
                raise InputError(f"{self.info.name}: option {name} is {options[name]}", remedy="use a positive number")
        for name in ("mask_ratio", "valid_fraction"):
            if not 0 <= options[name] < 1:
                raise InputError(f"{self.info.name}: option {name} is {options[name]}", remedy="use 0 up to below 1")
        require_scale(screen, {"counts", "normalized", "log1p"}, step=self.info.name)
        if options["model"]:
            of_embedding = {*SHARED_OPTIONS, "model"} - {"weights"}
            idle = [
                name
                for name, (default, _) in self.info.options.items()
                if name not in of_embedding and options[name] != default
            ]
            if idle:
                raise InputError(
                    f"{self.info.name}: {', '.join(idle)} would have no effect: the model is trained already",
                    remedy="leave them out",
                )
            folder = Path(options["model"]).expanduser()
            record = _record(folder)
            options.update(max_length=record["max_length"], include_zeros=record["include_zeros"])
            return options, find_files(folder), record
        if options["save"]:
            check_destination(options["save"], option="the option save", folder=True)
        return options, find_files(weights_folder(options["weights"], "scgpt", _SOURCE)), None

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check options and scale; digests of the files."""
        options, files, record = self._open(screen, options)
        return digests([*files.all(), *([files.weights.with_name(_RECORD)] if record else [])], options)

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Train on the train split, then embed every sample with the trained model."""
        options, files, record = self._open(screen, options)
        device = pick_device(options["device"] or context.device, options["precision"])
        settings, vocabulary = load_settings(files), load_vocabulary(files)
        genes = match(gene_names(screen, options["genes"]), vocabulary, aliases_of(options))
        genes.require(options["min_gene_overlap"], model=self.info.name, vocabulary=vocabulary, wants="gene symbols")
        names = sample_keys(screen)
        rows = np.arange(screen.n) if context.train_rows is None else np.asarray(context.train_rows, dtype=np.int64)
        if len(rows) < 2:
            raise InputError(f"{self.info.name}: the train split has {len(rows)} samples", remedy="give more samples")
        tokens = np.array([vocabulary[gene] for gene in genes.genes], dtype=np.int64)

        def counts_of(some: Ints) -> Iterator[tuple[slice, Any]]:
            for part, block in screen.blocks(some, max_elements=context.max_elements):
                yield part, genes.collapse(block)

        chosen = np.arange(len(tokens))
        if record is not None:
            chosen = _genes_of(record, genes.genes, files.weights.parent, options["min_gene_overlap"])
        elif 0 < options["n_hvg"] < len(tokens):
            logged = (log_normalise(counts, screen.scale) for _, counts in counts_of(rows))
            chosen = variable_genes(gene_moments(logged, len(tokens)), options["n_hvg"], flavour="cell_ranger")
        own = tokens[chosen]
        all_tokens = own if options["include_zeros"] else None

        def expressed(counts: Any) -> Any:
            logged = log_normalise(counts, screen.scale)
            return logged[:, chosen] if len(chosen) < logged.shape[1] else logged

        def tokenized(picked: Any, numbers: Ints) -> Iterator[Sample]:
            for row, low, high in zip(numbers, picked.indptr[:-1], picked.indptr[1:], strict=True):
                yield tokenize_for_training(
                    picked.data[low:high],
                    own[picked.indices[low:high]],
                    stream(context.seed, "scgpt-finetuned", "tokens", names[row]),
                    cls=vocabulary["<cls>"],
                    n_bins=settings.n_bins,
                    max_length=options["max_length"],
                    all_tokens=all_tokens,
                )

        if options["max_train"] and len(rows) > options["max_train"]:
            draws = [stream(context.seed, "scgpt-finetuned", "sample", names[row]).random() for row in rows]
            rows = np.sort(rows[np.argsort(draws, kind="stable")[: options["max_train"]]])

        def corpus() -> Iterator[Sample]:
            for part, counts in counts_of(rows):
                yield from tokenized(expressed(counts), rows[part])

        if record is not None:
            folder = files.weights.parent
            model, keys = load_model(files, settings, vocabulary, decoder=True, device=device)
        else:
            key = self._key(screen, options, files, context.seed, rows)
            folder = context.folder / f"{self.info.name}-{key}"
            if options["save"]:
                folder = Path(options["save"]).expanduser() / f"seed-{context.seed}"
            about = {
                "key": key,
                "genes": [genes.genes[place] for place in chosen],
                "max_length": options["max_length"],
                "include_zeros": options["include_zeros"],
                "trained_on": len(rows),
                "trained_on_note": "all samples: no train split was given"
                if context.train_rows is None
                else "samples of the train split",
            }
            model, keys, record = self._trained(
                folder,
                about,
                files,
                settings,
                vocabulary,
                options,
                device,
                corpus,
                [names[row] for row in rows],
                context,
            )

        def encode(counts: Any, numbers: Ints) -> list[Item | None]:
            picked = expressed(counts)
            return [
                (sample[0].astype(np.int64), sample[1].astype(np.float32)) if size else None
                for sample, size in zip(tokenized(picked, numbers), np.diff(picked.indptr), strict=True)
            ]

        def run(items: Sequence[Item], length: int) -> F32:
            with inference(device, options["precision"]):
                return forward(model, items, length, pad_token=vocabulary["<pad>"], pad_value=settings.pad_value)

        def fill(out: F32) -> Ints:
            return embed_sequences(
                lambda: screen.blocks(max_elements=context.max_elements),
                screen.n,
                genes,
                out,
                encode=encode,
                forward=run,
                width=max(settings.hidden, 3 * settings.width),
                device=device,
                batch_size=options["batch_size"],
                progress=context.progress,
                name=self.info.name,
            )

        made = describe(
            screen,
            context,
            self.info,
            settings.width,
            fill,
            files=files.all(),
            keys=keys,
            genes=genes,
            device=device,
            note="embedded as it was trained: log-normalised variable genes, <cls> with value 0",
            more={
                "model": {"layers": settings.layers, "width": settings.width, "tokens": len(vocabulary)},
                "trained_on": record["trained_on"],
                "trained_on_note": record["trained_on_note"],
                "variable_genes": len(chosen),
                "history": {name: value for name, value in record.items() if name != "genes"},
                "trained_model": str(folder) if options["save"] or options["model"] else "not kept",
                "random_stream": "one for each sample, named by seed and "
                + ("sample name" if screen.has_unique_names else "row of the file"),
            },
        )
        return replace(made, model=folder)

    def _key(self, screen: Screen, options: Mapping[str, Any], files: Files, seed: int, rows: Ints) -> str:
        """What the trained model depends on, in 16 digits."""
        irrelevant = ("weights", "device", "batch_size", "min_gene_overlap", "save", "model")
        content = {
            **digests(files.all(), options),
            "options": {name: value for name, value in options.items() if name not in irrelevant},
            "screen": screen.fingerprint,
            "seed": seed,
            "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
            "version": self.info.version,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _trained(
        self,
        folder: Path,
        about: Mapping[str, Any],
        files: Files,
        settings: Settings,
        vocabulary: Mapping[str, int],
        options: Mapping[str, Any],
        device: torch.device,
        samples: Callable[[], Iterator[Sample]],
        names: Sequence[str],
        context: EmbeddingContext,
    ) -> tuple[Model, Any, dict[str, Any]]:
        """The trained model: read where it is there, else trained, and stored in the official layout.

        Parameters
        ----------
        about
            What the record of the model says beside its training; `key`: digest of what the model depends on.
        """
        key = about["key"]
        dropout = settings.dropout if options["dropout"] < 0 else options["dropout"]
        model, keys = load_model(files, settings, vocabulary, decoder=True, dropout=dropout, device=device)
        kept, state = folder / _WEIGHTS, folder / f"training-{key}.pt"
        if (folder / _RECORD).is_file():
            record = _record(folder)
            if record["key"] != key:
                raise InputError(
                    f"{folder} holds a model trained with other data or settings",
                    remedy="choose another folder with the option save, or remove this one",
                )
            model, keys = load_model(find_files(folder), settings, vocabulary, decoder=True, device=device)
            return model, keys, record
        if kept.exists() and not state.is_file():
            raise InputError(
                f"{folder} holds a {_WEIGHTS} that is not of this training", remedy="choose another folder to save in"
            )
        folder.mkdir(parents=True, exist_ok=True)
        corpus = _Corpus(folder)
        corpus.fill(samples())
        training = Training(
            options["epochs"],
            options["train_batch_size"],
            options["learning_rate"],
            options["decay"],
            options["mask_ratio"],
            options["clip"],
            options["valid_fraction"],
            options["precision"],
        )
        # Values kept per token for the gradient: about 16 widths in each layer, and the hidden layer twice.
        per_token = settings.layers * (16 * settings.width + 2 * settings.hidden)
        started = time.perf_counter()
        history = train(
            model,
            corpus,
            names,
            training,
            seed=context.seed,
            pad_token=vocabulary["<pad>"],
            pad_value=settings.pad_value,
            mask_value=settings.mask_value,
            micro_batch=lambda length: max(1, _KEPT // (length * per_token)),
            checkpoint=state,
            progress=context.progress,
        )
        corpus.close()
        report = {
            **about,
            **asdict(history),
            "settings": asdict(training),
            "dropout": dropout,
            "seconds": round(time.perf_counter() - started, 3),
        }
        sizes = json.dumps({**settings.raw, "max_seq_len": options["max_length"]}, indent=1)
        write_whole(kept, lambda handle: torch.save(model.state_dict(), handle))
        write_whole(folder / "vocab.json", lambda handle: handle.write(files.vocabulary.read_bytes()))
        write_whole(folder / "args.json", lambda handle: handle.write(sizes.encode()))
        # The record is written last: a folder with it is complete.
        write_whole(folder / _RECORD, lambda handle: handle.write(json.dumps(report, indent=1).encode()))
        state.unlink(missing_ok=True)
        return model, keys, report


def _record(folder: Path) -> dict[str, Any]:
    """The checked record of a model that was fine-tuned by this program."""
    path = folder / _RECORD
    if not path.is_file():
        raise InputError(
            f"{folder}: {_RECORD} is missing, so this is no model that txeval fine-tuned",
            remedy="give the folder of `txeval embed SCREEN --model scgpt-finetuned --save DIR`",
        )
    record = load_json(path)
    kinds: dict[str, type] = {"key": str, "genes": list, "max_length": int, "include_zeros": bool, "trained_on": int,
             "trained_on_note": str}  # fmt: skip
    for name, kind in kinds.items():
        value = record.get(name) if isinstance(record, dict) else None
        if not isinstance(value, kind):
            raise InputError(
                f"{path}: {name} is {str(value)[:60]!r}, not a {kind.__name__}", remedy="train the model again"
            )
    if not all(isinstance(gene, str) for gene in record["genes"]):
        raise InputError(f"{path}: genes are not names", remedy="train the model again")
    return dict(record)


def _genes_of(record: Mapping[str, Any], names: Sequence[str], folder: Path, minimum: float) -> Ints:
    """Places of the genes that a model was trained on among those of the screen."""
    own = set(record["genes"])
    chosen = np.array([place for place, name in enumerate(names) if name in own], dtype=np.int64)
    if not len(chosen) or len(chosen) < minimum * len(own):
        raise InputError(
            f"the screen has {len(chosen):,} of the {len(own):,} genes that the model in {folder} was trained on"
            f" (at least {minimum:.1%} are wanted)",
            remedy="use gene symbols as in its training, or accept fewer genes with min_gene_overlap",
        )
    return chosen


EMBEDDERS = (FinetunedScGPT(),)
