"""Geneformer (Theodoris et al. 2023): genes ranked by expression relative to their median, read by a BERT."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from txeval.compute.arrays import F32, F64, Ints
from txeval.data.scale import require_scale
from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext
from txeval.embed.checkpoints import (
    KeyReport,
    check_keys,
    file_digest,
    find_file,
    float_values,
    load_json,
    load_table,
    load_tensors,
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
)
from txeval.embed.genes import GeneMatch, match_genes
from txeval.errors import InputError

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = [
    "EMBEDDERS",
    "Encoder",
    "Files",
    "Geneformer",
    "Vocabulary",
    "find_files",
    "forward",
    "load_encoder",
    "load_vocabulary",
    "match",
    "rank_tokens",
]

_SOURCE = "https://huggingface.co/ctheodoris/Geneformer (Apache-2.0)"

#: Tokens that are no genes: <pad>, <mask>, <cls>, <eos>.
_SPECIAL = re.compile("<.*>")

#: Model -> names of its folder in the official repository, and in older or other copies.
_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "geneformer-v1": ("Geneformer-V1-10M", "geneformer-6L-30M", "gf-6L-10M-i2048", "gf-6L-30M-i2048"),
    "geneformer-v2-104m": ("Geneformer-V2-104M", "gf-12L-104M-i4096"),
    "geneformer-v2-316m": ("Geneformer-V2-316M", "gf-18L-316M-i4096"),
}
#: The dictionaries of a model, which have to be of one version; the tables of gene names may be absent.
_NEEDED = ("token_dictionary", "gene_median_dictionary")
_TABLES = {"gene_name_id_dict": "symbol", "ensembl_mapping_dict": "mapped id"}

#: Version -> suffixes that its dictionaries have, by the number of cells that they were made from. Dictionaries without
#: a suffix are those of V1, or of copies that were renamed.
_SUFFIXES = {1: ("_gc30M", ""), 2: ("_gc104M", "_gc95M", "")}

#: SHA-256 of the medians of V1, as in a copy of the official repository: they are known under any name.
_MEDIANS_OF_V1 = "b3b589bb5ec75040d05fc44dd6bf0184cf87f3c362cf158d196a6ed3b7fe5f39"


@dataclass(frozen=True)
class Files:
    """Files of one Geneformer model.

    Attributes
    ----------
    dictionaries
        Kind (`token_dictionary`, ...) -> file; the two tables of gene names may be absent.
    """

    config: Path
    weights: Path
    dictionaries: Mapping[str, Path]

    def all(self) -> list[Path]:
        """Every file, weights first."""
        return [self.weights, self.config, *self.dictionaries.values()]


@dataclass(frozen=True)
class Vocabulary:
    """What Geneformer knows of genes.

    Attributes
    ----------
    tokens, medians
        Ensembl id -> token; Ensembl id -> median of its non-zero expression in the training data.
    tables
        Symbol -> id and retired id -> id, as far as the files are there.
    start, end
        Tokens put around every sample (V2), or None (V1).
    """

    tokens: Mapping[str, int]
    medians: Mapping[str, float]
    tables: Mapping[str, Mapping[str, str]]
    start: int | None = None
    end: int | None = None


def find_files(folder: Path, model: str) -> Files:
    """Find the files of a model in a copy of the official repository, or in the folder of that model itself.

    Raises
    ------
    InputError
        A file is missing; the message says where it was looked for.
    """
    wanted = _FOLDERS[model]
    inside = [name for name in wanted if (folder / name / "config.json").is_file()]
    others = sorted(
        path.parent.name
        for path in folder.glob("*/config.json")
        if path.parent.name.lower().startswith(("geneformer-", "gf-"))
    )
    if inside:
        home = folder / inside[0]
    elif others:
        # The root of the official repository also holds a model, which is not the one asked for.
        raise InputError(
            f"{folder}: the folder {wanted[0]} of {model} is missing; models there: {', '.join(others)}",
            remedy=f"ask for one of these models, or get {wanted[0]} from {_SOURCE}",
        )
    else:
        home = folder
    config = find_file(home, ["config.json"], "the configuration of Geneformer")
    weights = find_file(home, ["model.safetensors", "pytorch_model.bin"], "the weights of Geneformer")
    return Files(config, weights, _dictionaries(home, 1 if model == "geneformer-v1" else 2))


def _dictionaries(home: Path, version: int) -> dict[str, Path]:
    """Kind -> file of the dictionaries of a version: all from one folder, and with one suffix."""
    places = [Path(), Path("geneformer"), Path("..", "geneformer"), Path("..")]
    if version == 1:
        places = [place / sub for sub in ("gene_dictionaries_30m", "") for place in places]
    found: list[Path] = []

    def of(suffix: str, place: Path) -> dict[str, Path]:
        named = {kind: home / place / f"{kind}{suffix}" for kind in (*_NEEDED, *_TABLES)}
        # A dictionary that is there both ways is read from the pickle, as published.
        ways = {
            kind: [path.with_name(f"{path.name}.{ending}") for ending in ("pkl", "json")]
            for kind, path in named.items()
        }
        return {kind: there[0] for kind, paths in ways.items() if (there := [path for path in paths if path.is_file()])}

    for suffix in _SUFFIXES[version]:
        for place in places:
            files = of(suffix, place)
            if all(kind in files for kind in _NEEDED):
                return files
            found += [files[kind] for kind in _NEEDED if kind in files]
        # A part of a version: another one in its place would not be what the folder was meant to hold.
        if found:
            break
    else:
        suffix = _SUFFIXES[version][0]
    lacking = [f"{kind}{suffix}.pkl is missing" for kind in _NEEDED if all(kind not in path.name for path in found)]
    others = {name for names in _SUFFIXES.values() for name in names} - {suffix}
    found += [
        path for name in sorted(others) for place in places for kind, path in of(name, place).items() if kind in _NEEDED
    ]
    raise InputError(
        f"{home}: {', '.join(lacking) or 'the dictionaries are in different folders'};"
        f" found: {', '.join(os.path.normpath(path) for path in found) or 'none'}",
        remedy=f"copy all dictionaries of one version (V{version}: NAME{_SUFFIXES[version][0]}.pkl) from {_SOURCE} into"
        f" one folder; looked in {', '.join(map(str, places))}",
    )


def load_vocabulary(files: Files, *, version: int) -> Vocabulary:
    """Read the dictionaries of a model.

    Every gene with a token has a median; medians of other genes, of which V2 has more than it has tokens, are not read.

    Raises
    ------
    InputError
        They do not fit together, the model, or the version asked for.
    """
    path = files.dictionaries["token_dictionary"]
    tokens = load_table(path, int)
    median_path = files.dictionaries["gene_median_dictionary"]
    medians = load_table(median_path, float)
    size = _config(files)["vocab_size"]
    found = 2 if {"<cls>", "<eos>"} <= set(tokens) else 1
    if found != version:
        raise InputError(
            f"{path}: these are tokens of Geneformer V{found} ({'with' if found == 2 else 'without'} <cls> and <eos>),"
            f" not of V{version}",
            remedy=f"ask for a model of version {found}, or give the files of version {version}",
        )
    if tokens.get("<pad>") != 0:
        raise InputError(f"{path}: the token <pad> is {tokens.get('<pad>')}, not 0", remedy="this is another file")
    if min(tokens.values()) < 0 or max(tokens.values()) + 1 != size or len(set(tokens.values())) != len(tokens):
        raise InputError(
            f"{path}: {len(tokens):,} tokens from {min(tokens.values()):,} to {max(tokens.values()):,} do not fit the"
            f" model of {files.config}, which knows {size:,}",
            remedy="take dictionaries and weights from the same version of Geneformer",
        )
    genes = [name for name in tokens if not _SPECIAL.fullmatch(name)]
    bad = [gene for gene in genes if not (np.isfinite(medians.get(gene, np.nan)) and medians[gene] > 0)]
    of_v1 = version == 2 and file_digest(median_path) == _MEDIANS_OF_V1
    if bad or of_v1:
        what = "these are the medians of V1"
        if bad:
            value = f"is {medians[bad[0]]}" if bad[0] in medians else "is missing"
            what = f"the median of {bad[0]} {value}, and so for {len(bad):,} of the {len(genes):,} genes with a token"
        raise InputError(
            f"{median_path}: {what} in {path}", remedy="take all dictionaries from the same version of Geneformer"
        )
    tables = {
        label: load_table(files.dictionaries[kind], str)
        for kind, label in _TABLES.items()
        if kind in files.dictionaries
    }
    return Vocabulary(
        tokens,
        {gene: medians[gene] for gene in genes},
        tables,
        tokens.get("<cls>") if version == 2 else None,
        tokens.get("<eos>") if version == 2 else None,
    )


def match(names: Sequence[str], vocabulary: Vocabulary, aliases: Mapping[str, str] | None = None) -> GeneMatch:
    """Match names of genes (Ensembl ids, or symbols through the model's tables) to the tokens of a model.

    The order of the genes decides ties of the ranks, and is that of the official tokenizer.
    """
    return match_genes(
        names, vocabulary.medians, tables=vocabulary.tables, aliases=aliases, ignore_case=True, order="summed_last"
    )


def rank_tokens(
    counts: Any,
    tokens: Ints,
    medians: F64,
    *,
    max_length: int,
    start: int | None = None,
    end: int | None = None,
) -> list[npt.NDArray[np.int64]]:
    """Tokens of the expressed genes of each sample, by decreasing count / median.

    The official value is count / total * 10,000 / median, which ranks alike. Equal values keep the order of the
    columns.

    Parameters
    ----------
    counts
        (m, t) CSR, indices sorted, no stored zeros.
    tokens, medians
        (t,) of the columns.
    max_length
        Most tokens of a sample, those around it counted.

    Returns
    -------
    list of (length,) int64
        Empty for a sample without expressed genes.
    """
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    value = counts.data.astype(np.float64) / medians[counts.indices]
    ranked = tokens[counts.indices[np.lexsort((-value, rows))]]
    around = [[] if token is None else [token] for token in (start, end)]
    room = max_length - sum(map(len, around))
    out = []
    for low, high in zip(counts.indptr[:-1], counts.indptr[1:], strict=True):
        own = ranked[low : min(high, low + room)]
        out.append(np.concatenate([around[0], own, around[1]]).astype(np.int64) if len(own) else own.astype(np.int64))
    return out


@dataclass(frozen=True)
class Encoder:
    """The layers of a model that an embedding needs.

    Attributes
    ----------
    width, positions
        Size of an embedding; longest sequence.
    widest
        Numbers per token in the widest activation.
    """

    model: Any
    keys: KeyReport
    width: int
    positions: int
    widest: int
    sizes: Mapping[str, int]


def _config(files: Files) -> dict[str, Any]:
    config = load_json(files.config)
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    missing = [name for name in needed if not isinstance(config, dict) or not isinstance(config.get(name), int)]
    if missing or config.get("model_type", "bert") != "bert":
        raise InputError(
            f"{files.config}: no configuration of a BERT model ({', '.join(missing) or config.get('model_type')})",
            remedy="give the config.json of the model",
        )
    if min(config[name] for name in needed) < 1 or config["hidden_size"] % config["num_attention_heads"]:
        raise InputError(
            f"{files.config}: {', '.join(f'{name} {config[name]}' for name in needed)} make no model",
            remedy="give the config.json of the model",
        )
    return dict(config)


def load_encoder(files: Files, *, layer: int = -1, device: torch.device | str = "cpu") -> Encoder:
    """Load the layers up to the one that is read.

    Parameters
    ----------
    layer
        0: the last layer; -1: the second to last, and so on (the official numbering).

    Raises
    ------
    InputError
        transformers is not installed, the files do not fit together, or there is no such layer.
    """
    try:
        transformers: Any = importlib.import_module("transformers")
        build_config, build_model = transformers.BertConfig, transformers.BertModel
    except (ImportError, AttributeError) as why:
        raise InputError(
            f"Geneformer needs the package transformers ({why})", remedy="pip install txeval[geneformer]"
        ) from why
    plain = _config(files)
    depth = plain["num_hidden_layers"]
    if not -depth <= layer <= 0:
        raise InputError(f"Geneformer: option layer is {layer}", remedy=f"choose from 0 (last layer) to {-depth}")
    known = {"vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
             "max_position_embeddings", "type_vocab_size", "pad_token_id"}  # fmt: skip
    settings = {name: value for name, value in plain.items() if name in known}

    def build(layers: int) -> Any:
        # Weights are put in their place below: making random ones first would only take time and memory.
        with torch.device("meta"):
            config = build_config(**settings, num_hidden_layers=layers, attn_implementation="sdpa")
            return build_model(config, add_pooling_layer=False).eval()

    try:
        whole = build(depth)
    except MemoryError:
        raise
    # What transformers and its libraries raise for sizes and names that they do not know has no common base but this.
    except Exception as why:
        raise InputError(
            f"{files.config}: transformers cannot build this model ({type(why).__name__}: {why})",
            remedy="give the config.json of the model",
        ) from why
    state = load_tensors(files.weights)
    if not any(name.startswith("bert.") for name in state):
        state = {f"bert.{name}": value for name, value in state.items()}
    shapes = {f"bert.{name}": tuple(value.shape) for name, value in whole.state_dict().items()}
    keys = check_keys(
        state,
        shapes,
        path=files.weights,
        unused=["cls.*", "bert.pooler.*", "bert.embeddings.position_ids"],
        hint=f"the sizes are those of {files.config}: take both from the same folder",
    )
    model = build(depth + layer)
    needed = {
        name: float_values(state[f"bert.{name}"], f"bert.{name}", path=files.weights) for name in model.state_dict()
    }
    model.load_state_dict(needed, strict=True, assign=True)
    parts = {"embeddings": model.embeddings, "encoder": model.encoder}
    for part in parts.values():
        for name, buffer in list(part.named_buffers()):
            # Positions are given with every call; what transformers keeps of them has no values here.
            if buffer.is_meta:
                owner = part.get_submodule(name.rpartition(".")[0])
                setattr(owner, name.rpartition(".")[2], torch.zeros(buffer.shape, dtype=buffer.dtype))
    model.to(device)
    width = plain["hidden_size"]
    return Encoder(
        model,
        keys,
        width,
        plain["max_position_embeddings"],
        max(3 * width, int(plain.get("intermediate_size", 4 * width))),
        {"layers": depth, "width": width, "tokens": plain["vocab_size"]},
    )


def forward(
    encoder: Encoder, items: Sequence[Item], length: int, *, pooling: str = "mean", special: bool = False
) -> F32:
    """Embed samples.

    Parameters
    ----------
    items
        Tokens of each sample.
    length
        Length to pad them to; it does not change the result.
    pooling
        "mean" over the tokens, or "cls": the first token.
    special
        Whether the first and the last token of each sample are no genes: the mean then leaves them out.

    Returns
    -------
    (m, width) float32
    """
    device = next(encoder.model.parameters()).device
    (tokens,), real = pad(items, length, [0], device)
    hidden = encoder.model(
        input_ids=tokens,
        attention_mask=None if real is None else real.long(),
        position_ids=torch.arange(length, device=device).expand(len(items), -1),
        token_type_ids=torch.zeros_like(tokens),
    ).last_hidden_state.float()
    if pooling == "cls":
        pooled = hidden[:, 0]
    else:
        lengths = torch.tensor([len(item[0]) for item in items], device=device)[:, None]
        place = torch.arange(length, device=device)
        first, last = (1, lengths - 1) if special else (0, lengths)
        counted = (place >= first) & (place < last)
        pooled = torch.einsum("bld,bl->bd", hidden, counted.float()) / counted.sum(dim=1, keepdim=True)
    out: F32 = pooled.cpu().numpy()
    return out


class Geneformer:
    """Embeddings from the official Geneformer checkpoints.

    Parameters
    ----------
    name
        Key of `_FOLDERS`.
    version
        1 or 2.
    """

    def __init__(self, name: str, version: int, summary: str) -> None:
        self.version = version
        options: dict[str, tuple[Any, str]] = {
            **SHARED_OPTIONS,
            "layer": (-1, "layer that is read: 0 last, -1 second to last (official default)"),
            "max_length": (0, f"most tokens of a sample; 0: as many as the model has positions ({2048 * version:,})"),
        }
        if version == 2:
            options["pooling"] = ("mean", "mean over the genes (official default) or cls")
        self.info = EmbedderInfo(
            name=name,
            summary=summary,
            options=options,
            needs="counts; Ensembl gene ids (symbols through the model's own table); weights; transformers",
            licence="code and weights: Apache-2.0",
            citation="Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9"
            + ("; Chen et al. 2024, doi:10.1101/2024.08.16.608180" if version == 2 else ""),
        )

    def _open(self, screen: Screen, given: Mapping[str, Any]) -> tuple[dict[str, Any], Files]:
        options = complete(self.info, given)
        if self.version == 2:
            choice(self.info.name, options, "pooling", ("mean", "cls"))
        require_scale(screen, {"counts"}, step=self.info.name)
        folder = weights_folder(options["weights"], self.info.name, _SOURCE)
        return options, find_files(folder, self.info.name)

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check options and scale; digests of the files."""
        options, files = self._open(screen, options)
        return digests(files.all(), options)

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Rank, tokenize and embed every sample, by blocks."""
        options, files = self._open(screen, options)
        device = pick_device(options["device"] or context.device, options["precision"])
        vocabulary = load_vocabulary(files, version=self.version)
        genes = match(gene_names(screen, options["genes"]), vocabulary, aliases_of(options))
        genes.require(
            options["min_gene_overlap"], model=self.info.name, vocabulary=vocabulary.medians, wants="Ensembl ids"
        )
        encoder = load_encoder(files, layer=options["layer"], device=device)
        longest = options["max_length"] or encoder.positions
        if not 2 * self.version - 1 <= longest <= encoder.positions:
            raise InputError(
                f"{self.info.name}: option max_length is {longest}",
                remedy=f"the model has {encoder.positions} positions",
            )
        tokens = np.array([vocabulary.tokens[gene] for gene in genes.genes], dtype=np.int64)
        medians = np.array([vocabulary.medians[gene] for gene in genes.genes])
        cut = 0

        def encode(counts: Any, rows: Ints) -> list[Item | None]:
            nonlocal cut
            around = (vocabulary.start is not None) + (vocabulary.end is not None)
            cut += int((np.diff(counts.indptr) > longest - around).sum())
            ranked = rank_tokens(
                counts, tokens, medians, max_length=longest, start=vocabulary.start, end=vocabulary.end
            )
            return [(item,) if len(item) else None for item in ranked]

        def run(items: Sequence[Item], length: int) -> F32:
            with inference(device, options["precision"]):
                return forward(
                    encoder, items, length, pooling=options.get("pooling", "mean"), special=vocabulary.start is not None
                )

        def fill(out: F32) -> Ints:
            return embed_sequences(
                lambda: screen.blocks(max_elements=context.max_elements),
                screen.n,
                genes,
                out,
                encode=encode,
                forward=run,
                width=encoder.widest,
                device=device,
                batch_size=options["batch_size"],
                progress=context.progress,
                name=self.info.name,
            )

        made = describe(
            screen,
            context,
            self.info,
            encoder.width,
            fill,
            files=files.all(),
            keys=encoder.keys,
            genes=genes,
            device=device,
            more={"model": dict(encoder.sizes), "max_length": longest, "warnings": _warnings(files, self.info.name)},
        )
        return Embedding(made.values, {**made.provenance, "samples_cut_to_max_length": cut})


def _warnings(files: Files, model: str) -> list[str]:
    path = files.dictionaries["token_dictionary"]
    if "_gc95M" not in path.name:
        return []
    return [
        f"{path}: dictionaries of 95 M cells belong to earlier models than {model}, which was published with gc104M"
    ]


EMBEDDERS = (
    Geneformer("geneformer-v1", 1, "Geneformer V1, 10 M parameters: 256 dimensions, up to 2,048 genes of a sample"),
    Geneformer("geneformer-v2-104m", 2, "Geneformer V2, 104 M parameters: 768 dimensions, up to 4,094 genes"),
    Geneformer("geneformer-v2-316m", 2, "Geneformer V2, 316 M parameters: 1,152 dimensions, up to 4,094 genes"),
)
