"""What a dry run says is what a run does."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params
from small import config

from sem_jax.config import ConfigError
from sem_jax.data import Batch
from sem_jax.modules.model import count_parameters, init_model
from sem_jax.training import plan as plans
from sem_jax.training.plan import describe, make_plan
from sem_jax.training.state import init_state
from sem_jax.training.step import model_loss


def test_a_plan_counts_the_state_that_the_run_makes():
    plan = make_plan(config(model__vocab_size=23, training__ema_decay=0.9, training__micro_batch=2))
    state = init_state(plan.config)
    assert plan.parameters == count_parameters(state.params)
    # One device holds all of it.
    assert plan.state_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert plan.tokens == 4 * 16


def test_a_pass_more_adds_what_it_needs_whatever_its_tokens():
    one, two, four = (make_plan(config(model__vocab_size=23, training__micro_batch=m)).flops for m in (4, 2, 1))
    assert two - one > 0
    assert four - two == pytest.approx(2 * (two - one), rel=1e-9)


def product_flops(jaxpr):
    """FLOPs of all matrix products of a program."""
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        total += equation.params.get("length", 1) * sum(map(product_flops, jaxprs_in_params(equation.params)))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            result, left = equation.outvars[0].aval, equation.invars[0].aval
            multiply_add = 8 if jnp.iscomplexobj(result) else 2
            total += multiply_add * result.size * math.prod(left.shape[axis] for axis in contracted)
    return total


def test_the_arithmetic_is_that_of_the_products_of_a_step_and_of_the_recurrence():
    c = config(model__vocab_size=23, model__hidden_dim=64, training__micro_batch=2)
    plan = make_plan(c)
    batch = Batch(jnp.zeros((4, 17), jnp.int32), jnp.zeros((4, 17), bool), jnp.ones((4, 16)))

    def loss(params):
        return model_loss(c, parts.replace(params=params), batch)[0].loss

    parts = init_model(plan.config.model, 0)
    products = product_flops(jax.make_jaxpr(jax.grad(loss))(parts.params))
    elementwise = parts.merge().costs(4 * 16)["ssm/scan"].training
    # The factorisation of the propagator, and its work without tokens, happen in each of two passes.
    assert plan.flops == pytest.approx(products + elementwise, rel=0.1)


def test_the_vocabulary_comes_from_the_configuration_and_not_from_the_data():
    assert make_plan(config(data__tokenizer="bpe", data__bpe_vocab_size=300)).config.model.vocab_size == 300
    with pytest.raises(ConfigError, match=r"char takes its vocabulary from the data.*set config\.model\.vocab_size"):
        make_plan(config())


@pytest.mark.parametrize(("limit", "fits"), [(3 * 2**30, True), (3 * 2**30 - 1, False), (None, True)])
def test_memory_that_does_not_fit_is_said_with_the_cure(monkeypatch, limit, fits):
    plan = make_plan(config(model__vocab_size=23))._replace(state_bytes=2**30)
    step = SimpleNamespace(memory_analysis=lambda: SimpleNamespace(temp_size_in_bytes=2 * 2**30))
    monkeypatch.setattr(plans, "compile_step", lambda _: step)
    monkeypatch.setattr(plans, "memory_limit", lambda: limit)
    said = describe(plan)
    assert "state            1.00 GiB a device" in said
    assert "activations      2.00 GiB a device" in said
    assert "tokens           64 a step, 768 in all" in said
    assert ("does not fit: 3.00 GiB of 3.00 GiB; lower config.training.micro_batch" in said) is not fits


def test_every_stage_is_planned(monkeypatch):
    compiled = []

    def compile_step(plan):
        compiled.append((plan.config.training.global_batch, plan.config.data.seq_length))
        return SimpleNamespace(memory_analysis=lambda: None)

    monkeypatch.setattr(plans, "compile_step", compile_step)
    said = describe(make_plan(config(model__vocab_size=23, training__stages="5:32x2/1")))
    assert compiled == [(4, 16), (2, 32)]
    assert "stage 2          2 x 32 tokens a step, after 5 steps or later" in said
    assert said.endswith(f"tokens           64 a step, {5 * 64 + 7 * 64} in all")
