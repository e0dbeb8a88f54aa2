"""What the seed report blamed for the NaN, each cause as a change of the fixed recipe; see `stability.py`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from sem_jax.config import Config, ModelConfig
from sem_jax.core.cayley import SolverOptions, cayley_residual, cayley_step, cg_on_cayley
from sem_jax.core.graph import Hamiltonian, matvec
from sem_jax.modules.block import Context
from sem_jax.modules.encoder import Encoder
from sem_jax.modules.mixer import Mixer, MixerState
from sem_jax.modules.model import SEM, stack_layers
from sem_jax.modules.propagator import Propagator, PropagatorStats
from sem_jax.optim.chain import LangevinAdamWState, langevin_adamw
from sem_jax.optim.complex_adam import bias_corrected_second_moment


@dataclass(frozen=True)
class Program:
    """What is compiled: causes that differ only in numbers share it."""

    solver: str = "cg"
    iterations: int = 8
    gradient: str = "implicit"  # of the Cayley step: "implicit" or "one step"
    noise: str = "floored"  # "floored" (sem_jax's) or "unfloored" (the original's)
    bf16: bool = False
    warm_start: bool = False  # the solve begins at the answer to the previous batch
    recovery: bool = False  # a step that is not finite leaves parameters and moments as they were


@dataclass(frozen=True)
class Cause:
    """One row of the study, the fixed recipe unless said otherwise."""

    name: str
    program: Program = Program()
    learning_rate: float = 1.2e-3
    temperature: float = 1e-5


_OLD = Program("cg_on_cayley", 3, "one step", "unfloored")
_NEW = dataclasses.replace(_OLD, iterations=8)
_UNFLOORED = Program(noise="unfloored")


def _warm(program: Program) -> Program:
    return dataclasses.replace(program, warm_start=True)


FIXED = Cause("fixed recipe")
CAUSES = (
    FIXED,
    Cause("lr 6e-4", learning_rate=6e-4),
    Cause("CG on I + ihH, 3 iterations", Program("cg_on_cayley", 3)),
    Cause("CG on I + ihH, 8 iterations", Program("cg_on_cayley", 8)),
    Cause("CG on I + ihH, 20 iterations", Program("cg_on_cayley", 20)),
    Cause("CG on I + ihH, 3 iterations, warm start", _warm(Program("cg_on_cayley", 3))),
    Cause("CG on I + ihH, 8 iterations, warm start", _warm(Program("cg_on_cayley", 8))),
    Cause("CG on I + ihH, 20 iterations, warm start", _warm(Program("cg_on_cayley", 20))),
    Cause("warm start", _warm(Program())),
    Cause("one-step gradient", Program("dense", gradient="one step")),
    Cause("unfloored noise, T = 1e-4", _UNFLOORED, temperature=1e-4),
    Cause("unfloored noise, T = 1e-5", _UNFLOORED),
    Cause("bf16", Program(bf16=True)),
    Cause("old settings", _OLD, temperature=1e-4),
    Cause("old settings, lr 6e-4", _OLD, 6e-4, 1e-4),
    Cause("the report's new settings", _NEW),
    Cause("the report's new settings, lr 6e-4", _NEW, 6e-4),
    Cause("old settings, warm start", _warm(_OLD), temperature=1e-4),
    Cause("old settings, warm start, lr 6e-4", _warm(_OLD), 6e-4, 1e-4),
    Cause("the report's new settings, warm start", _warm(_NEW)),
    Cause("the report's new settings, warm start, lr 6e-4", _warm(_NEW), 6e-4),
    Cause("the report's new settings, warm start, recovery", dataclasses.replace(_warm(_NEW), recovery=True)),
)


# --- the one-step gradient ---


def one_step_gradient(hamiltonian: Hamiltonian, psi: Array, x0: Array, h: float) -> Array:
    """x = x0 + (b − A·x0) with A = I + ihH, b = (I − ihH)ψ, and x0 a constant under differentiation.

    The original's way past its solver. With an exact x0 the value is x0, but the gradient sees A⁻¹ as the identity:
    ψ̄ = (I − ihH)x̄ in place of U·x̄, and H̄ from x̄ in place of (x̄ + U·x̄)/2.
    """
    x0 = jax.lax.stop_gradient(x0)
    return psi - 1j * h * matvec(hamiltonian, psi + x0)


class OneStepPropagator(Propagator):
    """Its statistics are those of the solve, x0."""

    def __call__(
        self, x: Array, state: tuple[()], context: Context, *_: Any
    ) -> tuple[Array, tuple[()], PropagatorStats]:
        """See `Block`."""
        x0, state, stats = super().__call__(x, state, context)
        return one_step_gradient(self.hamiltonian(), self.kerr(x), x0, self.config.cayley_dt / 2), state, stats


# --- the warm start ---


class WarmStats(NamedTuple):
    """Of the answer from the warm start, as in `PropagatorStats`; and that answer, where the next batch begins."""

    residual: Array
    norm_drift: Array
    answer: Array  # [B, S, D]


def warm_solve(hamiltonian: Hamiltonian, psi: Array, previous: Array, h: float, options: SolverOptions) -> Array:
    """The solver's answer x for ψ when its first guess is `previous`."""
    if options.solver == "cg_on_cayley":
        return cg_on_cayley(hamiltonian, psi, h, options.max_iter, previous)
    # A solver that starts at zero gives the correction (I + ihH)⁻¹r = (I + U)r/2 for the residual r of the guess.
    residual = psi - previous - 1j * h * matvec(hamiltonian, psi + previous)
    return previous + (residual + cayley_step(hamiltonian, residual, h, options)[0]) / 2


