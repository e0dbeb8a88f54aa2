"""The FLOP model against XLA's own count of the programs that the modules become."""

from __future__ import annotations

import flops
import jax
import pytest
from components import cost_of
from parts import as_function, parts_of
from shapes import REFERENCE, SHAPES, Shape, configuration, shape_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = Shape(64, 1, 1024, batch=2, length=32, num_groups=4, state_dim=16)
# XLA counts more where functions are elementwise, one FLOP each, and less where a product is complex, which it counts
# like a real one (the rotation of small blocks).
LEAST, MOST = 0.85, 1.25
PRODUCTS = ["encoder", "spinor_gate", "out_proj", "ssm/inputs", "ssm/output", "readout"]


def counted_by_xla(function, *arguments) -> float:
    # Before optimisation, which on some backends turns products into calls that are not counted.
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("name", PRODUCTS)
def test_flops_of_a_component_are_those_that_xla_counts(name):
    config = configuration(SHAPE)
    apply, *arguments = as_function(parts_of(config)[name])
    cost = cost_of(name, config)

    def training(moving, fixed):
        outputs, pull_back = jax.vjp(lambda x: apply(x, fixed), moving)
        return pull_back(outputs)

    assert LEAST < counted_by_xla(apply, *arguments) / cost.forward < MOST
    assert LEAST < counted_by_xla(training, *arguments) / cost.training < MOST


def test_the_vocabulary_enters_the_default_step_through_the_gram_matrix_and_the_optimizer_only():
    small, large = (flops.step_costs(configuration(SHAPE._replace(vocab_size=v))) for v in (512, 2048))
    assert {n for n in small if small[n] != large[n]} == {"readout/gram", "optimizer"}
    assert large["readout/gram"].training == 4 * small["readout/gram"].training


def test_the_reference_readout_grows_with_tokens_and_vocabulary():
    def logits(shape: Shape) -> float:
        return flops.step_costs(configuration(shape, REFERENCE))["readout/logits"].forward

    assert logits(SHAPE) == 6 * SHAPE.tokens * SHAPE.hidden_dim * SHAPE.vocab_size
    assert logits(SHAPE._replace(batch=4)) == 2 * logits(SHAPE)


def test_flops_a_token_of_the_seed_recipe_without_its_gram_matrix_are_about_72_million():
    costs = flops.step_costs(configuration(SHAPES["max_aggression"]))
    per_token = sum(c.training for n, c in costs.items() if n not in ("readout/gram", *flops.REPORTED_ONLY))
    assert per_token / SHAPES["max_aggression"].tokens == pytest.approx(72e6, rel=0.05)


@pytest.mark.parametrize("solver", ["cg", "chebyshev"])
def test_iterative_solvers_need_products_with_h_and_no_factorisation(solver):
    config = configuration(SHAPE, {"propagator.solver": solver})
    costs, dense = flops.step_costs(config), flops.step_costs(configuration(SHAPE))
    assert costs["cayley/unitary"].forward == 0
    assert costs["cayley/step"].forward > dense["cayley/step"].forward


def test_every_shape_is_what_its_configuration_says():
    for shape in SHAPES.values():
        assert shape_of(configuration(shape)) == shape
