"""Recorded models: their files, their configuration and the way from recorded names to parameter trees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sem_jax.config import EncoderConfig, MixerConfig, ModelConfig, PropagatorConfig
from sem_jax.modules.propagator import NUM_SCALES

GOLDENS = Path(__file__).resolve().parents[3] / "shared" / "goldens"


def load(name: str) -> dict[str, np.ndarray]:
    """Every array of a recorded file, by name; floating point numbers widened to double precision."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        return {key: _widen(file[key]) for key in file.files}


def _widen(x: np.ndarray) -> np.ndarray:
    return x.astype({"f": np.float64, "c": np.complex128}.get(x.dtype.kind, x.dtype))


def group(recorded: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The entries called name/..., without that prefix."""
    return {key.removeprefix(name + "/"): value for key, value in recorded.items() if key.startswith(name + "/")}


def model_config(recorded: dict[str, np.ndarray]) -> ModelConfig:
    """The configuration under which sem_jax computes what was recorded."""
    c = json.loads(str(recorded["config"]))
    return ModelConfig(
        vocab_size=c["vocab_size"],
        hidden_dim=c["hidden_dim"],
        num_layers=c["num_layers"],
        encoder=EncoderConfig(
            transport="sequence_sinkhorn",
            embedding_skip=False,
            sdr_candidates=c["sdr_candidates"],
            sdr_sparsity=c["sdr_sparsity"],
            sinkhorn_epsilon=c["sinkhorn_epsilon"],
            sinkhorn_max_iter=c["sinkhorn_max_iter"],
            sinkhorn_tol=c["sinkhorn_tol"],
        ),
        mixer=MixerConfig(
            block_size=c["block_size"],
            conv_width=c["d_conv"],
            num_groups=c["mimo_groups"],
            state_dim=c["state_dim"],
            input_scale="dt",
            clamp_interval=256,
        ),
        propagator=PropagatorConfig(
            solver="dense",
            cayley_dt=c["cayley_dt"],
            nonlinear_alpha=c["nonlinear_alpha"],
            laplacian_sparsity=c["laplacian_sparsity"],
        ),
        likelihood="reference",
    )


def unitary_lambda(recorded: dict[str, np.ndarray]) -> float:
    return json.loads(str(recorded["config"]))["unitary_lambda"]


def params_tree(state: dict[str, np.ndarray], num_layers: int, extra_edges: int = 0) -> dict:
    """The parameter tree of `split_model` from recorded names; also of gradients, where a missing name means zero.

    Complex leaves hold recorded real part + i·imaginary part. Layers with fewer edges than the largest are padded, and
    all of them by `extra_edges` more.
    """
    mixers = [_mixer(_below(state, f"mamba_layers.{layer}.")) for layer in range(num_layers)]
    propagators = [_propagator(_below(state, f"propagator.layers.{layer}.")) for layer in range(num_layers)]
    num_edges = max(p["edge_weights"].size for p in propagators) + extra_edges
    for p in propagators:
        p["edge_weights"] = np.pad(p["edge_weights"], (0, num_edges - p["edge_weights"].size))
    vocab = state["sampler.proj_real.weight"].shape[0]
    return {
        "encoder": {
            "embedding": state["encoder.embedding.weight"],
            "codebook": state["encoder.cost.codebook"],
            "input_proj": _linear(state, "encoder.cost.input_proj"),
            "sdr_to_hidden": _linear(state, "encoder.sdr_to_hidden"),
        },
        "mixers": _stack(mixers),
        "propagators": _stack(propagators),
        "final_gamma": state["final_norm.gamma"],
        "readout": {
            "weight": state["sampler.proj_real.weight"] + 1j * state["sampler.proj_imag.weight"],
            "bias": state.get("sampler.output_bias", np.zeros(vocab)),
        },
    }


def buffers_tree(state: dict[str, np.ndarray], num_layers: int, extra_edges: int = 0) -> dict:
    """The buffers: the edge lists of all layers, padded with self-loops as the weights in `params_tree` are."""
    edges, scales = [], []
    for layer in range(num_layers):
        lists = [
            state[f"propagator.layers.{layer}.hamiltonian.scales.{k}.edge_indices"].astype(np.int32)
            for k in range(NUM_SCALES)
        ]
        edges.append(np.concatenate(lists, axis=1))
        scales.append(np.repeat(np.arange(NUM_SCALES, dtype=np.int32), [e.shape[1] for e in lists]))
    longest = max(e.shape[1] for e in edges) + extra_edges
    return {
        "propagators": {
            "edges": np.stack([np.pad(e, ((0, 0), (0, longest - e.shape[1]))) for e in edges]),
            "scale_of_edge": np.stack([np.pad(s, (0, longest - s.size)) for s in scales]),
        }
    }


def ssm_tree(state: dict[str, np.ndarray]) -> dict:
    """The parameters of one state space."""
    return {
        "decay": state["log_A_mag"],
        "phase": state["A_phase"],
        "in_proj": _complex(state, "B_proj"),
        "out_proj": _complex(state, "C_proj"),
        "dt_proj": _linear(state, "dt_proj"),
    }


def _mixer(state: dict[str, np.ndarray]) -> dict:
    weight, bias = state["conv.weight"], state["conv.bias"]  # [2D, 2, K] and [2D], channels re0, im0, re1, ...
    double_dim, _, width = weight.shape
    return {
        "norm_gamma": state["norm.gamma"],
        "spinor_gate": {
            "rotation": _complex(state, "spinor_gate.spinor"),
            "gate_proj": _linear(state, "spinor_gate.gate_proj"),
        },
        "conv": {
            "kernel": weight.reshape(double_dim // 2, 2, 2, width).transpose(3, 0, 1, 2),
            "bias": bias.reshape(double_dim // 2, 2),
        },
        "activation_threshold": state["activation_threshold"],
        "ssm": ssm_tree(_below(state, "ssm.")),
        "out_proj": _complex(state, "out_proj"),
        "output_scale": state["ssm_output_scale"],
        "residual_scale": state["residual_scale"],
    }


def _propagator(state: dict[str, np.ndarray]) -> dict:
    weights = [state[f"hamiltonian.scales.{k}.edge_weights"] for k in range(NUM_SCALES)]
    return {
        "alpha": state["alpha"],
        "edge_weights": np.concatenate(weights),
        "scale_weights": state["hamiltonian.scale_weights"],
    }


def _below(state: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _linear(state: dict[str, np.ndarray], name: str) -> dict:
    return {"weight": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}


def _complex(state: dict[str, np.ndarray], name: str) -> np.ndarray:
    return state[f"{name}.weight_real"] + 1j * state[f"{name}.weight_imag"]


def _stack(layers: list[dict]) -> dict:
    first = layers[0]
    return {
        key: _stack([layer[key] for layer in layers])
        if isinstance(first[key], dict)
        else np.stack([layer[key] for layer in layers])
        for key in first
    }
