"""What a run will need, before it starts: `sem-jax train --dry_run`."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sem_jax.config import Config, ConfigError, at_stage, stages_of, with_posterior_temperature, with_vocabulary
from sem_jax.data import Batch
from sem_jax.data.tokenizers import ByteTokenizer
from sem_jax.modules.model import count_parameters
from sem_jax.training.mesh import Layout, make_layout
from sem_jax.training.state import TrainState, abstract_state
from sem_jax.training.step import make_train_step


class Plan(NamedTuple):
    """A run in numbers."""

    config: Config  # with the size of the vocabulary
    layout: Layout
    state: TrainState  # abstract, with its shardings
    parameters: int  # real ones; a complex one counts twice
    state_bytes: int  # of one device
    flops: float  # of a step on one device, recomputation left out
    tokens: int  # of a step, of all devices together


def make_plan(config: Config) -> Plan:
    """The plan of a run on the devices that are there, which computes nothing and reads no data.

    Raises:
      ConfigError: the configuration does not fit the devices, or does not say how large the vocabulary is.
    """
    config = with_vocabulary(config, _vocabulary(config))
    config = with_posterior_temperature(config, train_tokens=1)  # its value changes nothing that is counted here
    layout = make_layout(config)
    state = layout.abstract(abstract_state(config))
    training = config.training
    passes = training.global_batch // training.micro_batch
    tokens_a_pass = training.micro_batch * config.data.seq_length // layout.mesh.size
    costs = state.model.merge().costs(tokens_a_pass).values()
    return Plan(
        config=config,
        layout=layout,
        state=state,
        parameters=count_parameters(state.params),
        state_bytes=bytes_a_device(state),
        flops=passes * sum(cost.training for cost in costs),
        tokens=training.global_batch * config.data.seq_length,
    )


def bytes_a_device(tree: Any) -> int:
    """What one device holds of abstract arrays with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def compile_step(plan: Plan) -> jax.stages.Compiled:
    """The training step of a plan, compiled and not run."""
    count, length = plan.config.training.global_batch, plan.config.data.seq_length

    def rows(width: int, dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((count, width), dtype, sharding=plan.layout.rows)

    batch = Batch(rows(length + 1, jnp.int32), rows(length + 1, jnp.bool_), rows(length, jnp.float32))
    step: Any = make_train_step(plan.config)
    return step.lower(plan.state, batch).compile()


def describe(plan: Plan) -> str:
    """The plan in words, with what the compiled step of each stage allocates beside the state."""
    stages, device = stages_of(plan.config), jax.local_devices()[0]
    plans = [plan, *(make_plan(at_stage(plan.config, stage)) for stage in stages[1:])]
    lines = [
        f"{plan.config.name}: {plan.parameters:,} parameters",
        f"devices          {plan.layout.mesh.size} of {jax.device_count()} ({device.device_kind}), {plan.layout}",
        f"state            {_size(plan.state_bytes)} a device",
    ]
    ends = [*(stage.begins for stage in stages[1:]), plan.config.training.max_steps]
    tokens = sum(each.tokens * (end - stage.begins) for each, stage, end in zip(plans, stages, ends, strict=True))
    for number, (each, stage) in enumerate(zip(plans, stages, strict=True), start=1):
        if len(stages) > 1:
            lines.append(f"stage {number}          {stage}, after {stage.begins:,} steps or later")
        lines += _step_lines(each, tokens if number == len(stages) else None)
    return "\n".join(lines)


def _step_lines(plan: Plan, tokens_in_all: int | None) -> list[str]:
    memory = compile_step(plan).memory_analysis()
    temporary = 0 if memory is None else memory.temp_size_in_bytes
    device, limit = jax.local_devices()[0], memory_limit()
    needed = plan.state_bytes + temporary
    in_all = "" if tokens_in_all is None else f", {tokens_in_all:,} in all"
    lines = [
        f"activations      {_size(temporary)} a device, as XLA plans them for {device.platform}",
        f"arithmetic       {plan.flops / 1e9:,.3f} GFLOP a step and device",
        f"tokens           {plan.tokens:,} a step{in_all}",
    ]
    if limit is not None and needed > limit:
        lines.append(
            f"does not fit: {_size(needed)} of {_size(limit)}; lower config.training.micro_batch, set "
            "config.model.remat = layers, or raise config.mesh.fsdp"
        )
    return lines


def memory_limit() -> int | None:
    """Bytes that each device of this process has; None where the system does not tell."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def _size(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.2f} MiB"


def _vocabulary(config: Config) -> int:
    if config.model.vocab_size:
        return config.model.vocab_size
    sizes = {"bpe": config.data.bpe_vocab_size, "byte": ByteTokenizer().vocab_size}
    if config.data.tokenizer not in sizes:
        raise ConfigError(
            f"config.data.tokenizer = {config.data.tokenizer} takes its vocabulary from the data, which --dry_run does "
            "not read; set config.model.vocab_size"
        )
    return sizes[config.data.tokenizer]
