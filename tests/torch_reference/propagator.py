"""The propagator: a Kerr phase and a unitary Cayley step over the channels of each position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import abs_sq, expi


class GraphLaplacian(nn.Module):
    """Deg − A of one graph with weights softplus(e) on a fixed list of undirected edges."""

    edge_indices: Tensor  # [2, E]
    _sparse_idx_sym: Tensor  # [2, 2E], each edge in both directions

    def __init__(self, dim: int, edges: Tensor):
        super().__init__()
        self.dim = dim
        self.edge_weights = nn.Parameter(torch.zeros(edges.shape[1]))
        self.register_buffer("edge_indices", edges)
        self.register_buffer("_sparse_idx_sym", torch.cat([edges, edges.flip(0)], dim=1))

    def forward(self) -> Tensor:
        """[D, D]."""
        weights = F.softplus(self.edge_weights).repeat(2)
        row, column = self._sparse_idx_sym.unbind(0)
        adjacency = torch.zeros(self.dim, self.dim, dtype=weights.dtype, device=weights.device)
        adjacency = adjacency.index_put((row, column), weights, accumulate=True)
        return torch.diag(adjacency.sum(1)) - adjacency


class Hamiltonian(nn.Module):
    """H = Σ_k softmax(w)_k·(Deg_k − A_k): real, symmetric, positive semi-definite, rows sum to zero."""

    def __init__(self, dim: int, edges: Sequence[Tensor]):
        super().__init__()
        self.scale_weights = nn.Parameter(torch.full((len(edges),), 1 / len(edges)))
        self.scales = nn.ModuleList(GraphLaplacian(dim, graph) for graph in edges)

    def forward(self) -> Tensor:
        """[D, D]."""
        share = torch.softmax(self.scale_weights, dim=0)
        return torch.stack([weight * scale() for weight, scale in zip(share, self.scales, strict=True)]).sum(0)


def cayley(hamiltonian: Tensor, psi: Tensor, dt: float) -> Tensor:
    """The solution of (I + ihH)x = (I − ihH)ψ with h = dt/2, for H [D, D] and ψ [..., D]."""
    identity = torch.eye(hamiltonian.shape[0], dtype=hamiltonian.dtype, device=hamiltonian.device)
    forward = torch.complex(identity, dt / 2 * hamiltonian)
    columns = psi.reshape(-1, psi.shape[-1]).T
    return torch.linalg.solve(forward, forward.conj() @ columns).T.reshape(psi.shape)


class PropagatorLayer(nn.Module):
    """Kerr phase, then the Cayley step."""

    def __init__(self, dim: int, edges: Sequence[Tensor], dt: float, saturation: float):
        super().__init__()
        self.dt, self.saturation = dt, saturation
        self.alpha = nn.Parameter(torch.full((dim,), 0.1))
        self.hamiltonian = Hamiltonian(dim, edges)

    def kerr(self, psi: Tensor) -> Tensor:
        """ψ·exp(iαI/(1 + σI)), I = |ψ|²/(mean_D |ψ|² + 1e-8)."""
        power = abs_sq(psi)
        intensity = power / (power.mean(-1, keepdim=True) + 1e-8)
        return psi * expi(self.alpha * (intensity / (1 + self.saturation * intensity)))

    def forward(self, psi: Tensor) -> Tensor:
        """[..., D] to the same."""
        return cayley(self.hamiltonian(), self.kerr(psi), self.dt)


class Propagator(nn.Module):
    """L layers in turn."""

    def __init__(self, dim: int, edges: Sequence[Sequence[Tensor]], dt: float, saturation: float):
        super().__init__()
        self.layers = nn.ModuleList(PropagatorLayer(dim, graphs, dt, saturation) for graphs in edges)

    def forward(self, psi: Tensor) -> Tensor:
        """[..., D] to the same."""
        for layer in self.layers:
            psi = layer(psi)
        return psi
