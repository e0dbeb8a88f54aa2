"""Complex AdamW with Langevin noise, and the warm-up, stable, decay schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

# Two-dimensional, but a decay and a phase for each state rather than a map of vectors.
NO_MATRICES = ("log_A_mag", "A_phase")


def warmup_stable_decay(
    learning_rate: float, warmup_steps: int, decay_steps: int, decay_start: int, lr_min_ratio: float
) -> Callable[[int], float]:
    """Linear from 0, constant, and from `decay_start` on a cosine to learning_rate·lr_min_ratio."""

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return learning_rate * step / warmup_steps
        if step < decay_start or not decay_steps:
            return learning_rate
        progress = min((step - decay_start) / decay_steps, 1.0)
        return learning_rate * (lr_min_ratio + (1 - lr_min_ratio) * (1 + math.cos(math.pi * progress)) / 2)

    return schedule


class ComplexAdamW:
    """AdamW in which the two parts of a complex parameter share their second moment v = EMA(|g|²).

    p ← p(1 − η·wd), then p ← p − η·m̂/(√v̂ + eps), then p ← p + min(sqrt(2Tη/max(√v̂, floor)), cap·η)·ξ, ξ standard
    normal in every real component; where v̂ = 0 there is no noise. Gradients are first clipped by their global norm.
    Parameters without a gradient stay as they are.

    Args:
      parameters: by name; the parts of a complex parameter are called …_real… and …_imag….
      schedule: from the step, counted from 0, to the learning rate η.
      decay_all: decay every parameter as the reference does, not matrices only.
      clip_norm: largest global norm of the gradient; 0 does not clip.
      couple_readout: False keeps one second moment each for the readout's parts, as the reference does.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        schedule: Callable[[int], float],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        decay_all: bool = False,
        clip_norm: float = 1.0,
        temperature: float = 0.0,
        noise_floor: float = 1e-4,
        noise_cap: float = 1.0,
        couple_readout: bool = True,
    ):
        self.parameters, self.schedule, self.betas, self.eps = dict(parameters), schedule, betas, eps
        self.weight_decay, self.decay_all, self.clip_norm = weight_decay, decay_all, clip_norm
        self.temperature, self.noise_floor, self.noise_cap = temperature, noise_floor, noise_cap
        self.couple_readout = couple_readout
        self.step_count = 0
        self.first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    def partner(self, name: str) -> str | None:
        """The other part of a complex parameter, None for a real one."""
        if name.startswith("sampler.") and not self.couple_readout:
            return None
        other = name.replace("_real", "_imag") if "_real" in name else name.replace("_imag", "_real")
        return other if other != name else None

    def decays(self, name: str) -> bool:
        """Whether weight decay touches a parameter."""
        is_matrix = self.parameters[name].ndim >= 2 and not name.endswith(NO_MATRICES)
        return self.decay_all or is_matrix

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for p in self.parameters.values():
            p.grad = None

    @torch.no_grad()
    def step(self, noise: Mapping[str, Tensor] | None = None) -> None:
        """One step; `noise` is ξ by parameter name, drawn afresh if None."""
        beta1, beta2 = self.betas
        rate = self.schedule(self.step_count)
        self.step_count += 1
        grads = self._clipped_gradients()
        for name, g in grads.items():
            p, m, v = self.parameters[name], self.first[name], self.second[name]
            other = self.partner(name)
            g_sq = g.square() if other is None else g.square() + grads[other].square()
            m.mul_(beta1).add_((1 - beta1) * g)
            v.mul_(beta2).add_((1 - beta2) * g_sq)
            root = torch.sqrt(v / (1 - beta2**self.step_count))
            if self.decays(name):
                p.mul_(1 - rate * self.weight_decay)
            p.sub_(rate / (1 - beta1**self.step_count) * m / (root + self.eps))
            if self.temperature > 0:
                xi = torch.randn_like(p) if noise is None else noise[name]
                p.add_(self._noise_std(root, rate) * xi)

    def _noise_std(self, root: Tensor, rate: float) -> Tensor:
        std = torch.sqrt(2 * self.temperature * rate / root.clamp(min=self.noise_floor))
        return torch.where(root > 0, std.clamp(max=self.noise_cap * rate), 0)

    def _clipped_gradients(self) -> dict[str, Tensor]:
        grads = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads.values()]))
        scale = self.clip_norm / norm if 0 < self.clip_norm < norm else 1.0
        return {name: scale * g for name, g in grads.items()}
