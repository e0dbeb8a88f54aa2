"""Optimization of complex and real weights: one optax transformation a file, and `make_optimizer` that composes them.

`global_norm` is the 2-norm of a tree, with |z|² for a complex entry: of the gradients, what clipping and guard measure.
"""

from optax.tree import norm as global_norm

from sem_jax.optim.chain import LangevinAdamWState, guarded, langevin_adamw, make_optimizer, make_schedule
from sem_jax.optim.clipping import clip_by_global_norm
from sem_jax.optim.complex_adam import bias_corrected_second_moment, scale_by_complex_adam
from sem_jax.optim.conjugate import conjugate_gradients
from sem_jax.optim.finite_guard import FiniteGuardState, Reason, finite_guard, is_sound, leaf_names
from sem_jax.optim.groups import group_rates, parameter_factors, scale_by_group
from sem_jax.optim.langevin import langevin_noise, with_langevin_noise
from sem_jax.optim.muon import matrices_of_layers, scale_by_muon
from sem_jax.optim.schedule import warmup_cosine, warmup_stable_decay
from sem_jax.optim.spikes import SpikeState
from sem_jax.optim.weight_decay import add_weight_decay

__all__ = [
    "FiniteGuardState",
    "LangevinAdamWState",
    "Reason",
    "SpikeState",
    "add_weight_decay",
    "bias_corrected_second_moment",
    "clip_by_global_norm",
    "conjugate_gradients",
    "finite_guard",
    "global_norm",
    "group_rates",
    "guarded",
    "is_sound",
    "langevin_adamw",
    "langevin_noise",
    "leaf_names",
    "make_optimizer",
    "make_schedule",
    "matrices_of_layers",
    "parameter_factors",
    "scale_by_complex_adam",
    "scale_by_group",
    "scale_by_muon",
    "warmup_cosine",
    "warmup_stable_decay",
    "with_langevin_noise",
]
