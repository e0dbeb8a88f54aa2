"""The training run: state, step, loop, checkpoints, health and metrics."""
