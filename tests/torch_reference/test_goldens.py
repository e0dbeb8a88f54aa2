"""The PyTorch reference against numbers recorded from the original, and its independence from sem_jax.

The recording is float32, the reference runs in float64, so the recording's rounding separates them; differences are
relative to the largest entry of an array. With u = 6e-8: the plan exponentiates k = −C/ε, |k| ≤ 610, whose rounding is
610·u = 4e-5 of single entries and, averaged over columns and diluted by the bias, 3e-6 of ψ (VALUE). Logits are
logarithms of amplitudes, the small ones of which are relatively less exact (LOGITS). A gradient doubles the length of
the chain (GRADIENT). Behind the plan it passes exp(k) and the gaps T − τ, a few per cent of T (CODEBOOK); the cost's
other parameters get Σ_m g_m·(p − c_m), in which p cancels, and so carry rounding on the codebook's scale (CANCELLED).
"""

from __future__ import annotations

import ast
import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from . import SEM, ComplexAdamW, Settings, warmup_stable_decay
from .layers import abs_sq
from .mixer import SelectiveSSM

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
VALUE, LOGITS, GRADIENT, CODEBOOK, CANCELLED = 5e-6, 2e-5, 3e-5, 5e-4, 2e-4
MODELS = ["model_tiny", "model_wide"]


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def group(recorded: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    """The entries called prefix/… as tensors, floating point numbers in double precision."""
    wide = {"f": np.float64, "c": np.complex128}
    return {
        key.removeprefix(prefix + "/"): torch.from_numpy(np.array(x.astype(wide.get(x.dtype.kind, x.dtype))))
        for key, x in recorded.items()
        if key.startswith(prefix + "/")
    }


def error(actual: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor | None = None) -> float:
    return float((actual - expected).abs().max() / (expected if scale is None else scale).abs().max())


def any_layer(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name, count=1)


def recorded_model(name: str) -> tuple[SEM, dict[str, np.ndarray]]:
    recorded = load(name)
    c = json.loads(str(recorded["config"]))
    settings = Settings(
        vocab_size=c["vocab_size"],
        hidden_dim=c["hidden_dim"],
        num_layers=c["num_layers"],
        max_seq_length=c["max_seq_length"],
        transport="sequence_sinkhorn",
        embedding_skip=False,
        sdr_candidates=c["sdr_candidates"],
        sdr_sparsity=c["sdr_sparsity"],
        sinkhorn_epsilon=c["sinkhorn_epsilon"],
        sinkhorn_max_iter=c["sinkhorn_max_iter"],
        sinkhorn_tol=c["sinkhorn_tol"],
        block_size=c["block_size"],
        conv_width=c["d_conv"],
        num_groups=c["mimo_groups"],
        state_dim=c["state_dim"],
        clamp_interval=256,
        kerr_saturation=0.0,
        cayley_dt=c["cayley_dt"],
        likelihood="reference",
        unitary_lambda=c["unitary_lambda"],
    )
    return SEM.from_state_dict(settings, group(recorded, "param")), recorded


def inputs(recorded: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor | None]:
    given = group(recorded, "in")
    return given["token_ids"], given.get("token_freqs")


def whole_loss(model: SEM, recorded: dict[str, np.ndarray]) -> torch.Tensor:
    tokens, token_freqs = inputs(recorded)
    return model.token_loss(model(tokens, token_freqs=token_freqs)[:, :-1], tokens[:, 1:]).mean()


@pytest.mark.parametrize("name", MODELS)
def test_every_intermediate_value_is_the_recorded_one(name):
    model, recorded = recorded_model(name)
    tokens, token_freqs = inputs(recorded)
    with torch.no_grad():
        first: Any = model.mamba_layers[0]
        x = model.encoder(tokens, torch.arange(tokens.shape[1]).expand(tokens.shape), token_freqs)
        values = {"encoder": x, "mamba0.norm": first.norm(x)}
        values["mamba0.spinor_gate"] = first.spinor_gate(values["mamba0.norm"])
        for i, mixer in enumerate(model.mamba_layers):
            values[f"mamba{i}"] = x = mixer(x)
        layers: Any = model.propagator.layers
        for i, layer in enumerate(layers):
            values[f"hamiltonian{i}.dense"] = layer.hamiltonian()
            values[f"propagator{i}"] = x = layer(x)
        values["final_norm"] = x = model.final_norm(x)
        values["amp_sq"] = model.sampler.amplitude_sq(x)
        logits = model.sampler.logits(x)
    expected = group(recorded, "out")
    errors = {key: error(value, expected[key]) for key, value in values.items()}
    assert {key: e for key, e in errors.items() if not e < VALUE} == {}
    assert error(logits, expected["logits"]) < LOGITS


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_every_gradient_are_the_recorded_ones(name):
    model, recorded = recorded_model(name)
    loss = whole_loss(model, recorded)
    loss.backward()
    assert error(loss.detach(), group(recorded, "out")["loss"]) < 1e-6
    expected = group(recorded, "grad")
    actual = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert actual.keys() == expected.keys()
    codebook = expected["encoder.cost.codebook"]
    cancelled = {"encoder.embedding.weight", "encoder.cost.input_proj.weight", "encoder.cost.input_proj.bias"}
    behind_the_plan = {"encoder.cost.codebook", "encoder.sdr_to_hidden.weight"}
    for key, g in expected.items():
        if key in cancelled:
            assert error(actual[key], g, scale=codebook) < CANCELLED, key
        else:
            # A scalar's gradient is one sum, which may cancel; the same parameter's in all layers gives the scale.
            layers = [x.abs().max() for other, x in expected.items() if any_layer(other) == any_layer(key)]
            tolerance = CODEBOOK if key in behind_the_plan else GRADIENT
            assert error(actual[key], g, scale=torch.stack(layers)) < tolerance, key


@pytest.mark.parametrize("name", MODELS)
def test_five_optimizer_steps_give_the_recorded_parameters_and_losses(name):
    model, recorded = recorded_model(name)
    tokens, token_freqs = inputs(recorded)
    grads, expected, outputs = (group(recorded, prefix) for prefix in ("grad", "adam5", "out"))
    optimizer = ComplexAdamW(
        dict(model.named_parameters()),
        lambda step: 1.2e-3,
        weight_decay=0.1,
        decay_all=True,
        clip_norm=0.0,
        couple_readout=False,
    )
    for step in range(5):
        for key, p in model.named_parameters():
            p.grad = (1 + step / 2) * (-1 if step == 3 else 1) * grads[key] if key in grads else None
        optimizer.step()
    # A few float32 roundings, u = 6e-8, of parameters and of updates that add up to at most 6e-3.
    for key, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[key], rtol=5e-7, atol=5e-8)
    with torch.no_grad():
        assert error(whole_loss(model, recorded), outputs["adam5_loss"]) < 1e-6
        student = model.sampler.logits(model(tokens, token_freqs=token_freqs))
        with_successor = (outputs["logits"][:, :-1], student[:, :-1])
        log_p, log_q = (torch.log_softmax(logits / 2, dim=-1) for logits in with_successor)
        divergence = 4 * (log_p.exp() * (log_p - log_q)).sum(dim=(1, 2)).mean()
    # Quadratic in logits, which are as exact as LOGITS.
    assert error(divergence, outputs["distill_soft_loss"]) < 2 * LOGITS


