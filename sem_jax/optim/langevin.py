"""Langevin noise: the thermal half of the optimizer."""

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sem_jax.optim.complex_adam import bias_corrected_second_moment
from sem_jax.optim.parts import by_parts

_ROW = 1024  # real entries; a leaf of no more is small


def langevin_noise(
    temperature: float, noise_floor: float, noise_cap: float, seed: int
) -> optax.GradientTransformationExtraArgs:
    """Adds √(2 T η) G^½ ξ to a preconditioned step −η G g, which then samples exp(−loss / T).

    Stochastic gradient Langevin dynamics (Welling & Teh, 2011, eq. 4) with Adam's preconditioner (Li et al., 2016,
    arXiv:1512.07666, algorithm 1), G = 1 / max(√v̂, noise_floor). ξ is standard normal in every real component: the
    real and the imaginary part of a complex entry each have variance 1. It differs from the paper in four ways:

    1. √v̂ is bounded from below by a maximum, not by a sum, so that noise and step share one G above the floor;
    2. the standard deviation of one step is at most `noise_cap` · η, for G is large where gradients are small;
    3. an entry with v̂ = 0 has never seen a gradient, and stays where it is;
    4. the drift Γ = ∂G/∂θ is left out. That is exact for a constant G. Where v̂ follows the position itself, because
       the gradient is noiseless and relaxes no faster than v̂ forgets, variances exceed T/k: by up to 30 % in a
       quadratic well of stiffness k at b2 = 0.999.

    A gradient with noise of its own, of variance σ² in each real component, makes the temperature T + η G σ² / 2
    (Mandt, Hoffman & Blei, 2017, arXiv:1704.04289, for T = 0); docs/optimizer.md derives it.

    The noise is a function of (seed, path of the leaf, step) alone, so a resumed run repeats it.

    Args:
      temperature: T, in units of the loss. 0 returns the identity.
      noise_floor: least √v̂ in G, in units of the gradient.
      noise_cap: largest standard deviation of a step, in units of the learning rate.
      seed: of the run.

    Returns:
      A stateless transformation, whose update takes three more arguments: `second_moment`, the tree of real v̂ shaped
      like the updates; `learning_rate`, the scalar η of this step, or a tree of them where each leaf has its own, such
      as `group_rates` returns; `step`, an int32 scalar. A leaf whose η is Python's 0 gets no noise and costs none.

    Raises:
      ValueError: the temperature is negative, or floor or cap is not positive.
    """
    if temperature < 0 or noise_floor <= 0 or noise_cap <= 0:
        raise ValueError(
            f"temperature = {temperature} must not be negative, "
            f"noise_floor = {noise_floor} and noise_cap = {noise_cap} must be positive"
        )
    if temperature == 0:
        return optax.with_extra_args_support(optax.identity())

    def update_fn(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        second_moment: optax.Updates,
        learning_rate: Any,
        step: jax.typing.ArrayLike,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params, extra_args

        def add_noise(update: jax.Array, xi: jax.Array | None, v: jax.Array, rate: jax.typing.ArrayLike) -> jax.Array:
            if xi is None:
                return update
            std = jnp.sqrt(2 * temperature * rate / jnp.maximum(jnp.sqrt(v), noise_floor))
            std = jnp.where(v > 0, jnp.minimum(std, noise_cap * rate), 0)
            return by_parts(lambda u, x: u + (std * x).astype(u.dtype), update, xi)

        def warm(update: jax.Array, rate: jax.typing.ArrayLike) -> jax.Array | None:
            return None if isinstance(rate, float | int) and rate == 0 else update

        rates = jax.tree.broadcast(learning_rate, updates)
        xi = _unit_normals(seed, jax.tree.map(warm, updates, rates), step)
        return jax.tree.map(add_noise, updates, xi, second_moment, rates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


def with_langevin_noise(
    optimizer: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    temperature: float,
    noise_floor: float = 1e-4,
    noise_cap: float = 1.0,
    seed: int = 0,
    b2: float = 0.999,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer of Adam's family, `optax.adam` and `optax.adamw` among them, with `langevin_noise` behind it.

    No stage of `optax.chain` sees the state of another; this one reads v̂ and the step from that of the optimizer.

    Args:
      optimizer: its state holds one `optax.ScaleByAdamState`.
      learning_rate: the one that the optimizer was given, a number or a function of Adam's count.
      temperature: T, in units of the loss. 0 adds nothing.
      noise_floor: see `langevin_noise`.
      noise_cap: see `langevin_noise`.
      seed: of the run.
      b2: the decay of the second moment that the optimizer was given.

    Returns:
      A transformation with the state of the optimizer.

    Raises:
      ValueError: as `langevin_noise` does, or in init: the state holds no `optax.ScaleByAdamState`, or several.
    """
    noise = langevin_noise(temperature, noise_floor, noise_cap, seed)
    optimizer = optax.with_extra_args_support(optimizer)

    def init_fn(params: optax.Params) -> optax.OptState:
        state = optimizer.init(params)
        _adam_state(state)
        return state

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = optimizer.update(updates, state, params, **extra_args)
        adam = _adam_state(state)
        step = adam.count - 1
        updates, _ = noise.update(
            updates,
            optax.EmptyState(),
            params,
            second_moment=bias_corrected_second_moment(adam._replace(nu=jax.tree.map(jnp.real, adam.nu)), b2),
            learning_rate=learning_rate(step) if callable(learning_rate) else learning_rate,
            step=step,
        )
        return updates, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _adam_state(state: optax.OptState) -> optax.ScaleByAdamState:
    found = [node for _, node in optax.tree.get_all_with_path(state, "ScaleByAdamState")]
    if len(found) != 1:
        raise ValueError(
            f"Langevin noise needs the second moment of Adam: the optimizer's state must hold one "
            f"optax.ScaleByAdamState, and holds {len(found)}; give an optimizer such as optax.adamw"
        )
    return found[0]


def _unit_normals(seed: int, tree: Any, step: jax.typing.ArrayLike) -> Any:
    """ξ for every leaf, from the seed, its path and the step.

    Each program that draws normal numbers takes half a second to compile. So all keys are made by one, and all small
    leaves drawn by one: their numbers are the first of rows of equal length, and number i of a row depends on its key
    and on i alone.
    """
    leaves, structure = jax.tree.flatten(tree)
    if not leaves:
        return tree
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]
    # Python's own hash of a string changes from one process to the next.
    hashes, of_run = np.array([zlib.crc32(path.encode()) for path in paths], np.uint32), jax.random.key(seed)
    keys = jax.vmap(lambda each: jax.random.fold_in(jax.random.fold_in(of_run, each), step))(hashes)
    # In half precision jax.random.normal knows a hundred numbers, whose mean is not 0.
    dtypes = [jnp.promote_types(leaf.real.dtype, jnp.float32) for leaf in leaves]
    shapes = [(2, *leaf.shape) if jnp.iscomplexobj(leaf) else leaf.shape for leaf in leaves]
    sizes = [math.prod(shape) for shape in shapes]
    drawn = {i: jax.random.normal(keys[i], shape, dtypes[i]) for i, shape in enumerate(shapes) if sizes[i] > _ROW}
    for dtype in dict.fromkeys(dtypes):
        small = [i for i, size in enumerate(sizes) if size <= _ROW and dtypes[i] == dtype]
        if small:
            rows = jax.vmap(lambda key, dtype=dtype: jax.random.normal(key, (_ROW,), dtype))(keys[np.array(small)])
            drawn |= {i: row[: sizes[i]].reshape(shapes[i]) for i, row in zip(small, rows, strict=True)}
    # A complex jax.random.normal has variance 1/2 in each part.
    xi = [jax.lax.complex(*drawn[i]) if jnp.iscomplexobj(leaf) else drawn[i] for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, xi)
