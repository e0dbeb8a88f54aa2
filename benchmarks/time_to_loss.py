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
from collections.abc import Callable, Iterator

import numpy as np
import torch
from absl import app, flags
from ml_collections import config_flags
from small_gpt import SmallGPT, matching_dim

from sem_jax.config import Config, build, with_vocabulary
from sem_jax.data import Dataset, open_dataset
from sem_jax.modules.model import count_parameters
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


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    torch.set_num_threads(_THREADS.value)
    print(f"{'contender':44s}  seconds  steps  validation  ms/step", flush=True)
    for steps in map(int, _STEPS.value):
        config, dataset = _recipe(steps)
        _report(f"ours, D {_DIM.value}, {steps} steps", _ours(config, dataset), steps)
    config, dataset = _recipe(WARMUP)
    for steps in map(int, _GPT_STEPS.value):
        for rate in map(float, _GPT_RATES.value):
            _report(f"GPT, {steps} steps, rate {rate:g}", _gpt(dataset, config, steps, rate), steps)


def _recipe(steps: int) -> tuple[Config, Dataset]:
    config = _CONFIG.value.copy_and_resolve_references()
    config.data.path = _PATH.value
    config.model.hidden_dim = _DIM.value
    config.training.update(max_steps=steps)
    config.optimizer.update(warmup_steps=steps // 20, decay_steps=steps * 3 // 4)
    typed = build(config)
    dataset = open_dataset(typed.data, typed.training.seed, typed.training.global_batch)
    return with_vocabulary(typed, dataset.tokenizer.vocab_size), dataset


def _report(name: str, run: Iterator[tuple[Callable[[], None], Callable[[], float]]], steps: int) -> None:
    """Steps until the target is met; only `step` is timed, and its first call, which may compile, is not."""
    step, evaluate = next(run)
    times: list[float] = []
    loss = math.inf
    for number in range(1, steps + 1):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
        if number % EVERY == 0:
            loss = evaluate()
            if loss <= _TARGET.value:
                break
    median = float(np.median(times))
    seconds = f"{sum(times[1:]) + median:7.1f}" if loss <= _TARGET.value else "      -"
    print(f"{name:44s}  {seconds}  {number:5d}  {loss:10.4f}  {1e3 * median:7.1f}", flush=True)


def _ours(config: Config, dataset: Dataset) -> Iterator[tuple[Callable[[], None], Callable[[], float]]]:
    state, train_step, evaluator = init_state(config), make_train_step(config), Evaluator(config, dataset)
    print(f"  {count_parameters(state.params):,} parameters", flush=True)
    number = 0

    def step() -> None:
        nonlocal state, number
        state, metrics = train_step(state, dataset.train.batch(number))
        metrics.loss.block_until_ready()
        number += 1

    with single_threaded_lapack():
        yield step, lambda: evaluator(state.model).values["nll"]


def _gpt(
    dataset: Dataset, config: Config, steps: int, rate: float
) -> Iterator[tuple[Callable[[], None], Callable[[], float]]]:
    torch.manual_seed(0)
    vocabulary, length = dataset.tokenizer.vocab_size, config.data.seq_length
    model = SmallGPT(vocabulary, matching_dim(GPT_PARAMETERS, vocabulary, LAYERS, length), LAYERS, length)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))

    def factor(number: int) -> float:
        if number < WARMUP:
            return (number + 1) / WARMUP
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (number - WARMUP) / (steps - WARMUP)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    held_out = dataset.validation.evaluation_batches(config.training.eval_batches)
    number = 0

    def loss_of(tokens: np.ndarray) -> torch.Tensor:
        rows = torch.as_tensor(tokens, dtype=torch.long)
        return model.loss(rows[:, :-1], rows[:, 1:])

    def step() -> None:
        nonlocal number
        optimizer.zero_grad()
        loss_of(dataset.train.batch(number).tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        number += 1

    def evaluate() -> float:
        with torch.no_grad():
            return float(np.mean([loss_of(batch.tokens).item() for batch in held_out]))

    yield step, evaluate


if __name__ == "__main__":
    app.run(main)
