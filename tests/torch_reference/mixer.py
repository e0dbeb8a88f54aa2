"""The sequence mixer: spinor gate, causal convolution, amplitude gate, selective state space."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ComplexLinear, ComplexWeight, Norm, abs_sq

CLAMP_BOUND = 100.0


def stacked_parts(x: Tensor) -> Tensor:
    """[Re x; Im x]: [..., I] complex to [..., 2I]."""
    return torch.cat([x.real, x.imag], dim=-1)


class SpinorGate(nn.Module):
    """x + g·(Rx − x), g = σ(1.7015·(W_g·[Re x; Im x] + b_g)), R block-diagonal."""

    def __init__(self, dim: int, block_size: int):
        super().__init__()
        self.spinor = ComplexWeight(dim // block_size, block_size, block_size)
        self.gate_proj = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to the same."""
        gate = torch.sigmoid(1.7015 * self.gate_proj(stacked_parts(x)))
        blocks = x.unflatten(-1, self.spinor.weight.shape[:2])
        rotated = torch.einsum("noi,bsni->bsno", self.spinor.weight, blocks).flatten(-2)
        return x + gate * (rotated - x)


class CausalConv(nn.Module):
    """Depthwise causal convolution, a real 2x2 kernel on (re, im) for each tap and channel.

    weight [2D, 2, K] and bias [2D] with channels re0, im0, re1, …: a convolution in D groups of two.
    """

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.weight = nn.Parameter((2 * width) ** -0.5 * torch.randn(2 * dim, 2, width))
        self.bias = nn.Parameter(torch.zeros(2 * dim))

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """[B, S, D] to the same; position [B, S] within documents, None where every row is one document."""
        width, dim = self.weight.shape[2], x.shape[2]
        parts = torch.view_as_real(x).flatten(2).transpose(1, 2)  # [B, 2D, S]
        padded = F.pad(parts, (width - 1, 0))
        if position is None:
            out = F.conv1d(padded, self.weight, self.bias, groups=dim)
        else:
            steps_back = torch.arange(width - 1, -1, -1, device=x.device)
            inside = position[:, :, None] >= steps_back  # [B, S, K]
            windows = padded.unfold(2, width, 1) * inside[:, None]  # [B, 2D, S, K]
            kernel = self.weight.unflatten(0, (dim, 2))
            out = torch.einsum("doik,bdisk->bdos", kernel, windows.unflatten(1, (dim, 2))).flatten(1, 2)
            out = out + self.bias[:, None]
        return torch.view_as_complex(out.transpose(1, 2).unflatten(-1, (dim, 2)).contiguous())


class SelectiveSSM(nn.Module):
    """h_t = a_t·h_{t−1} + scale_t·(B·x_t), y = C·h, a = exp(−δ·softplus(A))·exp(iωφ), on G contiguous groups.

    (δ, ω) = clip(exp(W_dt·[Re x; Im x] + b_dt), 1e-4, 2). `input_scale` is "dt" for scale = δ (reference) or
    "unit_variance" for sqrt(1 − |a|²). After every `clamp_interval`-th position of a document (0: never) the state's
    entries are clamped, h·min(r, 100)/r with r = sqrt(|h|² + 1e-8).
    """

    def __init__(self, dim: int, num_groups: int, state_dim: int, input_scale: str, clamp_interval: int):
        super().__init__()
        self.input_scale, self.clamp_interval = input_scale, clamp_interval
        width = dim // num_groups
        self.log_A_mag = nn.Parameter(0.75 + 0.1 * torch.randn(num_groups, state_dim))
        self.A_phase = nn.Parameter(0.1 * torch.randn(num_groups, state_dim))
        self.B_proj = ComplexLinear(width, state_dim)
        self.C_proj = ComplexLinear(state_dim, width)
        self.dt_proj = nn.Linear(2 * width, 2)

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """[B, S, D] to the same; position [B, S] within documents, None where every row is one document."""
        batch, length, _ = x.shape
        if position is None:
            position = torch.arange(length, device=x.device).expand(batch, length)
        groups = x.unflatten(-1, (self.log_A_mag.shape[0], -1))  # [B, S, G, d]
        # Clamped before exp, where nothing overflows: the gradient of an infinity would be NaN.
        exponent = self.dt_proj(stacked_parts(groups)).clamp(math.log(1e-4), math.log(2.0))
        dt, omega = torch.exp(exponent).split(1, dim=-1)
        magnitude = torch.exp(-dt * F.softplus(self.log_A_mag))  # [B, S, G, N]
        a = torch.polar(magnitude, omega * self.A_phase)
        a = a * (position > 0)[:, :, None, None]  # a document starts from an empty state
        scale = dt if self.input_scale == "dt" else torch.sqrt(1 - magnitude.square())
        u = scale * self.B_proj(groups)
        h = torch.zeros_like(u[:, 0])
        states = []
        for t in range(length):
            h = a[:, t] * h + u[:, t]
            if self.clamp_interval:
                h = self._clamp(h, (position[:, t] + 1) % self.clamp_interval == 0)
            states.append(h)
        return self.C_proj(torch.stack(states, dim=1)).flatten(-2)

    @staticmethod
    def _clamp(h: Tensor, due: Tensor) -> Tensor:
        if not due.any():
            return h
        r = torch.sqrt(abs_sq(h) + 1e-8)
        return torch.where(due[:, None, None], h * (r.clamp(max=CLAMP_BOUND) / r), h)


class Mixer(nn.Module):
    """One mixing layer: x + ρ·s·(W_out·SSM(gate(conv(spinor(norm x)))))."""

    def __init__(self, dim: int, block_size: int, conv_width: int, ssm: SelectiveSSM):
        super().__init__()
        self.norm = Norm(dim)
        self.spinor_gate = SpinorGate(dim, block_size)
        self.conv = CausalConv(dim, conv_width)
        self.activation_threshold = nn.Parameter(torch.zeros(()))
        self.ssm = ssm
        self.out_proj = ComplexLinear(dim, dim)
        self.ssm_output_scale = nn.Parameter(torch.full((dim,), 2.5))
        self.residual_scale = nn.Parameter(torch.tensor(0.5))

    def amplitude_gate(self, x: Tensor) -> Tensor:
        """x·(1 − exp(−|x|²·e^θ))."""
        return x * -torch.expm1(-abs_sq(x) * torch.exp(self.activation_threshold))

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """[B, S, D] to the same; position [B, S] within documents, None where every row is one document."""
        z = self.conv(self.spinor_gate(self.norm(x)), position)
        z = self.out_proj(self.ssm(self.amplitude_gate(z), position))
        return x + self.residual_scale * (z * self.ssm_output_scale)
