"""How much arithmetic does a training step need, component by component?

Command:  python benchmarks/flops.py [char d128 d256 max_aggression]

A model, not a measurement: it counts the multiply-adds of products (a real one is 2 FLOPs, a complex one 8) that the
equations of SPEC section 2 need, in the form in which sem_jax evaluates them, and nothing twice. Elementwise functions
are not counted; they are bound by memory, and `traffic` says how many bytes a component must read and write at least
if its own intermediates never leave the cache: its inputs and outputs, in the backward pass those of both directions.
What is computed again (`remat`) and what is computed only to be reported stand apart. Tests compare the model with
XLA's own count.
"""

from __future__ import annotations

from typing import NamedTuple

from absl import app
from shapes import SHAPES, configuration, shape_of
from timing import table

from sem_jax.config import Config, ModelConfig
from sem_jax.modules.model import abstract_model, count_parameters

FLOAT, COMPLEX = 4, 8  # bytes
MULTIPLY_ADD, COMPLEX_MULTIPLY_ADD = 2, 8  # FLOPs
REAL_TIMES_COMPLEX = 4
ADAM_PASSES = 7  # reads gradient, parameter and two moments, writes three of them


class Cost(NamedTuple):
    """Of one component in one training step over the whole batch and all layers."""

    forward: float  # FLOPs
    backward: float
    inputs: float = 0.0  # bytes
    outputs: float = 0.0

    @property
    def training(self) -> float:
        """FLOPs of both passes."""
        return self.forward + self.backward

    @property
    def traffic(self) -> float:
        """Least bytes of both passes: inputs and cotangents are read, outputs and cotangents of inputs are written."""
        return 3 * self.inputs + 2 * self.outputs

    def times(self, factor: float) -> Cost:
        """That of so many."""
        return Cost(*(factor * value for value in self))


def product(forward: float, inputs: float = 0.0, outputs: float = 0.0) -> Cost:
    """A product whose two factors both get a gradient: two products of the same size backwards."""
    return Cost(forward, 2 * forward, inputs, outputs)


def encoder(config: ModelConfig, tokens: int) -> Cost:
    """Cost, plan and its way to D channels; the plan itself is elementwise."""
    encoder, dim = config.encoder, config.hidden_dim
    candidates = encoder.sdr_candidates if encoder.transport != "none" else 0
    multiply_adds = candidates and dim * encoder.cost_dim + encoder.cost_dim * candidates + candidates * dim
    return product(MULTIPLY_ADD * tokens * multiply_adds, FLOAT * tokens * dim, COMPLEX * tokens * dim)


def mixer(config: ModelConfig, tokens: int) -> dict[str, Cost]:
    """The parts of one mixer."""
    dim, m = config.hidden_dim, config.mixer
    wave, states = COMPLEX * tokens * dim, COMPLEX * tokens * m.num_groups * m.state_dim
    width = dim // m.num_groups
    gate = MULTIPLY_ADD * 2 * dim * dim + COMPLEX_MULTIPLY_ADD * dim * m.block_size
    step_sizes = MULTIPLY_ADD * 2 * width * 2 * m.num_groups
    projection = COMPLEX_MULTIPLY_ADD * dim * m.state_dim
    return {
        "norm": Cost(0, 0, wave, wave),
        "spinor gate": product(tokens * gate, wave, wave),
        "convolution": product(tokens * MULTIPLY_ADD * 4 * m.conv_width * dim, wave, wave),
        "amplitude gate": Cost(0, 0, wave, wave),
        "SSM input": product(tokens * (step_sizes + projection), wave, 2 * states),
        "SSM scan": product(tokens * COMPLEX_MULTIPLY_ADD * m.num_groups * m.state_dim, 2 * states, states),
        "SSM output": product(tokens * projection, states, wave),
        "out projection": product(tokens * COMPLEX_MULTIPLY_ADD * dim * dim, 2 * wave, wave),
    }


