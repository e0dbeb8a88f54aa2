import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sem_jax.optim import clip_by_global_norm
from sem_jax.optim.parts import join, split


def tree(seed, *dtypes):
    rng = np.random.default_rng(seed)
    draws = (rng.normal(size=(2, 3, 4)) for _ in dtypes)
    return {str(i): jnp.asarray(re + 1j * im if np.issubdtype(d, np.complexfloating) else re, d)
            for i, (d, (re, im)) in enumerate(zip(dtypes, draws, strict=True))}  # fmt: skip


def test_a_complex_tree_keeps_its_direction_and_gets_the_norm():
    updates = tree(1, np.complex64, np.float32, np.complex64)
    norm = np.sqrt(sum(np.sum(np.abs(np.asarray(u, complex)) ** 2) for u in updates.values()))
    assert norm > 3
    clipped, _ = jax.jit(clip_by_global_norm(3.0).update)(updates, optax.EmptyState())
    # A root, a quotient and a product, and a sum of 60 positive squares in some order: a few roundings.
    expected = jax.tree.map(lambda u: np.asarray(u, complex) * (3.0 / norm), updates)
    chex.assert_trees_all_close(jax.tree.map(lambda u: np.asarray(u, complex), clipped), expected, rtol=10 * 2**-24)
    unclipped, _ = clip_by_global_norm(1.01 * float(norm)).update(updates, optax.EmptyState())
    chex.assert_trees_all_equal(unclipped, updates)


def test_parts_are_put_together_again():
    updates = tree(2, np.complex64, np.float32)
    leaves = jax.tree.leaves(split(updates))
    assert [leaf.dtype for leaf in leaves] == [jnp.float32] * 3
    chex.assert_trees_all_equal(join(split(updates)), updates)
