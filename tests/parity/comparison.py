"""Values and gradients of a component on both sides, and what rounding may do to them.

A gradient is that of Σ Re(c̄·y) with the component's output y and random c, in every parameter and in the wave.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from sem_jax.interop import export_state_dict

from .components import Component
from .pair import (
    Arrays,
    Inputs,
    cast,
    has,
    held_by_float32,
    jax_parts,
    model_config,
    random_inputs,
    random_state,
    torch_model,
)

VALUE, SECOND_VALUE, WAVE = "value", "second value", "gradient of wave"

FLOAT64, FLOAT32 = np.dtype(np.float64), np.dtype(np.float32)

DRAWS = 8  # the largest of so many deviations is not small by chance, not even that of a scalar


def projection(y, c):
    """Σ Re(c̄·y)."""
    if np.iscomplexobj(c):
        return (y.real * c.real).sum() + (y.imag * c.imag).sum()
    return (y * c).sum()


class Case:
    """A component with one draw of parameters, inputs and c."""

    def __init__(self, component: Component, seed: int):
        self.component, self.seed, self.config = component, seed, model_config(component.changes)
        state = random_state(self.config.num_layers, seed)
        self.state = {name: x for name, x in state.items() if has(self.config, name)}
        inputs = random_inputs(self.config, seed)
        self.inputs = inputs._replace(wave=held_by_float32(component.wave_scale * inputs.wave))
        values, *_ = self._torch_values(self.state, self.inputs.wave, FLOAT64)
        y = values[VALUE].detach().numpy()
        rng = np.random.default_rng(seed + 1)
        c = rng.normal(size=y.shape) + (1j * rng.normal(size=y.shape) if np.iscomplexobj(y) else 0)
        self.cotangent = held_by_float32(np.asarray(c))

    def _torch_values(self, state: Arrays, wave: np.ndarray, dtype: np.dtype):
        model = torch_model(self.config, state, dtype)
        inputs = Inputs(*map(torch.from_numpy, cast(self.inputs._replace(wave=wave), dtype)))
        psi = inputs.wave.requires_grad_()
        return named_values(self.component.theirs(model, psi, inputs)), model, psi

    def torch_results(self, state: Arrays, wave: np.ndarray, dtype: np.dtype) -> Arrays:
        """Value and gradients by the reference; a parameter that is not used has gradient 0."""
        values, model, psi = self._torch_values(state, wave, dtype)
        projection(values[VALUE], torch.from_numpy(cast(self.cotangent, dtype))).backward()
        used = {**dict(model.named_parameters()), WAVE: psi}
        grads = {name: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for name, p in used.items()}
        return {name: y.detach().numpy() for name, y in values.items()} | grads

    def truth(self) -> Arrays:
        """The reference in double precision."""
        return self.torch_results(self.state, self.inputs.wave, FLOAT64)

    def jax_results(self, dtype: np.dtype) -> Arrays:
        """Value and gradients by sem_jax, complex ones as ∂/∂Re + i ∂/∂Im."""
        parts = jax_parts(self.config, self.seed, dtype)
        inputs, cotangent = jax.tree.map(jnp.asarray, cast((self.inputs, self.cotangent), dtype))
        values, (grads, wave) = _compiled(self.component.ours)(parts, inputs, cotangent)
        grads, wave = jax.tree.map(jnp.conj, (grads, wave))
        return {name: np.asarray(y) for name, y in (values | {WAVE: wave}).items()} | export_state_dict(grads)


def shaken(arrays: Arrays, unit: float, rng: np.random.Generator) -> Arrays:
    """Every real number off by a random relative amount of up to `unit`."""

    def shake(x: np.ndarray) -> np.ndarray:
        if np.iscomplexobj(x):
            return shake(x.real) + 1j * shake(x.imag)
        return x * (1 + rng.uniform(-unit, unit, x.shape)) if x.dtype.kind == "f" else x

    return {name: np.asarray(shake(x)) for name, x in arrays.items()}


@functools.cache
def _compiled(ours: Callable) -> Callable:
    def run(parts, inputs, cotangent):
        def project(params, wave):
            values = named_values(ours(parts.replace(params=params).merge(), wave, inputs))
            return projection(values[VALUE], cotangent), values

        grads, values = jax.grad(project, argnums=(0, 1), has_aux=True)(parts.params, inputs.wave)
        return values, grads

    return jax.jit(run)


def named_values(output: Any) -> dict[str, Any]:
    """What a component returns, by name."""
    return dict(zip((VALUE, SECOND_VALUE), output, strict=True)) if isinstance(output, tuple) else {VALUE: output}


def deviation(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference of two arrays."""
    return float(np.max(np.abs(actual - expected)))


def relative_errors(actual: Arrays, expected: Arrays) -> dict[str, float]:
    """Deviations relative to the largest entry; infinite where something should vanish and does not."""
    assert actual.keys() == expected.keys()
    errors = {}
    for name, x in expected.items():
        assert actual[name].shape == x.shape, name
        size, off = float(np.max(np.abs(x))), deviation(actual[name], x)
        errors[name] = off / size if size else (np.inf if off else 0.0)
    return errors


def rounding_estimate(case: Case, dtype: np.dtype) -> dict[str, float]:
    """Largest deviation of the reference itself in this precision, over draws that differ in their roundings."""
    truth, unit = case.truth(), float(np.finfo(dtype).eps) / 2
    estimate = {name: unit * float(np.max(np.abs(x))) for name, x in truth.items()}
    for draw in range(DRAWS):
        arrays = shaken(case.state | {WAVE: case.inputs.wave}, unit, np.random.default_rng(draw))
        wave = arrays.pop(WAVE)
        rounded = case.torch_results(arrays, wave, dtype)
        estimate = {name: np.maximum(e, deviation(rounded[name], truth[name])) for name, e in estimate.items()}
    return estimate
