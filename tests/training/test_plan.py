"""What a dry run says is what a run does."""

import jax
import pytest
from small import config

from sem_jax.config import ConfigError
from sem_jax.modules.model import count_parameters
from sem_jax.training.plan import make_plan
from sem_jax.training.state import init_state


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


def test_the_vocabulary_comes_from_the_configuration_and_not_from_the_data():
    assert make_plan(config(data__tokenizer="bpe", data__bpe_vocab_size=300)).config.model.vocab_size == 300
    with pytest.raises(ConfigError, match=r"char takes its vocabulary from the data.*set config\.model\.vocab_size"):
        make_plan(config())