def propagator(config: ModelConfig, tokens: int) -> dict[str, Cost]:
    """The parts of one propagator layer."""
    dim, p = config.hidden_dim, config.propagator
    wave = COMPLEX * tokens * dim
    product_with_h = REAL_TIMES_COMPLEX * tokens * dim * dim
    if p.matvec == "sparse" and p.solver != "dense":
        product_with_h = 8 * tokens * dim * p.laplacian_sparsity * 7 / 2  # as many edges a channel
    # U from H: two products, a factorisation and the solution for D right-hand sides.
    factor = (2 * MULTIPLY_ADD + 1 / 3 + 2) * dim**3 if p.solver == "dense" else 0
    once = {
        "dense": COMPLEX_MULTIPLY_ADD * tokens * dim * dim,
        "cg": (2 * p.cg_max_iter + 1) * product_with_h,
        "chebyshev": p.chebyshev_degree * product_with_h,
        "cg_on_cayley": (p.cg_max_iter + 1) * product_with_h,
    }[p.solver]
    return {
        "Kerr phase": Cost(0, 0, wave, wave),
        "U of H": Cost(factor, 0),
        # Backwards one more step and the gradient of H.
        "Cayley step": Cost(once, once + product_with_h, wave, wave),
        "residual": Cost(product_with_h, 0),
    }


def readout(config: ModelConfig, tokens: int) -> dict[str, Cost]:
    """Norm, readout and loss: over the vocabulary only for the Gram matrix, or for every token."""
    dim, vocab = config.hidden_dim, config.vocab_size
    wave, weights = COMPLEX * tokens * dim, COMPLEX * vocab * dim
    if config.likelihood == "reference":
        amplitudes = product(COMPLEX_MULTIPLY_ADD * tokens * dim * vocab, wave + weights, FLOAT * tokens * vocab)
        return {"vocabulary logits": amplitudes}
    # A Hermitian sum of outer products takes two of four real products: G, and backwards Σ z̄·conj(ψ)ψᵀ. The cotangent
    # of W takes three, and that of ψ reuses Gψ.
    square = MULTIPLY_ADD * dim * dim
    rows = COMPLEX_MULTIPLY_ADD * tokens * dim
    return {
        "Gram matrix": Cost(2 * vocab * square, 3 * vocab * square, weights),
        "likelihood": Cost(4 * tokens * square + rows, 2 * tokens * square + 2 * rows, 2 * wave),
    }


def optimizer(num_parameters: int) -> Cost:
    """Guard and AdamW: no products, but all parameters and moments are read and written."""
    passes = ADAM_PASSES * FLOAT * num_parameters
    return Cost(0, 0, 0, passes / 2)


REPORTED_ONLY = ("residual",)


def step_costs(config: Config) -> dict[str, Cost]:
    """Every component of one training step, all layers together."""
    model, tokens = config.model, shape_of(config).tokens
    layers = mixer(model, tokens) | propagator(model, tokens)
    costs = {"encoder": encoder(model, tokens)}
    costs |= {name: cost.times(model.num_layers) for name, cost in layers.items()}
    costs |= readout(model, tokens)
    return costs | {"optimizer": optimizer(count_parameters(abstract_model(model).params))}


def needed(config: Config) -> float:
    """FLOPs of a training step without what is only reported."""
    return sum(cost.training for name, cost in step_costs(config).items() if name not in REPORTED_ONLY)


def breakdown(config: Config) -> str:
    """Table of the components."""
    costs = step_costs(config)
    tokens, total = shape_of(config).tokens, needed(config)
    rows = [
        [
            name,
            f"{cost.forward / 1e6:,.1f}",
            f"{cost.training / 1e6:,.1f}",
            "reported only" if name in REPORTED_ONLY else f"{100 * cost.training / total:.1f}",
            f"{cost.traffic / 1e6:,.1f}",
        ]
        for name, cost in costs.items()
    ]
    title = f"{total / 1e9:.2f} GFLOP a step, {total / tokens / 1e6:.1f} MFLOP a token"
    return title + "\n\n" + table(["component", "forward, MFLOP", "training, MFLOP", "share, %", "traffic, MB"], rows)


def main(argv: list[str]) -> None:
    for name in argv[1:] or SHAPES:
        print(f"\n{name}: {SHAPES[name]}: {breakdown(configuration(SHAPES[name]))}")


if __name__ == "__main__":
    app.run(main)