class WarmPropagator(Propagator):
    """Starts each solve at `previous` [B, S, D], its answer to the previous batch: zeros at first.

    The gradient is that of the solver from a cold start, or the one-step gradient.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int, tokens: tuple[int, int], gradient: str):
        super().__init__(config, rngs, layer)
        self.gradient = gradient
        self.previous = nnx.Variable(jnp.zeros((*tokens, config.hidden_dim), jnp.complex64))

    def __call__(self, x: Array, state: tuple[()], *_: Any) -> tuple[Array, tuple[()], WarmStats]:
        """See `Block`."""
        hamiltonian, options, h = self.hamiltonian(), self.solver_options(), self.config.cayley_dt / 2
        psi = self.kerr(x)
        problem = jax.lax.stop_gradient((hamiltonian, psi))
        x = warm_solve(*problem, self.previous[...], h, options)
        drift = jnp.abs(jnp.linalg.norm(x, axis=-1) / jnp.linalg.norm(problem[1], axis=-1) - 1)
        stats = WarmStats(jnp.max(cayley_residual(*problem, x, h)), jnp.max(drift), x)
        if self.gradient == "one step":
            return one_step_gradient(hamiltonian, psi, x, h), state, stats
        cold = cayley_step(hamiltonian, psi, h, options)[0]
        return cold + jax.lax.stop_gradient(x - cold), state, stats


# --- bf16 ---


def bf16(x: Array) -> Array:
    """Rounded to the precision of bfloat16 in its own dtype, and so is its cotangent."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(bf16(x.real), bf16(x.imag))
    # Not a pair of casts: XLA may drop those.
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _round_part(name: str, value: Array) -> Array:
    del name
    return bf16(value)


class Bf16Encoder(Encoder):
    """Rounds the result of each of its parts."""

    def __call__(self, tokens: Array, state: Array, context: Context, token_freqs: Array | None = None, *_: Any):
        """See `Encoder`."""
        return super().__call__(tokens, state, context, token_freqs, _round_part)


class Bf16Mixer(Mixer):
    """Rounds the result of each of its parts."""

    def __call__(self, x: Array, state: MixerState, context: Context, *_: Any) -> tuple[Array, MixerState, tuple[()]]:
        """See `Block`."""
        return super().__call__(x, state, context, _round_part)


