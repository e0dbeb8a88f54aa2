"""Building blocks that several components share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def abs_sq(z: Tensor) -> Tensor:
    """|z|²."""
    return z.real.square() + z.imag.square()


def expi(phase: Tensor) -> Tensor:
    """exp(i·phase)."""
    return torch.polar(torch.ones_like(phase), phase)


class ComplexWeight(nn.Module):
    """A complex array, kept as its real and imaginary part."""

    def __init__(self, *shape: int):
        super().__init__()
        std = (2 * shape[-1]) ** -0.5
        self.weight_real = nn.Parameter(std * torch.randn(*shape))
        self.weight_imag = nn.Parameter(std * torch.randn(*shape))

    @property
    def weight(self) -> Tensor:
        """The array."""
        return torch.complex(self.weight_real, self.weight_imag)


class ComplexLinear(ComplexWeight):
    """y = W·x, W [O, I]."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(out_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return x @ self.weight.T


class Norm(nn.Module):
    """Phase-preserving RMS norm: z·γ / (sqrt(Σ|z|²/n) + 1e-8), n = max(#{|z|² > 1e-12}, 1)."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, z: Tensor) -> Tensor:
        """[..., D] to the same."""
        power = abs_sq(z)
        count = (power > 1e-12).sum(-1, keepdim=True).clamp(min=1)
        return z * self.gamma / (torch.sqrt(power.sum(-1, keepdim=True) / count) + 1e-8)
