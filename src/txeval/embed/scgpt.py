"""scGPT (Cui et al. 2024): genes with their expression in 51 bins of the sample's own quantiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from txeval.compute.arrays import F32, Ints
from txeval.compute.random import stream
from txeval.data.scale import require_scale
from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext
from txeval.embed.checkpoints import (
    KeyReport,
    check_keys,
    find_file,
    float_values,
    load_json,
    load_table,
    load_tensors,
    tensor_shape,
    weights_folder,
)
from txeval.embed.frozen import (
    SHARED_OPTIONS,
    Item,
    aliases_of,
    choice,
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
from txeval.embed.genes import GeneMatch, match_genes
from txeval.embed.transformer import PostNormEncoder, parameter_shapes
from txeval.errors import InputError

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = [
    "EMBEDDERS",
    "Files",
    "Model",
    "ScGPT",
    "Settings",
    "bin_edges_digits",
    "bin_values",
    "find_files",
    "forward",
    "load_model",
    "load_settings",
    "load_vocabulary",
    "match",
    "tokenize",
]

_SOURCE = "https://github.com/bowang-lab/scGPT, section Pretrained scGPT Model Zoo (code: MIT)"

#: The value encoder takes no larger values.
_MAX_VALUE = 512

_SPECIAL = ("<pad>", "<cls>", "<eoc>")
_UNUSED = ("decoder.*", "mvc_decoder.*", "cls_decoder.*", "flag_encoder.*", "grad_reverse_discriminator.*",
           "sim.*", "creterion_cce.*")  # fmt: skip


@dataclass(frozen=True)
class Files:
    """Files of one scGPT model."""

    weights: Path
    args: Path
    vocabulary: Path

    def all(self) -> list[Path]:
        """Every file, weights first."""
        return [self.weights, self.args, self.vocabulary]


@dataclass(frozen=True)
class Settings:
    """What `args.json` says of the model."""

    width: int
    layers: int
    heads: int
    hidden: int
    dropout: float
    n_bins: int
    pad_value: int
    mask_value: int
    max_length: int
    raw: Mapping[str, Any] = field(default_factory=dict)


def find_files(folder: Path) -> Files:
    """Find the three files of a model.

    Raises
    ------
    InputError
        One is missing.
    """
    return Files(
        find_file(folder, ["best_model.pt", "model.pt"], "the weights of scGPT"),
        find_file(folder, ["args.json"], "the settings of scGPT"),
        find_file(folder, ["vocab.json"], "the vocabulary of scGPT"),
    )


def load_settings(files: Files) -> Settings:
    """Read `args.json`.

    Raises
    ------
    InputError
        A size is missing, or the model reads values in another way than the released ones.
    """
    raw = load_json(files.args)
    if not isinstance(raw, dict):
        raise InputError(f"{files.args}: no settings of scGPT", remedy=f"get args.json from {_SOURCE}")

    def number(name: str, default: float | None = None) -> float:
        value = raw.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{files.args}: {name} is {value!r}, not a number", remedy=f"get args.json from {_SOURCE}")
        return float(value)

    for name, known in (("input_style", "binned"), ("input_emb_style", "continuous")):
        if raw.get(name, known) != known:
            raise InputError(
                f"{files.args}: {name} is {raw[name]!r}; txeval knows scGPT with {name} {known!r}",
                remedy="use one of the released whole-human, continual-pretrained or organ models",
            )
    width, layers, heads, hidden = (int(number(name)) for name in ("embsize", "nlayers", "nheads", "d_hid"))
    if min(width, layers, heads, hidden) < 1 or width % heads:
        raise InputError(
            f"{files.args}: embsize {width}, nlayers {layers}, nheads {heads}, d_hid {hidden} make no model",
            remedy=f"get args.json from {_SOURCE}",
        )
    return Settings(
        width,
        layers,
        heads,
        hidden,
        number("dropout", 0.2),
        int(number("n_bins", 51)),
        int(number("pad_value", -2)),
        int(number("mask_value", -1)),
        int(number("max_seq_len", 1200)),
        raw,
    )


def load_vocabulary(files: Files) -> dict[str, int]:
    """Read `vocab.json`: symbol or special token -> row of the embedding.

    Raises
    ------
    InputError
        It is no vocabulary of scGPT.
    """
    vocabulary = load_table(files.vocabulary, int)
    missing = [name for name in _SPECIAL[:2] if name not in vocabulary]
    if missing or min(vocabulary.values()) < 0 or len(set(vocabulary.values())) != len(vocabulary):
        problem = f"no token {', '.join(missing)}" if missing else "two names have one number, or a number is negative"
        raise InputError(
            f"{files.vocabulary}: {problem}",
            remedy="give the vocab.json of the checkpoint, not the one of the package scgpt (default_*_vocab.json)",
        )
    return vocabulary


def match(names: Sequence[str], vocabulary: Mapping[str, int], aliases: Mapping[str, str] | None = None) -> GeneMatch:
    """Match gene symbols to the vocabulary."""
    return match_genes(names, {name for name in vocabulary if name not in _SPECIAL}, aliases=aliases)


def bin_edges_digits(values: F32, n_bins: int = 51) -> tuple[Ints, Ints]:
    """First and last bin that the values of a sample may fall into.

    Parameters
    ----------
    values
        (k,) positive values of one sample.
    n_bins
        Bins, the one of zero counted: there are n_bins - 1 quantiles as edges.

    Returns
    -------
    left, right
        (k,) each. They differ where a value is tied with itself over several quantiles.
    """
    edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
    return np.digitize(values, edges), np.digitize(values, edges, right=True)


def bin_values(values: F32, uniform: npt.ArrayLike, n_bins: int = 51) -> npt.NDArray[np.int64]:
    """Bins of the values of a sample; a value that is several quantiles at once falls into one of them at random.

    `ceil(u (right - left) + left)`, as the official code draws it.

    Parameters
    ----------
    uniform
        (k,) uniform numbers.
    """
    left, right = bin_edges_digits(values, n_bins)
    out: npt.NDArray[np.int64] = np.ceil(np.asarray(uniform) * (right - left) + left).astype(np.int64)
    return out


def tokenize(
    values: F32,
    tokens: Ints,
    rng: np.random.Generator,
    *,
    cls: int,
    cls_value: int,
    n_bins: int = 51,
    max_length: int = 1200,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """What scGPT reads of a sample: `<cls>`, then its genes with their bins.

    Parameters
    ----------
    values, tokens
        (k,) of the expressed genes, in the order of the columns.
    rng
        The sample's own: k uniform numbers for the bins, then, where there are too many genes, which of them to take.
    max_length
        Most tokens, `<cls>` counted; more genes are replaced by a random subset of them, in random order.

    Returns
    -------
    tokens, values
        (length,) each.
    """
    binned = bin_values(values, rng.random(len(values)), n_bins)
    if len(tokens) > max_length - 1:
        taken = rng.permutation(len(tokens))[: max_length - 1]
        tokens, binned = tokens[taken], binned[taken]
    return (
        np.concatenate([[cls], tokens]).astype(np.int64),
        np.concatenate([[cls_value], binned]).astype(np.float32),
    )


class _GeneEncoder(nn.Module):
    def __init__(self, rows: int, width: int, pad_token: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width, padding_idx=pad_token)
        self.enc_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.enc_norm(self.embedding(tokens))
        return out


class _ValueEncoder(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, width)
        self.linear2 = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, values: Tensor) -> Tensor:
        x = values.unsqueeze(-1).clamp(max=_MAX_VALUE)
        x = self.norm(self.linear2(F.relu(self.linear1(x))))
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Decoder(nn.Module):
    """Predicts the value of each position; used in fine-tuning only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (...)."""
        out: Tensor = self.fc(x).squeeze(-1)
        return out


class Model(nn.Module):
    """scGPT under its official parameter names (`in_proj_*` for flash-attention's `Wqkv.*`).

    Parameters
    ----------
    decoder
        Whether to have the decoder of masked values as well.
    dropout
        Used only in training.
    """

    def __init__(
        self, settings: Settings, rows: int, pad_token: int, *, decoder: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.encoder = _GeneEncoder(rows, settings.width, pad_token)
        self.value_encoder = _ValueEncoder(settings.width, dropout)
        self.transformer_encoder = PostNormEncoder(
            settings.layers, settings.width, settings.heads, settings.hidden, dropout
        )
        if decoder:
            self.decoder = Decoder(settings.width)

    def forward(
        self, tokens: Tensor, values: Tensor, real: Tensor | None = None, *, first_only: bool = False
    ) -> Tensor:
        """Run the encoder.

        Parameters
        ----------
        tokens, values
            (m, length).
        real
            (m, length), True where there is no padding; None: there is none.
        first_only
            Give only position 0: (m, 1, width).

        Returns
        -------
        (m, length, width)
        """
        x = self.encoder(tokens) + self.value_encoder(values)
        out: Tensor = self.transformer_encoder(x, real, first_only=first_only)
        return out


def _official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict with the names of torch's attention in place of flash-attention's."""
    return {
        name.replace("self_attn._impl.", "self_attn.")
        .replace("self_attn.Wqkv.weight", "self_attn.in_proj_weight")
        .replace("self_attn.Wqkv.bias", "self_attn.in_proj_bias")
        .removeprefix("module."): value
        for name, value in state.items()
    }


def load_model(
    files: Files,
    settings: Settings,
    vocabulary: Mapping[str, int],
    *,
    decoder: bool = False,
    dropout: float = 0.0,
    device: torch.device | str = "cpu",
) -> tuple[Model, KeyReport]:
    """Load a checkpoint, with or without the decoder of masked values.

    Raises
    ------
    InputError
        The three files do not fit together.
    """
    state = _official_names(load_tensors(files.weights, inside=("model_state_dict", "state_dict")))
    found = tensor_shape(state, "encoder.embedding.weight", 2, path=files.weights)[0]
    rows = max(vocabulary.values()) + 1
    if found != rows:
        raise InputError(
            f"{files.weights}: embeddings of {found:,} tokens, but {files.vocabulary.name} numbers {rows:,}",
            remedy="take the weights and the vocab.json of the same model",
        )
    with torch.device("meta"):
        model = Model(settings, rows, vocabulary["<pad>"], decoder=decoder, dropout=dropout)
    wanted = parameter_shapes(model)
    unused = [pattern for pattern in _UNUSED if not (decoder and pattern == "decoder.*")]
    keys = check_keys(
        state, wanted, path=files.weights, unused=unused, hint=f"the sizes are those of {files.args.name}"
    )
    values = {name: float_values(state[name], name, path=files.weights) for name in wanted}
    # With a decoder the model is to be trained: on a copy, not on the memory-mapped file.
    model.load_state_dict({name: value.clone() if decoder else value for name, value in values.items()}, assign=True)
    return model.eval().to(device), keys


def forward(
    model: Model, items: Sequence[Item], length: int, *, pad_token: int, pad_value: int, pooling: str = "cls"
) -> F32:
    """Embed samples.

    Parameters
    ----------
    items
        (tokens, values) of each sample, `<cls>` first.
    length
        Length to pad them to; it does not change the result.
    pooling
        "cls": the first position; "mean": the mean over the genes.

    Returns
    -------
    (m, width) float32, each row of length 1
    """
    (tokens, values), real = pad(items, length, [pad_token, pad_value], next(model.parameters()).device)
    hidden = model(tokens, values, real, first_only=pooling == "cls").float()
    if pooling == "cls":
        pooled = hidden[:, 0]
    else:
        counted = (torch.ones_like(values) if real is None else real.float())[:, 1:]
        pooled = torch.einsum("bld,bl->bd", hidden[:, 1:], counted) / counted.sum(dim=1, keepdim=True)
    out: F32 = F.normalize(pooled, dim=1).cpu().numpy()
    return out


class ScGPT:
    """Embeddings from the official scGPT checkpoints, without fine-tuning."""

    info = EmbedderInfo(
        name="scgpt",
        summary="scGPT as released (zero-shot): 512 dimensions, up to 1,199 genes of a sample",
        stochastic=True,
        options={
            **SHARED_OPTIONS,
            "max_length": (1200, "most tokens of a sample, <cls> counted; more genes are replaced by a random subset"),
            "pooling": ("cls", "cls (official) or mean over the genes"),
        },
        needs="counts, normalized or log1p values (only their ranks are read); gene symbols; weights",
        licence="code: MIT; weights: none stated",
        citation="Cui et al. 2024, doi:10.1038/s41592-024-02201-0",
    )

    def _open(self, screen: Screen, given: Mapping[str, Any]) -> tuple[dict[str, Any], Files]:
        options = complete(self.info, given)
        choice(self.info.name, options, "pooling", ("cls", "mean"))
        positive(self.info.name, options, "max_length", least=2)
        require_scale(screen, {"counts", "normalized", "log1p"}, step=self.info.name)
        return options, find_files(weights_folder(options["weights"], self.info.name, _SOURCE))

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check options and scale; digests of the files."""
        options, files = self._open(screen, options)
        return digests(files.all(), options)

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Bin, tokenize and embed every sample, by blocks."""
        options, files = self._open(screen, options)
        device = pick_device(options["device"] or context.device, options["precision"])
        settings, vocabulary = load_settings(files), load_vocabulary(files)
        genes = match(gene_names(screen, options["genes"]), vocabulary, aliases_of(options))
        genes.require(options["min_gene_overlap"], model=self.info.name, vocabulary=vocabulary, wants="gene symbols")
        model, keys = load_model(files, settings, vocabulary, device=device)
        tokens = np.array([vocabulary[gene] for gene in genes.genes], dtype=np.int64)
        names = sample_keys(screen)
        cut = 0

        def encode(counts: Any, rows: Ints) -> list[Item | None]:
            nonlocal cut
            cut += int((np.diff(counts.indptr) > options["max_length"] - 1).sum())
            return [
                tokenize(
                    counts.data[low:high],
                    tokens[counts.indices[low:high]],
                    stream(context.seed, "scgpt", names[row]),
                    cls=vocabulary["<cls>"],
                    cls_value=settings.pad_value,
                    n_bins=settings.n_bins,
                    max_length=options["max_length"],
                )
                if high > low
                else None
                for row, low, high in zip(rows, counts.indptr[:-1], counts.indptr[1:], strict=True)
            ]

        def run(items: Sequence[Item], length: int) -> F32:
            with inference(device, options["precision"]):
                return forward(
                    model,
                    items,
                    length,
                    pad_token=vocabulary["<pad>"],
                    pad_value=settings.pad_value,
                    pooling=options["pooling"],
                )

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
            more={
                "model": {"layers": settings.layers, "width": settings.width, "tokens": len(vocabulary)},
                "random_stream": "one for each sample, named by seed and "
                + ("sample name" if screen.has_unique_names else "row of the file"),
            },
        )
        return Embedding(made.values, {**made.provenance, "samples_cut_to_max_length": cut})


EMBEDDERS = (ScGPT(),)
