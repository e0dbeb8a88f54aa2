"""The selective mixer and the coherent readout against PyTorch: values and every gradient, in double precision."""

from __future__ import annotations

import types
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from small import complex_normal
from torch_reference.selective import coherent_loss, selective_mixer

from sem_jax.config import MixerConfig, ModelConfig
from sem_jax.modules.block import Context
from sem_jax.modules.model import split_model
from sem_jax.modules.readout import Readout
from sem_jax.modules.selective_mixer import SelectiveMixer, SpinorSelectiveMixer
from sem_jax.training.loss import born_loss

BATCH, LENGTH, DIM, VOCAB = 2, 9, 12, 7
CONFIG = ModelConfig(
    vocab_size=VOCAB,
    hidden_dim=DIM,
    num_layers=1,
    likelihood="coherent",
    mixer=MixerConfig(kind="selective", num_heads=3, state_dim=5, block_size=4, conv_width=3),
)
pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")
TOLERANCE = 1e-12  # relative to the largest entry: a few thousand roundings of float64


def names_and_leaves(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def randomised(tree, rng):
    """No parameter at the special value that it starts from."""
    return jax.tree.map(
        lambda x: 0.5 * (complex_normal(rng, *x.shape) if jnp.iscomplexobj(x) else rng.normal(size=x.shape)), tree
    )


def torch_gradients(parameters, value):
    value.backward()
    return {name: p.grad.numpy() for name, p in parameters.items()}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, atol=TOLERANCE * np.abs(x).max(), rtol=0, err_msg=name)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("scan", ["chunked", "sequential"])
@pytest.mark.parametrize("kind", [SelectiveMixer, SpinorSelectiveMixer])
@pytest.mark.parametrize("bounded", [False, True])
def test_the_selective_mixer(x64, documents, scan, kind, bounded):
    rng = np.random.default_rng(0)
    rotation = "bounded" if bounded else "affine"
    config = replace(CONFIG, mixer=replace(CONFIG.mixer, scan=scan, rotation=rotation, output_norm=bounded))
    parts = split_model(kind(config, nnx.Rngs(0), 0))
    params = randomised(parts.params, rng)
    x, cotangent = complex_normal(rng, BATCH, LENGTH, DIM), complex_normal(rng, BATCH, LENGTH, DIM)
    position = np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH)).copy()
    if documents:
        position[0, 4:] -= 4
        position[1, [1, 2]] = 0, 1
        position[1, 3:] = np.arange(LENGTH - 3)

    def ours(params, x):
        mixer = parts.replace(params=params).merge()
        y, _, _ = mixer(x, mixer.initial_state(BATCH), Context(jnp.asarray(position)))
        return jnp.sum((y * cotangent.conj()).real), y

    gradient = jax.jit(jax.grad(ours, (0, 1), has_aux=True))
    (of_params, of_x), y = gradient(jax.tree.map(jnp.asarray, params), jnp.asarray(x))
    found = {name: np.conj(g) for name, g in names_and_leaves(of_params).items()} | {"x": np.conj(of_x), "y": y}

    tensors = {name: torch.from_numpy(np.array(p)).requires_grad_() for name, p in names_and_leaves(params).items()}
    tensors["x"] = torch.from_numpy(x).requires_grad_()
    result = selective_mixer(tensors, tensors["x"], torch.from_numpy(position), bounded)
    projected = (result * torch.from_numpy(cotangent).conj()).real.sum()
    assert_close(found, torch_gradients(tensors, projected) | {"y": result.detach().numpy()})


def test_the_coherent_readout(x64):
    rng = np.random.default_rng(0)
    weight, bias = complex_normal(rng, VOCAB, DIM), rng.normal(size=VOCAB)
    psi, targets = complex_normal(rng, BATCH, LENGTH, DIM), rng.integers(0, VOCAB, (BATCH, LENGTH))
    scale = rng.normal(size=(BATCH, LENGTH))
    parts = split_model(Readout(CONFIG, nnx.Rngs(0)))

    def ours(params, psi):
        model = types.SimpleNamespace(readout=parts.replace(params=params).merge())
        loss, nll = born_loss(model, psi, jnp.asarray(targets), 0.3)
        return jnp.sum(scale * loss), (loss, nll)

    params = {"weight": jnp.asarray(weight), "bias": jnp.asarray(bias)}
    (of_params, of_psi), (loss, nll) = jax.grad(ours, (0, 1), has_aux=True)(params, jnp.asarray(psi))
    found = {name: np.conj(g) for name, g in of_params.items()} | {"psi": np.conj(of_psi), "loss": loss}

    tensors = {"weight": weight, "bias": bias, "psi": psi}
    tensors = {name: torch.from_numpy(x).requires_grad_() for name, x in tensors.items()}
    expected = coherent_loss(*tensors.values(), torch.from_numpy(targets), 0.3)
    gradients = torch_gradients(tensors, (torch.from_numpy(scale) * expected).sum())
    assert_close(found, gradients | {"loss": expected.detach().numpy()})
    plain = coherent_loss(*tensors.values(), torch.from_numpy(targets), 0.0)
    np.testing.assert_allclose(nll, plain.detach(), rtol=TOLERANCE)
