"""How long does a model train until its validation loss is that of nanoGPT's CPU budget?

Command:  python benchmarks/time_to_loss.py --path=FILE [--target=1.88 --steps=500,1000 --gpt_steps=1000,2000
          --gpt_rates=0.001,0.003 --dim=96 --threads=2]

Ours is configs/shakespeare_char.py with `--dim` channels, its schedule scaled to each number of `--steps`. The other
side is `small_gpt.py` (4 layers, 4 heads, 0.8 M parameters) in PyTorch with AdamW as nanoGPT sets it (betas .9 and .99,
decay .1, clipping at 1, 100 steps of warm-up, a cosine to a tenth), for every pair of steps and rate. Both see the same
batches of 12 x 64 characters and are measured on the same validation batches every 25 steps; neither these nor
compilation count. A line for each schedule: the seconds and steps until the target, or the loss at the end.
"""

from __future__ import annotations

import math
import time
from typing import Protocol

import numpy as np
import torch
from absl import app, flags
from ml_collections import config_flags
from small_gpt import SmallGPT, matching_dim

from sem_jax.config import Config, build, with_vocabulary
from sem_jax.data import Batch, Dataset, open_dataset
from sem_jax.training.evaluation import Evaluator
from sem_jax.training.host import single_threaded_lapack
from sem_jax.training.state import init_state
from sem_jax.training.step import make_train_step

_CONFIG = config_flags.DEFINE_config_file("config", "configs/shakespeare_char.py", "The recipe of our side.")
_PATH = flags.DEFINE_string("path", None, "Text file.", required=True)
_TARGET = flags.DEFINE_float("target", 1.88, "Nats a character on the validation split.")
_DIM = flags.DEFINE_integer("dim", 96, "Channels of our side.")
_STEPS = flags.DEFINE_list("steps", ["500", "1000"], "Lengths of our schedules.")
_GPT_STEPS = flags.DEFINE_list("gpt_steps", ["1000", "2000"], "Lengths of the other side's schedules.")
_GPT_RATES = flags.DEFINE_list("gpt_rates", ["0.001", "0.003"], "Its learning rates.")
_THREADS = flags.DEFINE_integer("threads", 2, "Of PyTorch; ours takes all that the process may use.")

EVERY, LAYERS, GPT_PARAMETERS, WARMUP = 25, 4, 800_000, 100


class Contender(Protocol):
    """A model in training."""

    def step(self, number: int) -> None:
        """One training step, finished when it returns."""

    def evaluate(self) -> float:
        """Nats a character on the validation batches."""


class Ours:
    """A SEM under its recipe."""

    def __init__(self, config: Config, dataset: Dataset):
        self._dataset, self._state = dataset, init_state(config)
        self._step, self._evaluator = make_train_step(config), Evaluator(config, dataset)

    def step(self, number: int) -> None:
        """See `Contender`."""
        self._state, metrics = self._step(self._state, self._dataset.train.batch(number))
        metrics.loss.block_until_ready()

    def evaluate(self) -> float:
        """See `Contender`."""
        return self._evaluator(self._state.model).values["nll"]


class GPT:
    """The small GPT under nanoGPT's schedule."""

    def __init__(self, config: Config, dataset: Dataset, steps: int, rate: float):
        torch.manual_seed(0)
        vocabulary, length = dataset.tokenizer.vocab_size, config.data.seq_length
        dim = matching_dim(GPT_PARAMETERS, vocabulary, LAYERS, length)
        self._model = SmallGPT(vocabulary, dim, LAYERS, length)
        matrices = [p for p in self._model.parameters() if p.ndim > 1]
        rest = [p for p in self._model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda number: _factor(number, steps))
        self._train = dataset.train
        self._held_out = list(dataset.validation.evaluation_batches(config.training.eval_batches))

    def step(self, number: int) -> None:
        """See `Contender`."""
        self._optimizer.zero_grad()
        self._loss(self._train.batch(number)).backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._schedule.step()

    def evaluate(self) -> float:
        """See `Contender`."""
        with torch.no_grad():
            return float(np.mean([self._loss(batch).item() for batch in self._held_out]))

    def _loss(self, batch: Batch) -> torch.Tensor:
        rows = torch.as_tensor(batch.tokens, dtype=torch.long)
        return self._model.loss(rows[:, :-1], rows[:, 1:])


def _factor(number: int, steps: int) -> float:
    if number < WARMUP:
        return (number + 1) / WARMUP
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (number - WARMUP) / (steps - WARMUP)))


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    torch.set_num_threads(_THREADS.value)
    print(f"{'contender':28s}  seconds  steps  validation  ms/step", flush=True)
    with single_threaded_lapack():
        for steps in map(int, _STEPS.value):
            _report(f"ours, {steps} steps", Ours(*_recipe(steps)), steps)
    for steps in map(int, _GPT_STEPS.value):
        for rate in map(float, _GPT_RATES.value):
            _report(f"GPT, {steps} steps, rate {rate:g}", GPT(*_recipe(steps), steps, rate), steps)


def _recipe(steps: int) -> tuple[Config, Dataset]:
    config = _CONFIG.value.copy_and_resolve_references()
    config.data.path = _PATH.value
    config.model.hidden_dim = _DIM.value
    config.training.update(max_steps=steps)
    config.optimizer.update(warmup_steps=steps // 20, decay_steps=steps * 3 // 4)
    typed = build(config)
    dataset = open_dataset(typed.data, typed.training.seed, typed.training.global_batch)
    return with_vocabulary(typed, dataset.tokenizer.vocab_size), dataset


def _report(name: str, contender: Contender, steps: int) -> None:
    """Trains until the target is met; only steps are timed, and the first, which may compile, counts as the median."""
    times: list[float] = []
    loss = math.inf
    while len(times) < steps and loss > _TARGET.value:
        start = time.perf_counter()
        contender.step(len(times))
        times.append(time.perf_counter() - start)
        if len(times) % EVERY == 0:
            loss = contender.evaluate()
    median = float(np.median(times))
    seconds = f"{sum(times[1:]) + median:7.1f}" if loss <= _TARGET.value else "      -"
    print(f"{name:28s}  {seconds}  {len(times):5d}  {loss:10.4f}  {1e3 * median:7.1f}", flush=True)


if __name__ == "__main__":
    app.run(main)
