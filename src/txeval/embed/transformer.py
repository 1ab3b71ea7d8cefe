"""The encoder that scGPT and UCE share: post-norm layers with ReLU, named as in `torch.nn.TransformerEncoder`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PostNormEncoder", "parameter_shapes"]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, dropout: float, first_only: bool) -> Tensor:
        batch, length, width = x.shape
        if first_only:
            query = F.linear(x[:, :1], self.in_proj_weight[:width], self.in_proj_bias[:width])
            key, value = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        else:
            query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        query, key, value = (
            part.reshape(batch, -1, self.heads, width // self.heads).transpose(1, 2) for part in (query, key, value)
        )
        if mask is not None:
            mask = mask[:, None, None, :].expand(batch, 1, query.shape[2], length)
            mask = mask if mask.dtype == torch.bool else mask.to(query.dtype)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        projected: Tensor = self.out_proj(out.transpose(1, 2).reshape(batch, -1, width))
        return projected


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = _Attention(width, heads)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = dropout

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def forward(self, x: Tensor, mask: Tensor | None, first_only: bool) -> Tensor:
        attended = self.self_attn(x, mask, self.dropout if self.training else 0.0, first_only)
        x = self.norm1((x[:, :1] if first_only else x) + self._drop(attended))
        out: Tensor = self.norm2(x + self._drop(self.linear2(self._drop(F.relu(self.linear1(x))))))
        return out


class PostNormEncoder(nn.Module):
    """Stack of post-norm transformer layers on scaled-dot-product attention.

    Parameters
    ----------
    layers, width, heads, hidden
        Sizes; parameters carry the names and layouts of `torch.nn.TransformerEncoder`.
    dropout
        Used only in training.
    """

    def __init__(self, layers: int, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(width, heads, hidden, dropout) for _ in range(layers)])

    def forward(self, x: Tensor, mask: Tensor | None = None, *, first_only: bool = False) -> Tensor:
        """Run the layers.

        Parameters
        ----------
        x
            (batch, length, width).
        mask
            (batch, length): True where a key may be attended to, or numbers added to the attention logits;
            None: every key may.
        first_only
            Compute only position 0 of the last layer: (batch, 1, width). The result there is the same.
        """
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            x = layer(x, mask, first_only and number == last)
        return x


def parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of a module."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
