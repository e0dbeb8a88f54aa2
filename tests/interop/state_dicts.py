"""State dicts of the original, made by hand from the names and shapes of docs/mathematics.md, section 6."""

from __future__ import annotations

import numpy as np

V, D, L, M, P, G, N, BLOCK, K, S = 11, 8, 2, 6, 4, 2, 3, 4, 3, 10
# Edges of the three graphs in each layer; a complete graph of 8 nodes has 28.
EDGES = ((5, 9, 28), (7, 9, 20))
OVERRIDES = {"sdr_sparsity": 4}
FREQUENCY = (10000.0 ** (-np.arange(D) / D)).astype(np.float32)


def make_state_dict(seed: int = 0, edges: tuple[tuple[int, int, int], ...] = EDGES) -> dict[str, np.ndarray]:
    """Random weights and random graphs, in the order of the original."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return np.asarray(rng.normal(size=shape), np.float32)

    state = {
        "encoder.positional_phase": np.arange(S, dtype=np.float32)[:, None] * FREQUENCY,
        "encoder.embedding.weight": draw(V, D),
        "encoder.cost.codebook": draw(M, P),
        "encoder.cost.input_proj.weight": draw(P, D),
        "encoder.cost.input_proj.bias": draw(P),
        "encoder.sdr_to_hidden.weight": draw(D, M),
        "encoder.sdr_to_hidden.bias": draw(D),
    }
    for layer in range(L):
        mixer = {
            "activation_threshold": draw(),
            "ssm_output_scale": draw(D),
            "residual_scale": draw(),
            "norm.gamma": draw(D),
            "spinor_gate.spinor.weight_real": draw(D // BLOCK, BLOCK, BLOCK),
            "spinor_gate.spinor.weight_imag": draw(D // BLOCK, BLOCK, BLOCK),
            "spinor_gate.gate_proj.weight": draw(D, 2 * D),
            "spinor_gate.gate_proj.bias": draw(D),
            "conv.weight": draw(2 * D, 2, K),
            "conv.bias": draw(2 * D),
            "ssm.log_A_mag": draw(G, N),
            "ssm.A_phase": draw(G, N),
            "ssm.B_proj.weight_real": draw(N, D // G),
            "ssm.B_proj.weight_imag": draw(N, D // G),
            "ssm.C_proj.weight_real": draw(D // G, N),
            "ssm.C_proj.weight_imag": draw(D // G, N),
            "ssm.dt_proj.weight": draw(2, 2 * D // G),
            "ssm.dt_proj.bias": draw(2),
            "out_proj.weight_real": draw(D, D),
            "out_proj.weight_imag": draw(D, D),
        }
        state |= {f"mamba_layers.{layer}.{name}": array for name, array in mixer.items()}
    pairs = np.array([(i, j) for i in range(D) for j in range(i + 1, D)])
    for layer in range(L):
        prefix = f"propagator.layers.{layer}"
        state |= {f"{prefix}.alpha": draw(D), f"{prefix}.hamiltonian.scale_weights": draw(3)}
        for scale, count in enumerate(edges[layer]):
            chosen = pairs[np.sort(rng.choice(len(pairs), count, replace=False))].T.copy()
            state |= {
                f"{prefix}.hamiltonian.scales.{scale}.edge_weights": draw(count),
                f"{prefix}.hamiltonian.scales.{scale}.edge_indices": chosen,
                f"{prefix}.hamiltonian.scales.{scale}._sparse_idx_sym": np.concatenate([chosen, chosen[::-1]], axis=1),
            }
    return state | {
        "final_norm.gamma": draw(D),
        "sampler.output_bias": draw(V),
        "sampler.proj_real.weight": draw(V, D),
        "sampler.proj_imag.weight": draw(V, D),
    }


def differing(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> list[str]:
    """Names under which the two do not hold the same bits, shapes and types."""
    return [
        name
        for name in first.keys() | second.keys()
        if name not in first
        or name not in second
        or (first[name].dtype, first[name].shape) != (second[name].dtype, second[name].shape)
        or first[name].tobytes() != second[name].tobytes()
    ]
