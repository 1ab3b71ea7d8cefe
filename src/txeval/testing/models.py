"""Tiny untrained models in the official layouts, for tests: ours and those of users."""

from __future__ import annotations

import json
import math
import pickle
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from txeval.embed.checkpoints import UNTRAINED

__all__ = ["make_tiny_cellplm", "make_tiny_geneformer", "make_tiny_scgpt", "make_tiny_uce"]


class _Weights:
    """Random tensors, no norm at 1 and no bias at 0, so that a mistake in any of them shows."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.state: dict[str, torch.Tensor] = {}

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        return mean + scale * torch.randn(shape, generator=self.generator)

    def table(self, name: str, *shape: int, scale: float = 1.0) -> None:
        self.state[name] = self.normal(*shape, scale=scale)

    def linear(self, name: str, out: int, into: int, weight: str = ".weight", bias: str = ".bias") -> None:
        self.state[f"{name}{weight}"] = self.normal(out, into, scale=into**-0.5)
        self.state[f"{name}{bias}"] = self.normal(out, scale=0.1)

    def norm(self, name: str, size: int) -> None:
        self.state[f"{name}.weight"] = self.normal(size, scale=0.1, mean=1.0)
        self.state[f"{name}.bias"] = self.normal(size, scale=0.1)

    def encoder(self, layers: int, width: int, hidden: int, *, flash: bool) -> None:
        """`transformer_encoder` of torch, or with the names of flash-attention."""
        for layer in range(layers):
            base = f"transformer_encoder.layers.{layer}"
            if flash:
                self.linear(f"{base}.self_attn.Wqkv", 3 * width, width)
            else:
                self.linear(f"{base}.self_attn.in_proj", 3 * width, width, "_weight", "_bias")
            self.linear(f"{base}.self_attn.out_proj", width, width)
            self.linear(f"{base}.linear1", hidden, width)
            self.linear(f"{base}.linear2", width, hidden)
            self.norm(f"{base}.norm1", width)
            self.norm(f"{base}.norm2", width)


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _pickle(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def _untrained(folder: Path) -> None:
    (folder / UNTRAINED).write_text("Random weights, made by txeval.testing. They mean nothing.\n")


def _ensembl(name: str) -> str:
    """The name itself where it is an Ensembl id, else one that is made up."""
    return name if re.match(r"^ENS[A-Z]*G\d{11}$", name) else f"ENSG{90_000_000_000 + zlib.crc32(name.encode())}"


def make_tiny_geneformer(
    folder: Path,
    genes: Sequence[str],
    *,
    version: Literal[1, 2] = 1,
    size: Literal["10M", "104M", "316M", ""] = "",
    retired: Mapping[str, str] | None = None,
    width: int = 16,
    layers: int = 3,
    heads: int = 4,
    hidden: int = 32,
    seed: int = 0,
) -> Path:
    """Write an untrained Geneformer with the files of the official repository.

    Parameters
    ----------
    genes
        Symbols (which get made-up Ensembl ids) or Ensembl ids of the vocabulary.
    size
        Name of the model's folder, `Geneformer-V2-316M` and so on; default: 10M for version 1, 104M for version 2.
    retired
        Retired Ensembl id -> gene.
    width, layers, heads, hidden
        Sizes; width is a multiple of heads.

    Returns
    -------
    Path
        `folder`, to be given as `weights`.
    """
    from safetensors.torch import save_file

    ids = [_ensembl(gene) for gene in genes]
    special = ["<pad>", "<mask>"] + (["<cls>", "<eos>"] if version == 2 else [])
    suffix = "gc30M" if version == 1 else "gc104M"
    tables = folder / "geneformer" / ("gene_dictionaries_30m" if version == 1 else "")
    rng = np.random.default_rng(seed)
    tokens: dict[str, Any] = dict(zip(special, range(len(special)), strict=True))
    tokens |= {gene: np.int16(number) for number, gene in enumerate(ids, start=len(special))}
    _pickle(tables / f"token_dictionary_{suffix}.pkl", tokens)
    _pickle(
        tables / f"gene_median_dictionary_{suffix}.pkl", dict(zip(ids, 1 + rng.gamma(2.0, 1.0, len(ids)), strict=True))
    )
    _pickle(
        tables / f"gene_name_id_dict_{suffix}.pkl",
        {gene: own for gene, own in zip(genes, ids, strict=True) if gene != own},
    )
    mapping = {gene: gene for gene in ids} | {old: _ensembl(gene) for old, gene in (retired or {}).items()}
    _pickle(tables / f"ensembl_mapping_dict_{suffix}.pkl", mapping)
    positions = 2048 * version
    config = {
        "architectures": ["BertForMaskedLM"],
        "hidden_act": "relu",
        "hidden_size": width,
        "intermediate_size": hidden,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": positions,
        "model_type": "bert",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": len(tokens),
    }
    home = folder / f"Geneformer-V{version}-{size or ('10M' if version == 1 else '104M')}"
    _json(home / "config.json", config)
    w = _Weights(seed)
    w.table("bert.embeddings.word_embeddings.weight", len(tokens), width)
    w.table("bert.embeddings.position_embeddings.weight", positions, width, scale=0.3)
    w.table("bert.embeddings.token_type_embeddings.weight", 2, width, scale=0.3)
    w.norm("bert.embeddings.LayerNorm", width)
    for layer in range(layers):
        base = f"bert.encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            w.linear(f"{base}.attention.{part}", width, width)
        w.norm(f"{base}.attention.output.LayerNorm", width)
        w.linear(f"{base}.intermediate.dense", hidden, width)
        w.linear(f"{base}.output.dense", width, hidden)
        w.norm(f"{base}.output.LayerNorm", width)
    w.table("cls.predictions.bias", len(tokens), scale=0.1)
    w.linear("cls.predictions.transform.dense", width, width)
    w.norm("cls.predictions.transform.LayerNorm", width)
    save_file(w.state, home / "model.safetensors", metadata={"format": "pt"})
    _untrained(home)
    return folder


def make_tiny_scgpt(
    folder: Path,
    genes: Sequence[str],
    *,
    width: int = 16,
    layers: int = 2,
    heads: int = 4,
    hidden: int = 32,
    seed: int = 0,
) -> Path:
    """Write an untrained scGPT: `args.json`, `vocab.json`, `best_model.pt` with the names of flash-attention.

    Parameters
    ----------
    genes
        Symbols of the vocabulary.
    width, layers, heads, hidden
        Sizes; width is a multiple of heads.

    Returns
    -------
    Path
        `folder`, to be given as `weights`.
    """
    args = {
        "pad_token": "<pad>",
        "input_style": "binned",
        "input_emb_style": "continuous",
        "n_bins": 51,
        "max_seq_len": 1200,
        "nlayers": layers,
        "nheads": heads,
        "embsize": width,
        "d_hid": hidden,
        "dropout": 0.2,
        "n_layers_cls": 3,
        "mask_value": -1,
        "pad_value": -2,
    }
    _json(folder / "args.json", args)
    names = [*dict.fromkeys(genes), "<pad>", "<cls>", "<eoc>"]
    _json(folder / "vocab.json", {name: number for number, name in enumerate(names)})
    w = _Weights(seed)
    w.table("encoder.embedding.weight", len(names), width)
    w.norm("encoder.enc_norm", width)
    w.linear("value_encoder.linear1", width, 1)
    w.linear("value_encoder.linear2", width, width)
    w.norm("value_encoder.norm", width)
    w.encoder(layers, width, hidden, flash=True)
    for number, out in ((0, width), (2, width), (4, 1)):
        w.linear(f"decoder.fc.{number}", out, width)
    w.linear("mvc_decoder.gene2query", width, width)
    w.table("mvc_decoder.W.weight", width, width)
    w.table("flag_encoder.weight", 2, width)
    torch.save(w.state, folder / "best_model.pt")
    _untrained(folder)
    return folder


def make_tiny_uce(
    folder: Path,
    genes: Sequence[str],
    *,
    model: Literal["uce-4l", "uce-33l"] = "uce-4l",
    width: int = 40,
    layers: int = 2,
    hidden: int = 80,
    token_width: int = 24,
    middle: int = 32,
    mouse_genes: int = 5,
    seed: int = 0,
) -> Path:
    """Write an untrained UCE: state dict with the token table, and the tables of species, chromosomes and proteins.

    Parameters
    ----------
    genes
        Human symbols; they are spread over made-up places on 24 chromosomes.
    model
        Which name the file of the weights gets.
    width, layers, hidden, token_width, middle
        Sizes; width is a multiple of 20, which is the number of attention heads.
    mouse_genes
        Genes of a second species, which come before the human ones in the token table.

    Returns
    -------
    Path
        `folder`, to be given as `weights`.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    symbols = list(dict.fromkeys(gene.upper() for gene in genes))
    species = {"mouse": [f"MOUSE{i}" for i in range(mouse_genes)], "human": symbols}
    names = [*map(str, range(1, 23)), "X", "Y"]
    lines, labels = ["species,gene_symbol,chromosome,start"], set()
    for kind, own in species.items():
        for symbol in own:
            name = names[int(rng.integers(len(names)))]
            labels.add((kind, name))
            lines.append(f"{kind},{symbol},{name},{int(rng.integers(1, 200_000_000))}")
    (folder / "species_chrom.csv").write_text("\n".join(lines) + "\n")
    _pickle(folder / "species_offsets.pkl", {"mouse": 4, "human": 4 + len(species["mouse"])})
    proteins = folder / "protein_embeddings"
    proteins.mkdir(exist_ok=True)
    for kind, own in (("Mus_musculus.GRCm39", species["mouse"]), ("Homo_sapiens.GRCh38", symbols)):
        # Only the order of the genes is read.
        vector = torch.zeros(1)
        torch.save(dict.fromkeys(own, vector), proteins / f"{kind}.gene_symbol_to_embedding_ESM2.pt")
    rows = 4 + len(species["mouse"]) + len(symbols) + len(labels)
    w = _Weights(seed)
    place = torch.arange(1536)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    w.state["pos_encoder.pe"] = torch.stack([place.sin(), place.cos()], dim=2).reshape(1536, 1, width)
    for part in ("encoder", "gene_embedding_layer"):
        w.linear(f"{part}.0", width, token_width)
        w.norm(f"{part}.2", width)
    w.encoder(layers, width, hidden, flash=False)
    for block, (out, into) in enumerate(((middle, width), (width, middle), (width, width))):
        w.linear(f"decoder.{block}.0", out, into)
        w.norm(f"decoder.{block}.1", out)
    w.linear("decoder.3", width, width)
    w.linear("binary_decoder.3", 1, width)
    w.table("pe_embedding.weight", rows, token_width)
    _untrained(folder)
    torch.save(w.state, folder / ("4layer_model.torch" if model == "uce-4l" else "33l_8ep_1024t_1280.torch"))
    return folder


