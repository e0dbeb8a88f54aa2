"""How much a configuration asks for, from its numbers alone: no array is made to find out that it is too large."""

from __future__ import annotations

from sem_jax.config.model import ModelConfig

_FINEST_TO_COARSEST = 4  # how many times more neighbours the coarsest of the three graphs has
_REAL, _COMPLEX = 1, 2


def count_weights(model: ModelConfig) -> int:
    """Real numbers in the trained parameters of a model, within a factor of two."""
    dim, encoder = model.hidden_dim, model.encoder
    vocabulary = (_REAL + _COMPLEX) * model.vocab_size * dim
    transport = encoder.cost_dim * (dim + encoder.sdr_candidates) + encoder.sdr_candidates * dim
    return vocabulary + transport + model.num_layers * (_mixer_weights(model) + 3 * max(count_edges(model)))


def _mixer_weights(model: ModelConfig) -> int:
    dim, mixer = model.hidden_dim, model.mixer
    gates_and_projection = (2 + 2 + _COMPLEX) * dim * dim
    rotation_and_taps = _COMPLEX * dim * mixer.block_size + 4 * dim * mixer.conv_width
    parts = mixer.num_heads if mixer.kind == "selective" else mixer.num_groups
    state_space = _COMPLEX * 2 * mixer.state_dim * dim + 4 * dim * parts + 3 * parts * mixer.state_dim
    return gates_and_projection + rotation_and_taps + state_space


def count_edges(model: ModelConfig) -> tuple[int, ...]:
    """Edges of each of the three graphs of one layer."""
    dim, propagator = model.hidden_dim, model.propagator
    fresh = dim * min(_FINEST_TO_COARSEST * propagator.laplacian_sparsity, dim - 1) // 2
    return tuple(given or fresh for given in propagator.num_edges)


def count_state(model: ModelConfig) -> int:
    """Real numbers that one text carries from token to token."""
    mixer, encoder = model.mixer, model.encoder
    sums = encoder.sinkhorn_max_iter * encoder.sdr_candidates if encoder.transport == "causal_sinkhorn" else 0
    return sums + model.num_layers * _COMPLEX * model.hidden_dim * (mixer.state_dim + mixer.conv_width)
