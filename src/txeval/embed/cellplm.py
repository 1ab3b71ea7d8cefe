"""CellPLM (Wen et al. 2024): samples as tokens, attending to the other samples of their group."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
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
    load_tensors,
    tensor_shape,
    weights_folder,
)
from txeval.embed.frozen import (
    SHARED_OPTIONS,
    aliases_of,
    choice,
    complete,
    describe,
    digests,
    gene_names,
    inference,
    pick_device,
    sample_keys,
)
from txeval.embed.genes import GeneMatch, match_genes
from txeval.errors import InputError

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = [
    "EMBEDDERS",
    "CellPLM",
    "Files",
    "Model",
    "Outcome",
    "embed_group",
    "embed_input",
    "find_files",
    "groups",
    "gumbel",
    "load_genes",
    "load_model",
    "match",
]

_SOURCE = "https://github.com/OmicsML/CellPLM (BSD-2-Clause), section Pretrained Model"

#: Added to counts of attention, as in the official code.
_EPS = 1e-6

#: Samples whose activations are held at a time; groups of more go through each layer in several passes.
BLOCK = 1024

#: Hidden states with more numbers than this lie in a temporary file.
_IN_MEMORY = 64_000_000

#: Above this share of expressed genes a dense product is faster than a sparse one.
_DENSE = 0.05

_QYX = "latent.layers.1.inference.inference_qyx.0.logits"
_QZYX = "latent.layers.1.inference.inference_qzyx"
_UNUSED = (
    "decoder.*",
    "head.*",
    "objective.*",
    "mask_model.*",
    "embedder.norm0.*",
    "embedder.pe_enc.*",
    "latent.layers.0.*",
    "latent.layers.1.inference.y_*",
    "latent.layers.1.generative*",
    f"{_QZYX}.2.var.*",
)


@dataclass(frozen=True)
class Files:
    """Files of CellPLM: `PREFIX.config.json` and `PREFIX.best.ckpt`."""

    config: Path
    weights: Path

    def all(self) -> list[Path]:
        """Both files, weights first."""
        return [self.weights, self.config]


def find_files(folder: Path, prefix: str = "") -> Files:
    """Find the two files of a version such as `20230926_85M`; "": the only one there.

    Raises
    ------
    InputError
        One is missing, or there are several versions.
    """
    config = find_file(folder, [f"{prefix or '*'}.config.json"], "the configuration of CellPLM")
    stem = config.name.removesuffix(".config.json")
    return Files(config, find_file(folder, [f"{stem}.best.ckpt"], "the checkpoint of CellPLM"))


def _config(files: Files) -> dict[str, Any]:
    config = load_json(files.config)
    genes = config.get("gene_list") if isinstance(config, dict) else None
    if not isinstance(genes, list) or not genes or not all(isinstance(gene, str) for gene in genes):
        raise InputError(
            f"{files.config}: no list of genes (gene_list)", remedy=f"take the .config.json of the model from {_SOURCE}"
        )
    expected = {"enc_mod": "flowformer", "latent_mod": "gmvae", "cat_pe": False}
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise InputError(
                f"{files.config}: {name} is {config[name]!r}; txeval knows CellPLM with {name} {value!r}",
                remedy="use one of the released versions, 20230926_85M or 20231027_85M",
            )
    return dict(config)


def load_genes(files: Files) -> list[str]:
    """Ensembl ids of the model, in the order of its gene embeddings."""
    return [str(gene) for gene in _config(files)["gene_list"]]


def match(names: Sequence[str], genes: Sequence[str], aliases: Mapping[str, str] | None = None) -> GeneMatch:
    """Match Ensembl ids to the genes of the model."""
    return match_genes(names, genes, aliases=aliases)


@dataclass(frozen=True)
class Model:
    """CellPLM without its decoder.

    Attributes
    ----------
    weights
        Official name -> tensor.
    gene_embeddings
        (t, width) of the matched genes.
    dim, clusters
        Size of an embedding; components of the Gaussian mixture.
    """

    weights: Mapping[str, Tensor]
    gene_embeddings: Tensor
    layers: int
    heads: int
    norm: str
    width: int
    dim: int
    clusters: int
    keys: KeyReport

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.gene_embeddings.device

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Apply the linear layer of a name."""
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        """Apply the layer norm of a name."""
        return F.layer_norm(x, (self.width,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


def load_model(files: Files, genes: Sequence[str], device: torch.device | str = "cpu") -> Model:
    """Load the encoder for some genes.

    Raises
    ------
    InputError
        The two files do not fit together, or are of another model.
    """
    config = _config(files)
    listed = [str(gene) for gene in config["gene_list"]]
    state = load_tensors(files.weights, inside=("model_state_dict", "state_dict", "model"))
    sizes = {"enc_hid": 1024, "post_latent_dim": 512, "enc_layers": 4, "num_clusters": 16, "enc_head": 8}
    for name, default in sizes.items():
        size = config.get(name, default)
        if not isinstance(size, int) or size < 1:
            raise InputError(
                f"{files.config}: {name} is {size!r}, not a number from 1 up",
                remedy=f"take the .config.json of the model from {_SOURCE}",
            )
        sizes[name] = size
    width, dim, layers, clusters, heads = sizes.values()
    norm = str(config.get("norm", "layernorm"))
    if norm not in ("groupnorm", "layernorm") or width % heads:
        raise InputError(
            f"{files.config}: norm {norm!r} with width {width} and {heads} heads is unknown",
            remedy="use one of the released versions, 20230926_85M or 20231027_85M",
        )
    inner = tensor_shape(state, f"{_QZYX}.0.weight", 2, path=files.weights)[0]
    found = tensor_shape(state, "embedder.feat_enc.emb", 2, path=files.weights)[0]
    if found != len(listed):
        raise InputError(
            f"{files.weights}: embeddings of {found:,} genes, but {files.config.name} lists {len(listed):,}",
            remedy="take both files from the same version of CellPLM",
        )

    def affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    wanted: dict[str, tuple[int, ...]] = {"embedder.feat_enc.emb": (len(listed), width)}
    wanted |= affine("embedder.extra_linear.0", width, width) | affine("embedder.extra_linear.3", width)
    for layer in range(layers):
        base = f"encoder.layers.{layer}"
        for part in ("query", "key", "value", "out"):
            wanted |= affine(f"{base}.self_attn.{part}_projection", width, width)
        wanted |= affine(f"{base}._ff_block.0", 2 * width, width) | affine(f"{base}._ff_block.3", width, 2 * width)
        wanted |= affine(f"{base}.norm1", width) | affine(f"{base}.norm2", width)
    wanted |= affine("pre_latent_norm.norm", width) | affine(_QYX, clusters, width)
    wanted |= affine(f"{_QZYX}.0", inner, width + clusters) | affine(f"{_QZYX}.2.mu", dim, inner)
    keys = check_keys(
        state, wanted, path=files.weights, unused=_UNUSED, hint=f"the sizes are those of {files.config.name}"
    )
    number = {gene: row for row, gene in enumerate(listed)}
    rows = torch.tensor([number[gene] for gene in genes], dtype=torch.int64)

    def values(name: str, value: Tensor) -> Tensor:
        return float_values(value, name, path=files.weights).to(device)

    table = "embedder.feat_enc.emb"
    weights = {name: values(name, state[name]) for name in wanted if name != table}
    embeddings = values(table, state[table][rows])
    return Model(weights, embeddings, layers, heads, norm, width, dim, clusters, keys)


def gumbel(uniform: npt.ArrayLike) -> F32:
    """Gumbel noise of uniform numbers: -log(-log(u + 1e-20) + 1e-20)."""
    u = np.asarray(uniform, dtype=np.float64)
    return (-np.log(-np.log(u + 1e-20) + 1e-20)).astype(np.float32)


def embed_input(model: Model, counts: Any) -> F32:
    """First hidden state of samples: log(1 + counts) times the gene embeddings, a layer, a norm.

    Parameters
    ----------
    counts
        (m, t) CSR, columns as the matched genes. A sample without counts is a valid input.

    Returns
    -------
    (m, width) float32
    """
    logged = counts.copy()
    logged.data = np.log1p(logged.data.astype(np.float32))
    share = logged.nnz / max(1, logged.shape[0] * logged.shape[1])
    if model.device.type != "cpu" or share > _DENSE:
        x = torch.from_numpy(logged.toarray()).to(model.device) @ model.gene_embeddings
    else:
        x = torch.from_numpy(np.ascontiguousarray(logged @ model.gene_embeddings.numpy()))
    x = F.relu(model.linear("embedder.extra_linear.0", x))
    gain, shift = (model.weights[f"embedder.extra_linear.3.{part}"] for part in ("weight", "bias"))
    x = F.group_norm(x, 4, gain, shift) if model.norm == "groupnorm" else F.layer_norm(x, x.shape[1:], gain, shift)
    out: F32 = x.float().cpu().numpy()
    return out


class _Projected(NamedTuple):
    """One block of a group on the way through a layer; tensors are (heads, m, width / heads)."""

    rows: slice
    x: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


def _flow_layer(model: Model, layer: int, h: F32) -> None:
    """Take the hidden states of a group (n, width) through one layer, in place.

    Flow attention (Wu et al. 2022) needs sums over the group, one after the other; with several blocks the projections
    are computed again for each, so that only one block's activations are held. Sums are kept in float64.
    """
    base = f"encoder.layers.{layer}"
    n, heads = len(h), model.heads

    def project(rows: slice) -> _Projected:
        x = torch.from_numpy(np.ascontiguousarray(h[rows])).to(model.device)
        normed = model.layer_norm(f"{base}.norm1", x)
        query, key, value = (
            model.linear(f"{base}.self_attn.{part}_projection", normed).reshape(len(x), heads, -1).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        return _Projected(rows, x, query.sigmoid(), key.sigmoid(), value)

    parts = [slice(low, min(n, low + BLOCK)) for low in range(0, n, BLOCK)]
    kept = [project(parts[0])] if len(parts) == 1 else None

    def blocks() -> Iterator[_Projected]:
        yield from kept if kept is not None else map(project, parts)

    def total(term: Callable[[_Projected], Tensor]) -> Tensor:
        sums: Tensor | None = None
        for block in blocks():
            part = term(block).double()
            sums = part if sums is None else sums + part
        assert sums is not None
        return sums.float()

    def incoming(block: _Projected) -> Tensor:
        return torch.reciprocal(((block.query + _EPS) * (keys + _EPS)).sum(-1))

    def outgoing(block: _Projected) -> Tensor:
        return torch.reciprocal(((block.key + _EPS) * (queries + _EPS)).sum(-1))

    keys, queries = total(lambda block: torch.stack([block.key.sum(1, keepdim=True), block.query.sum(1, keepdim=True)]))
    sources, sinks = total(
        lambda block: torch.stack(
            [
                (block.key * outgoing(block)[..., None]).sum(1, keepdim=True),
                (block.query * incoming(block)[..., None]).sum(1, keepdim=True),
            ]
        )
    )

    def competition(block: _Projected) -> Tensor:
        # Clamped to [-1, 1], so that the softmax over the group needs no maximum.
        weight = ((block.key + _EPS) * (sinks + _EPS)).sum(-1)
        return torch.exp(weight.clamp(-1, 1))

    def exchange(block: _Projected) -> Tensor:
        weight = competition(block)[..., None]
        moved = block.key.transpose(1, 2) @ (block.value * weight)
        # The last column sums the weights: the denominator of the softmax.
        return torch.cat([moved, weight.sum(1, keepdim=True).expand(-1, moved.shape[1], 1)], dim=2)

    exchanged = total(exchange)
    context = exchanged[..., :-1] / exchanged[:, :1, -1:] * n
    for block in blocks():
        allocation = ((block.query + _EPS) * (sources + _EPS)).sum(-1).sigmoid()
        attended = ((block.query * incoming(block)[..., None]) @ context) * allocation[..., None]
        attended = attended.transpose(0, 1).reshape(len(block.x), -1)
        x = block.x + model.linear(f"{base}.self_attn.out_projection", attended)
        inner = F.gelu(model.linear(f"{base}._ff_block.0", model.layer_norm(f"{base}.norm2", x)))
        x = x + model.linear(f"{base}._ff_block.3", inner)
        h[block.rows] = x.float().cpu().numpy()


@dataclass(frozen=True)
class Outcome:
    """What CellPLM says of a group of samples.

    Attributes
    ----------
    values
        (n, dim) latent means: the embedding.
    logits
        (n, clusters) of the mixture component.
    cluster
        (n,) the component chosen: argmax(logits + noise).
    """

    values: F32
    logits: F32
    cluster: Ints


def embed_group(model: Model, h: F32, noise: F32 | None = None) -> Outcome:
    """Embed samples that attend to each other.

    Parameters
    ----------
    h
        (n, width) from `embed_input`; overwritten.
    noise
        (n, clusters) Gumbel noise added to the logits before the component is chosen (as the official code does, also
        in evaluation); None: the likeliest component.
    """
    for layer in range(model.layers):
        _flow_layer(model, layer, h)
    values, all_logits, chosen = [], [], []
    for low in range(0, len(h), BLOCK):
        x = torch.from_numpy(np.ascontiguousarray(h[low : low + BLOCK])).to(model.device)
        x = model.layer_norm("pre_latent_norm.norm", x)
        logits = model.linear(_QYX, x).float()
        noisy = logits if noise is None else logits + torch.from_numpy(noise[low : low + BLOCK]).to(model.device)
        cluster = noisy.argmax(1)
        onehot = F.one_hot(cluster, model.clusters).to(x.dtype)
        inner = F.relu(model.linear(f"{_QZYX}.0", torch.cat([x, onehot], dim=1)))
        values.append(model.linear(f"{_QZYX}.2.mu", inner).float().cpu().numpy())
        all_logits.append(logits.cpu().numpy())
        chosen.append(cluster.cpu().numpy())
    return Outcome(np.concatenate(values), np.concatenate(all_logits), np.concatenate(chosen))


def groups(n: int, batch: Ints | None, batch_size: int) -> Iterator[Ints]:
    """Rows that are embedded together: by batch in sorted order, each cut into chunks of consecutive samples.

    Parameters
    ----------
    batch
        (n,) codes; None: all samples are one batch.
    batch_size
        Samples of a chunk; 0: the whole batch.
    """
    for code in [None] if batch is None else np.unique(batch):
        rows = np.arange(n) if code is None or batch is None else np.flatnonzero(batch == code)
        step = batch_size or max(1, len(rows))
        for low in range(0, len(rows), step):
            yield rows[low : low + step]


class CellPLM:
    """Embeddings from the official CellPLM checkpoints."""

    info = EmbedderInfo(
        name="cellplm",
        summary="CellPLM, 85 M parameters: 512 dimensions, samples attend to their batch mates",
        stochastic=True,
        options={
            **{name: option for name, option in SHARED_OPTIONS.items() if name != "batch_size"},
            "version": (
                "",
                "beginning of the file names, such as 20230926_85M; default: the only version in the folder",
            ),
            "batch_size": (
                0,
                "samples embedded together, in the order of the screen; 0: a whole batch. Changes the result",
            ),
            "by_batch": (True, "whether samples attend to samples of their own batch only"),
            "noise": ("sample", "sample: the mixture component is drawn (official); argmax: the likeliest one"),
        },
        needs="counts; Ensembl gene ids; weights",
        licence="code: BSD-2-Clause; weights: none stated",
        citation="Wen et al. 2024, CellPLM, ICLR, doi:10.1101/2023.10.03.560734",
    )

    def _open(self, screen: Screen, given: Mapping[str, Any]) -> tuple[dict[str, Any], Files]:
        options = complete(self.info, given)
        choice(self.info.name, options, "noise", ("sample", "argmax"))
        require_scale(screen, {"counts"}, step=self.info.name)
        folder = weights_folder(options["weights"], self.info.name, _SOURCE)
        return options, find_files(folder, options["version"])

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check options and scale; digests of the files."""
        options, files = self._open(screen, options)
        return digests(files.all(), options)

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Embed every sample, by groups."""
        options, files = self._open(screen, options)
        device = pick_device(options["device"] or context.device, options["precision"])
        known = load_genes(files)
        genes = match(gene_names(screen, options["genes"]), known, aliases_of(options))
        genes.require(options["min_gene_overlap"], model=self.info.name, vocabulary=known, wants="Ensembl ids")
        model = load_model(files, genes.genes, device)
        names = sample_keys(screen)

        def noise(rows: Ints) -> F32 | None:
            if options["noise"] == "argmax":
                return None
            draws = [stream(context.seed, "cellplm", names[row]).random(model.clusters) for row in rows]
            return gumbel(draws)

        def fill(out: F32) -> Ints:
            empty: list[int] = []
            done = 0
            batch = screen.samples.batch if options["by_batch"] else None
            for rows in groups(screen.n, batch, options["batch_size"]):
                with _hidden(context.folder, (len(rows), model.width)) as h, inference(device, options["precision"]):
                    for part, block in screen.blocks(rows, max_elements=context.max_elements):
                        counts = genes.collapse(block)
                        empty += rows[part][np.diff(counts.indptr) == 0].tolist()
                        for low in range(0, counts.shape[0], BLOCK):
                            piece = counts[low : low + BLOCK]
                            h[part.start + low : part.start + low + piece.shape[0]] = embed_input(model, piece)
                    out[rows] = embed_group(model, h, noise(rows)).values
                done += len(rows)
                context.progress(done, screen.n, self.info.name)
            return np.array(sorted(empty), dtype=np.int64)

        mates = "of its batch" if options["by_batch"] else "of the screen"
        size = f"{options['batch_size']:,} consecutive samples" if options["batch_size"] else "all samples"
        return describe(
            screen,
            context,
            self.info,
            model.dim,
            fill,
            files=files.all(),
            keys=model.keys,
            genes=genes,
            device=device,
            unusable_rows="what the model gives for a sample without counts, as in the official code",
            note=f"each sample depends on those it is embedded with: {size} {mates}",
            more={
                "model": {
                    "layers": model.layers,
                    "width": model.width,
                    "genes": len(known),
                    "clusters": model.clusters,
                },
                "depends_on_batch_mates": True,
                "random_stream": "none (noise=argmax)"
                if options["noise"] == "argmax"
                else "one for each sample, named by seed and "
                + ("sample name" if screen.has_unique_names else "row of the file"),
            },
        )


@contextmanager
def _hidden(folder: Path, shape: tuple[int, int]) -> Iterator[F32]:
    """Room for the hidden states of a group: in memory, or in a temporary file where they are many."""
    if shape[0] * shape[1] <= _IN_MEMORY:
        yield np.empty(shape, dtype=np.float32)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        yield np.memmap(file, dtype=np.float32, mode="w+", shape=shape)


EMBEDDERS = (CellPLM(),)
