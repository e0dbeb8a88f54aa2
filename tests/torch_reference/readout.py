"""The Born readout and the two likelihoods, over the whole vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import abs_sq


class BornReadout(nn.Module):
    """a = |W·ψ|², W = W_r + iW_i [V, D], and a bias β on the logits."""

    def __init__(self, dim: int, vocab_size: int):
        super().__init__()
        self.proj_real = nn.Linear(dim, vocab_size, bias=False)
        self.proj_imag = nn.Linear(dim, vocab_size, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(vocab_size))

    def amplitude_sq(self, psi: Tensor) -> Tensor:
        """[..., D] to a [..., V]."""
        return abs_sq(psi @ torch.complex(self.proj_real.weight, self.proj_imag.weight).T)

    def logits(self, psi: Tensor) -> Tensor:
        """log(a + 1e-6·mean_V(a) + 1e-30) + β, [..., V]."""
        a = self.amplitude_sq(psi)
        return torch.log(a + 1e-6 * a.mean(-1, keepdim=True) + 1e-30) + self.output_bias

    def reference_loss(self, psi: Tensor, targets: Tensor, unitary_lambda: float) -> Tensor:
        """−log(a_y + 1e-12) + λ·log²(Σ_V a + 1e-12) of each token, [...]."""
        a = self.amplitude_sq(psi)
        target = a.gather(-1, targets[..., None])[..., 0]
        return unitary_lambda * torch.log(a.sum(-1) + 1e-12).square() - torch.log(target + 1e-12)

    def born_log_probs(self, psi: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        """log P [..., V] and log Z [...], P = (e^β·a/Z + η/V)/(1 + η), Z = Σ_V e^β·a, η the floor."""
        weights = torch.exp(self.output_bias) * self.amplitude_sq(psi)
        z = weights.sum(-1, keepdim=True)
        return torch.log((weights / z + floor / weights.shape[-1]) / (1 + floor)), torch.log(z[..., 0])

    def born_loss(self, psi: Tensor, targets: Tensor, unitary_lambda: float, floor: float) -> Tensor:
        """−log P(y) + λ·log²Z of each token, [...]."""
        log_probs, log_z = self.born_log_probs(psi, floor)
        return unitary_lambda * log_z.square() - log_probs.gather(-1, targets[..., None])[..., 0]
