"""Token ids to ψ: optimal transport to a sparse distributed representation, and a position phase."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .layers import expi


def sequence_sinkhorn(log_kernel: Tensor, max_iter: int, tol: float) -> Tensor:
    """Plan [B, S, M] of k [B, S, M] with marginals 1/S and 1/M over the whole sequence: the reference, not causal."""
    _, length, num_columns = log_kernel.shape
    u, v = torch.zeros_like(log_kernel[:, :, :1]), torch.zeros_like(log_kernel[:, :1])
    for _ in range(max_iter):
        previous = u
        u = -math.log(length) - torch.logsumexp(log_kernel + v, dim=2, keepdim=True)
        v = -math.log(num_columns) - torch.logsumexp(log_kernel + u, dim=1, keepdim=True)
        if (u - previous).abs().max() < tol:
            break
    return torch.exp(u + log_kernel + v)


def causal_sinkhorn(log_kernel: Tensor, position: Tensor, sweeps: int, prior: float) -> Tensor:
    """Plan [B, S, M] whose row t balances the columns of rows 0..t of its own document; rows sum to 1.

    In sweep i, with rows r ≤ t of the document of t and `prior` virtual rows spread evenly over the columns,

        mass_t = prior/M + Σ_r exp(k_r + u_r),   v_t = log((prior + position_t + 1)/M) − log mass_t,
        u_t ← −logsumexp_m(k_t + v_t),

    where u_r is what row r had after sweep i−1, and −logsumexp_m(k_r) before the first.
    """
    num_columns, length = log_kernel.shape[2], log_kernel.shape[1]
    index = torch.arange(length, device=log_kernel.device)
    first = index - position  # [B, S], where the document of each row begins
    in_prefix = (index <= index[:, None]) & (index >= first[:, :, None])  # [B, t, r]
    total = (prior + position[:, :, None] + 1.0).to(log_kernel.dtype)
    u = -torch.logsumexp(log_kernel, dim=2, keepdim=True)
    v = torch.zeros_like(log_kernel)
    for _ in range(sweeps):
        mass = prior / num_columns + in_prefix.to(log_kernel.dtype) @ torch.exp(log_kernel + u)
        v = torch.log(total / num_columns) - torch.log(mass)
        u = -torch.logsumexp(log_kernel + v, dim=2, keepdim=True)
    return torch.exp(log_kernel + u + v)


def sparsify(plan: Tensor, num_kept: int) -> Tensor:
    """Soft threshold at the num_kept-th largest |T| of each row."""
    magnitude = plan.abs()
    threshold = magnitude.topk(num_kept, dim=-1).values[..., -1:]
    return plan.sign() * torch.relu(magnitude - threshold)


class TransportCost(nn.Module):
    """C = max(‖p‖² + ‖c_m‖² − 2p·c_m, 0) of p = W_in·x + b_in and the codebook c [M, P]."""

    def __init__(self, dim: int, cost_dim: int, num_candidates: int):
        super().__init__()
        self.input_proj = nn.Linear(dim, cost_dim)
        self.codebook = nn.Parameter(0.02 * torch.randn(num_candidates, cost_dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to [B, S, M]."""
        p = self.input_proj(x)
        size = p.square().sum(-1, keepdim=True) + self.codebook.square().sum(-1)
        return (size - 2 * p @ self.codebook.T).clamp(min=0)


class Encoder(nn.Module):
    """z[s, j] = hidden[s, j]·exp(i·s·10000^(−j/D)) with hidden = W_s·sparsify(plan) + b_s (+ embedding).

    `transport` names the plan: "sequence_sinkhorn" (reference), "causal_sinkhorn", "row_softmax", or "none" for the
    embedding alone.
    """

    positional_phase: Tensor  # [longest S, D]

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        max_seq_length: int,
        transport: str,
        embedding_skip: bool,
        num_candidates: int,
        sparsity: int,
        cost_dim: int,
        epsilon: float,
        max_iter: int,
        tol: float,
        prior: float,
    ):
        super().__init__()
        self.transport, self.embedding_skip, self.sparsity = transport, embedding_skip, sparsity
        self.epsilon, self.max_iter, self.tol, self.prior = epsilon, max_iter, tol, prior
        self.embedding = nn.Embedding(vocab_size, dim)
        frequency = 10000.0 ** (-torch.arange(dim) / dim).double()
        phase = torch.arange(max_seq_length).double()[:, None] * frequency
        self.register_buffer("positional_phase", phase.to(torch.get_default_dtype()))
        if transport == "none":
            return
        self.cost = TransportCost(dim, cost_dim, num_candidates)
        self.sdr_to_hidden = nn.Linear(num_candidates, dim)

    def plan(self, tokens: Tensor, position: Tensor, token_freqs: Tensor | None = None) -> Tensor:
        """Transport plan [B, S, M] of tokens [B, S] at positions [B, S] of their documents."""
        cost = self.cost(self.embedding(tokens))
        if token_freqs is not None:
            cost = cost / torch.log(token_freqs[tokens] + math.e)[..., None]
        log_kernel = -cost / self.epsilon
        if self.transport == "sequence_sinkhorn":
            return sequence_sinkhorn(log_kernel, self.max_iter, self.tol)
        if self.transport == "causal_sinkhorn":
            return causal_sinkhorn(log_kernel, position, self.max_iter, self.prior)
        return torch.softmax(log_kernel, dim=-1)

    def forward(self, tokens: Tensor, position: Tensor, token_freqs: Tensor | None = None) -> Tensor:
        """Tokens [B, S] at positions [B, S] to ψ [B, S, D]; token_freqs [V] divide the cost by log(f + e)."""
        embedded = self.embedding(tokens)
        hidden = embedded if self.embedding_skip else torch.zeros_like(embedded)
        if self.transport != "none":
            hidden = hidden + self.sdr_to_hidden(sparsify(self.plan(tokens, position, token_freqs), self.sparsity))
        return hidden * expi(self.positional_phase[position])