def test_the_clamped_state_space_is_the_recorded_one():
    recorded = load("ssm_clamp")
    x = group(recorded, "in")["x"].requires_grad_()
    batch, length, groups, width = x.shape
    states = recorded["param/log_A_mag"].shape[1]
    ssm = SelectiveSSM(groups * width, groups, states, input_scale="dt", clamp_interval=256)
    ssm.load_state_dict(group(recorded, "param"))
    y = ssm(x.reshape(batch, length, -1)).reshape(x.shape)
    abs_sq(y).sum().backward()
    expected = group(recorded, "grad")
    # Sums of 520 terms in float32, errors of random sign: sqrt(520)·u = 1.4e-6, times two for the gradient's pass.
    assert error(y.detach(), group(recorded, "out")["y"]) < 5e-6
    for key, p in [*ssm.named_parameters(), ("x", x)]:
        assert p.grad is not None
        assert error(p.grad, expected[key]) < 1e-5, key


def test_the_schedule_is_the_recorded_one():
    recorded = load("wsd")
    c = json.loads(str(recorded["config"]))
    schedule = warmup_stable_decay(c["lr"], c["warmup"], c["decay"], c["begin_decay_at"], c["min_ratio"])
    np.testing.assert_allclose([schedule(step) for step in range(60)], recorded["lr"], rtol=1e-12)


def test_the_reference_shares_no_code_with_sem_jax():
    for path in Path(__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.split(".")[0] in ("sem_jax", "jax", "flax")], path
