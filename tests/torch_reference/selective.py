"""The selective mixer and the coherent readout: a loop over time, logits over the whole vocabulary, autograd.

The original has neither, so their parameters carry no names of its own: modules take over the tensors of a mapping, by
the names of sem_jax's leaves ("ssm/qk_proj").
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import abs_sq
from .mixer import stacked_parts

Parameters = Mapping[str, Tensor]


def affine(p: Parameters, name: str, x: Tensor) -> Tensor:
    """W·[Re x; Im x] + b."""
    return F.linear(stacked_parts(x), p[f"{name}/weight"], p[f"{name}/bias"])


def rms_norm(x: Tensor) -> Tensor:
    """x over its root mean square, of the entries that are not 0."""
    power = abs_sq(x)
    active = (power > 1e-12).sum(-1, keepdim=True).clamp(min=1)
    return x / (torch.sqrt(power.sum(-1, keepdim=True) / active) + 1e-8)


def selective_state_space(p: Parameters, z: Tensor, position: Tensor, bounded: bool) -> Tensor:
    """y [B, S, D] of z [B, S, D]: one outer product a token, one product with a query a token."""
    heads, states = p["ssm/phase"].shape
    batch, length, dim = z.shape
    qk = (z @ p["ssm/qk_proj"].T).unflatten(-1, (2, states))
    qk = qk / torch.sqrt(abs_sq(qk).mean(-1, keepdim=True) + 1e-6) + p["ssm/qk_bias"]
    q, k = qk.unbind(-2)
    u, w = affine(p, "ssm/rates", z).chunk(2, dim=-1)
    dt, omega = F.softplus(u + math.log(math.e - 1)), 1 + (math.tau * torch.tanh(w / math.tau) if bounded else w)
    x = z.unflatten(-1, (heads, dim // heads))
    decay = F.softplus(p["ssm/decay"])
    h = torch.zeros(batch, heads, states, dim // heads, dtype=z.dtype)
    outputs = []
    for t in range(length):
        magnitude = torch.exp(-dt[:, t] * decay)[..., None].expand(batch, heads, states)
        alpha = torch.polar(magnitude, omega[:, t, :, None] * p["ssm/phase"])
        alpha = alpha * (position[:, t] > 0)[:, None, None]
        entering = k[:, t, None, :, None] * (dt[:, t, :, None] * x[:, t])[:, :, None, :]
        h = alpha[..., None] * h + entering
        outputs.append(torch.einsum("bn,bhnp->bhp", q[:, t].conj(), h).flatten(1) / states)
    return torch.stack(outputs, dim=1) + p["ssm/skip"] * z


def selective_mixer(p: Parameters, x: Tensor, position: Tensor, bounded: bool = False) -> Tensor:
    """x + ρ·s·(W_out·(SSM(conv(z))·silu(W_o [Re z; Im z] + b))), z = W_in·norm x or the spinor gate's output.

    If bounded, ω = 1 + 2π·tanh(w/2π), and SSM(conv(z)) is divided by its root mean square.
    """
    z = rms_norm(x) * p["norm_gamma"]
    if "in_proj/weight" in p:
        z = z @ p["in_proj/weight"].T
    else:
        blocks = p["spinor_gate/rotation"]
        gate = torch.sigmoid(1.7015 * affine(p, "spinor_gate/gate_proj", z))
        rotated = torch.einsum("noi,bsni->bsno", blocks, z.unflatten(-1, blocks.shape[:2])).flatten(-2)
        z = z + gate * (rotated - z)
    entering = z

    kernel, bias = p["conv/kernel"], p["conv/bias"]  # [K, D, out, in], [D, out]
    parts, width = torch.view_as_real(z), len(kernel)
    total = bias.expand(*z.shape, 2)
    for tap in range(width):
        back = width - 1 - tap
        moved = F.pad(parts, (0, 0, 0, 0, back, 0))[:, : z.shape[1]]
        moved = moved * (position >= back)[:, :, None, None]
        total = total + torch.einsum("doi,bsdi->bsdo", kernel[tap], moved)
    z = torch.view_as_complex(total.contiguous())

    y = selective_state_space(p, z, position, bounded)
    if bounded:
        y = rms_norm(y)
    z = y * F.silu(affine(p, "output_gate", entering))
    return x + p["residual_scale"] * ((z @ p["out_proj"].T) * p["output_scale"])


def coherent_loss(weight: Tensor, bias: Tensor, psi: Tensor, targets: Tensor, unitary_lambda: float) -> Tensor:
    """−log P(y) + λ·log²Z of each token, P = softmax(Re(W·ψ) + β)."""
    logits = (psi @ weight.T).real + bias
    log_z = torch.logsumexp(logits, dim=-1)
    return log_z - logits.gather(-1, targets[..., None])[..., 0] + unitary_lambda * log_z.square()
