"""Decoding: what one more token costs after a long past, in time and in memory."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from arena.campaign import Cell, Record, markdown
from arena.language import BUDGET, LAYERS
from arena.rivals import RIVALS, installed
from arena.trials import Budget, configure
from sem_jax.modules.model import ModelState, init_model
from sem_jax.training.host import single_threaded_lapack

RIVAL_NAMES, PASTS, CALLS = ("sem", "sem_real", "gpt", "mamba2", "gru"), (64, 1024, 16_384), 50


def campaign(record: Record, seeds: int, budget: Budget = BUDGET) -> None:
    """One measurement of each model after each past; a fresh model costs what a trained one does."""
    del seeds
    asked = [{"rival": name, "past": past} for name in RIVAL_NAMES for past in PASTS]
    for each in asked:
        record.answers([each], lambda lacking: [measure(budget, **question) for question in lacking])


def measure(budget: Budget, rival: str, past: int) -> Cell:
    """Processor microseconds of one compiled step of one sequence, the median of many, and bytes of the state."""
    with single_threaded_lapack(), installed(RIVALS[rival]):
        model = init_model(configure(rival, budget, LAYERS, 1e-3).model, 0).merge()
        state, prepared = after(model.initial_state(1), past), jax.jit(lambda: model.prepare())()

        @jax.jit
        def step(token: Array, state: ModelState) -> tuple[Array, ModelState]:
            psi, new, _ = model(token, state, prepared=prepared)
            return model.readout.log_probs(psi), new

        times, token = [], jnp.zeros((1, 1), int)
        for _ in range(CALLS):
            start = time.process_time()
            jax.block_until_ready(step(token, state))
            times.append(time.process_time() - start)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.blocks))
    return {"us": round(1e6 * float(np.median(times[1:])), 1), "bytes": size}


def after(state: ModelState, past: int) -> ModelState:
    """The state after so many tokens: what is empty at the start, the GPT's cache, has grown to as many entries."""

    def grown(leaf: Array) -> Array:
        return jnp.ones([size or past for size in leaf.shape], leaf.dtype)

    return state._replace(position=state.position + past, blocks=jax.tree.map(grown, state.blocks))


def tables(record: Record) -> str:
    """The table of docs/arena.md, from the cells alone."""

    def text(name: str, past: int) -> str:
        cells = record.cells(rival=name, past=past)
        return f"{cells[0]['us'] / 1000:.2f} ms, {cells[0]['bytes'] / 1024:,.0f} KiB" if cells else "–"

    rows = [[RIVALS[name].title, *(text(name, past) for past in PASTS)] for name in RIVAL_NAMES]
    return markdown(["a token after", *(f"{past:,} tokens" for past in PASTS)], rows)