def make_tiny_cellplm(
    folder: Path, genes: Sequence[str], *, width: int = 16, layers: int = 2, dim: int = 12, seed: int = 0
) -> Path:
    """Write an untrained CellPLM: `20230926_85M.config.json` and `20230926_85M.best.ckpt`.

    Parameters
    ----------
    genes
        Genes of the vocabulary; Ensembl ids in the released models.
    width, layers, dim
        Sizes; width is a multiple of 8, which is the number of attention heads.

    Returns
    -------
    Path
        `folder`, to be given as `weights`.
    """
    clusters, listed = 6, list(dict.fromkeys(genes))
    config = {
        "enc_mod": "flowformer",
        "enc_hid": width,
        "enc_layers": layers,
        "latent_mod": "gmvae",
        "post_latent_dim": dim,
        "dec_mod": "nbmlp",
        "norm": "groupnorm",
        "num_clusters": clusters,
        "cat_pe": False,
        "gene_list": listed,
    }
    prefix = "20230926_85M"
    _json(folder / f"{prefix}.config.json", config)
    w = _Weights(seed)
    w.table("embedder.feat_enc.emb", len(listed), width, scale=0.3)
    w.table("embedder.pe_enc.missing_pe", width)
    w.norm("embedder.norm0", width)
    w.linear("embedder.extra_linear.0", width, width)
    w.norm("embedder.extra_linear.3", width)
    for layer in range(layers):
        base = f"encoder.layers.{layer}"
        for part in ("query", "key", "value", "out"):
            w.linear(f"{base}.self_attn.{part}_projection", width, width)
        w.linear(f"{base}._ff_block.0", 2 * width, width)
        w.linear(f"{base}._ff_block.3", width, 2 * width)
        w.norm(f"{base}.norm1", width)
        w.norm(f"{base}.norm2", width)
    w.norm("pre_latent_norm.norm", width)
    latent = "latent.layers.1.inference"
    w.linear(f"{latent}.inference_qyx.0.logits", clusters, width)
    w.linear(f"{latent}.inference_qzyx.0", 512, width + clusters)
    for part in ("mu", "var"):
        w.linear(f"{latent}.inference_qzyx.2.{part}", dim, 512)
        w.linear(f"{latent}.y_{part}", dim, clusters)
    w.linear("decoder.layers.0.0", 8, dim)
    torch.save({"model_state_dict": w.state, "epoch": 1}, folder / f"{prefix}.best.ckpt")
    _untrained(folder)
    return folder
