"""Thin flax.nnx shells: they own the parameters and call `sem_jax.core`."""
