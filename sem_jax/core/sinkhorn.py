"""Entropic optimal transport from tokens (rows) to candidates (columns) in the log domain.

Sinkhorn's algorithm (Cuturi, 2013; log-domain form: Peyré and Cuturi, 2019, section 4.4) scales K = exp(−C/ε) so that
rows and columns have prescribed sums. Prescribing the columns of a whole sequence lets the future speak to the past;
the causal forms balance the columns with what a position may know: nothing (row softmax) or its own prefix.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp


def transport_cost(points: Array, codebook: Array) -> Array:
    """max(‖p‖² + ‖c_m‖² − 2p·c_m, 0): [..., P] and [M, P] to [..., M]."""
    cross = jnp.einsum("...p,mp->...m", points, codebook)
    size = jnp.sum(jnp.square(points), axis=-1, keepdims=True) + jnp.sum(jnp.square(codebook), axis=-1)
    return jnp.maximum(size - 2 * cross, 0)


def row_softmax(log_kernel: Array) -> Array:
    """The plan whose rows alone are prescribed: each sums to 1. [..., M] to [..., M]."""
    # Behind the barrier there is one value of each logit. Fused into the softmax, the cost would be computed twice and
    # rounded differently; at costs of 1e9 the row's maximum is then exceeded by hundreds, and exp overflows.
    return jax.nn.softmax(jax.lax.optimization_barrier(log_kernel), axis=-1)


def causal_sinkhorn(log_kernel: Array, log_mass: Array, position: Array, prior: float) -> tuple[Array, Array]:
    """Sinkhorn on the prefix of every position at once, in O(1) a token.

    Row t is balanced against the columns of rows 0..t of its document. In sweep i each row adds exp(k_t + u_t) to its
    column sums, takes v from them, and renews u_t; earlier rows keep the potential that they had at their own time, so
    nothing is ever recomputed, no future row is seen, and the column sums are all the state there is. `prior` virtual
    rows, spread evenly, keep a short prefix from being forced onto every column: with none, the plan of a first row
    is uniform whatever its token.

    Args:
      log_kernel: [B, S, M], k = −C/ε.
      log_mass: [sweeps, B, M], log column sums of the rows before the first, `initial_log_mass` at a start.
      position: [B, S] int, position of each row in its document; at 0 the column sums start afresh.
      prior: number of virtual rows.

    Returns:
      (plan, log_mass): [B, S, M], rows sum to 1; and the column sums after the last row.
    """
    num_columns = log_kernel.shape[-1]
    fresh = initial_log_mass(1, num_columns, prior, log_kernel.dtype)[0]

    def row(mass, inputs):
        k, position_t = inputs
        mass = jnp.where((position_t == 0)[:, None], fresh, mass)
        log_target = jnp.log((prior + position_t[:, None] + 1) / num_columns).astype(k.dtype)

        def sweep(u, mass_i):
            mass_i = jnp.logaddexp(mass_i, k + u)
            v = log_target - mass_i
            return -logsumexp(k + v, axis=-1, keepdims=True), (mass_i, v)

        u = -logsumexp(k, axis=-1, keepdims=True)
        u, (mass, v) = jax.lax.scan(sweep, u, mass)
        return mass, jnp.exp(k + u + v[-1])

    log_mass, plan = jax.lax.scan(row, log_mass, (jnp.moveaxis(log_kernel, 1, 0), position.T))
    return jnp.moveaxis(plan, 0, 1), log_mass


def initial_log_mass(sweeps: int, num_columns: int, prior: float, dtype=jnp.float32) -> Array:
    """Column sums before the first row, [sweeps, 1, M]."""
    return jnp.full((sweeps, 1, num_columns), jnp.log(prior / num_columns), dtype)


def sequence_sinkhorn(log_kernel: Array, max_iter: int, tol: float) -> Array:
    """The PyTorch original's plan over the whole sequence: not causal, for parity (docs/mathematics.md, section 2).

    Marginals 1/S and 1/M; sweeps stop when max |Δu| < tol over the whole batch. The gradient is that of the sweeps.

    Args:
      log_kernel: [B, S, M], k = −C/ε.

    Returns:
      [B, S, M], rows sum to about 1/S.
    """
    _, length, num_columns = log_kernel.shape

    def sweep(carry, _):
        u, v, done = carry
        u_next = -jnp.log(length) - logsumexp(log_kernel + v, axis=-1, keepdims=True)
        v_next = -jnp.log(num_columns) - logsumexp(log_kernel + u_next, axis=-2, keepdims=True)
        converged = jnp.max(jnp.abs(u_next - u)) < tol
        return (jnp.where(done, u, u_next), jnp.where(done, v, v_next), done | converged), None

    start = (jnp.zeros_like(log_kernel[:, :, :1]), jnp.zeros_like(log_kernel[:, :1]), jnp.array(False))
    (u, v, _), _ = jax.lax.scan(sweep, start, length=max_iter)
    return jnp.exp(u + log_kernel + v)


def sparsify(plan: Array, num_kept: int) -> Array:
    """Soft threshold at the num_kept-th largest |T| of each row: sign(T)·relu(|T| − τ). [..., M] to [..., M]."""
    magnitude = jnp.abs(plan)
    return jnp.sign(plan) * jax.nn.relu(magnitude - kth_largest(magnitude, num_kept))


def kth_largest(x: Array, k: int) -> Array:
    """The k-th largest entry of each row of a non-negative x [..., M]: [..., 1], exact and differentiable.

    Non-negative floats are ordered like the integers with the same bits, so the value is found bit by bit, from the
    highest, by counting. On CPU this is eight times faster than `jax.lax.top_k`, whose sort dominated the encoder.
    """
    integer = jnp.dtype(f"int{8 * x.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x), integer)
    highest = 8 * x.dtype.itemsize - 2

    def set_bit(i, found):
        candidate = found | (jnp.ones((), integer) << (highest - i).astype(integer))
        return jnp.where(jnp.sum(bits >= candidate, axis=-1, keepdims=True) >= k, candidate, found)

    found = jax.lax.fori_loop(0, highest + 1, set_bit, jnp.zeros_like(bits[..., :1]))
    is_kth = bits == found
    ties = jnp.sum(is_kth, axis=-1, keepdims=True)
    mean = jnp.sum(jnp.where(is_kth, x / ties, 0), axis=-1, keepdims=True)
    # The value is exact; tied entries share the gradient.
    return jax.lax.bitcast_convert_type(found, x.dtype) + (mean - jax.lax.stop_gradient(mean))