class Bf16Propagator(Propagator):
    """Rounds the wave before and after the solve, which stays in float32, as complex arithmetic does in PyTorch."""

    def __call__(
        self, x: Array, state: tuple[()], context: Context, *_: Any
    ) -> tuple[Array, tuple[()], PropagatorStats]:
        """See `Block`."""
        return super().__call__(x, state, context, _round_part)


# --- model and optimizer ---


def build_model(program: Program, config: Config, rngs: nnx.Rngs) -> SEM:
    """The model of the configuration with the parts that the program replaces.

    Its structure is what counts; parameters of the same names and shapes come from a plain `SEM`, so that every cause
    starts from the same ones.
    """
    model, sizes = SEM(config.model, rngs), config.model
    layers = range(sizes.num_layers)
    if program.bf16:
        model.encoder = Bf16Encoder(sizes, rngs)
        model.mixers = stack_layers([Bf16Mixer(sizes, rngs, layer) for layer in layers])
    if program.warm_start:
        tokens = config.training.micro_batch, config.data.seq_length
        model.propagators = stack_layers(
            [WarmPropagator(sizes, rngs, layer, tokens, program.gradient) for layer in layers]
        )
    elif program.bf16 or program.gradient == "one step":
        kind = Bf16Propagator if program.bf16 else OneStepPropagator
        model.propagators = stack_layers([kind(sizes, rngs, layer) for layer in layers])
    return model


def make_optimizer(
    program: Program,
    config: Config,
    schedule: optax.Schedule,
    seed: Array | int,
    temperature: Array | float,
    decays: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The fixed recipe's optimizer with the noise of the program, and without the guard: bad updates are applied.

    Args:
      temperature: of the unfloored noise; the floored one takes the configuration's.
      decays: as `langevin_adamw` takes them.
    """
    if program.noise == "floored":
        return langevin_adamw(config.optimizer, schedule, seed, decays)
    return with_unfloored_noise(config, schedule, seed, temperature, decays)


def unfloored_std(second_moment: Array, learning_rate: Array | float, temperature: Array | float) -> Array:
    """sqrt(2Tη)/(sqrt(denom) + 1e-8) with denom = sqrt(v̂) + 1e-8: the original's noise of one step."""
    denom = jnp.sqrt(second_moment) + 1e-8
    return jnp.sqrt(2 * temperature * learning_rate) / (jnp.sqrt(denom) + 1e-8)


def with_unfloored_noise(
    config: Config,
    schedule: optax.Schedule,
    seed: Array | int,
    temperature: Array | float,
    decays: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Noiseless `langevin_adamw`, then the original's noise on every real component of every parameter."""
    noiseless = dataclasses.replace(config.optimizer, temperature=0.0)
    adamw = langevin_adamw(noiseless, schedule, 0, decays)

    def update_fn(
        grads: optax.Updates,
        state: LangevinAdamWState,
        params: optax.Params | None = None,
        *,
        step: Array | int,
        **_: Any,
    ) -> tuple[optax.Updates, LangevinAdamWState]:
        updates, state = adamw.update(grads, state, params, step=step)
        moments = bias_corrected_second_moment(state.direction["adam"], config.optimizer.b2)
        leaves, structure = jax.tree.flatten(updates)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), len(leaves))
        noisy = [
            update + (unfloored_std(v, schedule(step), temperature) * unit_normal(key, update))
            for key, update, v in zip(keys, leaves, jax.tree.leaves(moments), strict=True)
        ]
        return jax.tree.unflatten(structure, noisy), state

    return optax.GradientTransformationExtraArgs(adamw.init, update_fn)


def unit_normal(key: Array, like: Array) -> Array:
    """Standard normal in every real component."""
    if not jnp.iscomplexobj(like):
        return jax.random.normal(key, like.shape, like.dtype)
    return jax.lax.complex(*jax.random.normal(key, (2, *like.shape), like.real.dtype))
