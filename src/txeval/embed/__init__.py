"""Embeddings: computed by embedders, or read from where they lie."""

from txeval.embed.base import Embedder, EmbedderInfo, Embedding, EmbeddingContext, EmbeddingSpec
from txeval.embed.registry import check_options, embedding_fingerprint, list_embedders, make_embedding, resolve
from txeval.embed.spec import parse_spec, rebase

__all__ = [
    "Embedder",
    "EmbedderInfo",
    "Embedding",
    "EmbeddingContext",
    "EmbeddingSpec",
    "check_options",
    "embedding_fingerprint",
    "list_embedders",
    "make_embedding",
    "parse_spec",
    "rebase",
    "resolve",
]
