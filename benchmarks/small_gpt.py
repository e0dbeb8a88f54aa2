"""A small GPT in plain PyTorch, as nanoGPT (Karpathy, 2022) writes it: what a transformer of equal size costs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 4


class Block(nn.Module):
    """Causal self-attention and an MLP of four times the width, each behind a norm and beside a residual."""

    def __init__(self, dim: int):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to the same."""
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.attention_norm(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.mlp_norm(x))


class SmallGPT(nn.Module):
    """Learned positions, pre-norm blocks, and one matrix for embedding and logits."""

    def __init__(self, vocab_size: int, dim: int, num_layers: int, max_length: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.position = nn.Embedding(max_length, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(num_layers))
        self.final_norm = nn.LayerNorm(dim, bias=False)
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, S] to logits [B, S, V]."""
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.final_norm(x), self.embedding.weight)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean nats a target."""
        return F.cross_entropy(self(inputs).flatten(0, 1), targets.flatten())


def num_parameters(vocab_size: int, dim: int, num_layers: int, max_length: int) -> int:
    """Of a `SmallGPT` of these sizes."""
    return (vocab_size + max_length) * dim + num_layers * (12 * dim**2 + 2 * dim) + dim


def matching_dim(count: int, vocab_size: int, num_layers: int, max_length: int) -> int:
    """The width, an even number of channels a head, that comes closest to so many parameters."""
    widths = range(2 * HEADS, 4096, 2 * HEADS)
    return min(widths, key=lambda dim: abs(num_parameters(vocab_size, dim, num_layers, max_length) - count))
