"""The mathematics of SEM as pure functions on arrays: no flax, no configuration, no I/O, no global state."""
