"""The training run, read from top to bottom."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sem_jax.config import Config, with_posterior_temperature, with_vocabulary
from sem_jax.data import Dataset, Prefetch, open_dataset
from sem_jax.inference.language_model import LanguageModel
from sem_jax.modules.model import ModelParts, count_parameters
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.evaluation import Evaluator
from sem_jax.training.host import single_threaded_lapack
from sem_jax.training.monitor import Monitor
from sem_jax.training.state import batch_number, evaluated_params, init_state
from sem_jax.training.step import TrainStep, make_train_step
from sem_jax.training.workdir import checkpoint_folder, prepare_workdir


class TrainResult(NamedTuple):
    """How a run ended."""

    step: int
    finished: bool  # False when it was interrupted
    validation: dict[str, float]  # of the last evaluation


def train(
    config: Config,
    workdir: str | Path,
    echo: Callable[[str], None] = print,
    make_step: Callable[[Any, Config], TrainStep] | None = None,
) -> TrainResult:
    """Trains until `training.max_steps`, resuming from the newest checkpoint in `workdir`.

    Args:
      config: the experiment.
      workdir: where metrics, checkpoints and the resolved configuration go.
      echo: prints a line.
      make_step: in place of `make_train_step`, from the model's structure and the configuration to the step; see
        `sem_jax.testing.planting`.

    Raises:
      ConfigError, DataError, CheckpointError: the input or the workdir cannot be used.
      TrainingDiverged: `optimizer.guard_max_consecutive` bad steps in a row, or a damaged state.
    """
    training = config.training
    dataset = open_dataset(config.data, training.seed, training.global_batch)
    config = with_posterior_temperature(with_vocabulary(config, dataset.tokenizer.vocab_size), dataset.train_tokens)
    parts, state = init_state(config)  # before the workdir, for here a path that fits no parameter is found out
    for change in prepare_workdir(workdir, config, dataset):
        echo(f"changed since the last start: {change}")

    train_step = (make_step or make_train_step)(parts.graphdef, config)
    evaluate = Evaluator(parts.graphdef, config, dataset)
    sampler = LanguageModel(config, dataset.tokenizer, parts)
    sampler.encode_prompt(config.sampling.prompt)  # an impossible prompt ends the run now, not at the first evaluation
    with contextlib.ExitStack() as stack:
        stack.enter_context(single_threaded_lapack())
        checkpointer = stack.enter_context(Checkpointer(checkpoint_folder(workdir), training.keep_checkpoints))
        start = 0
        if checkpointer.latest_step() is not None:
            start, state = checkpointer.restore(state)
            echo(f"resuming from step {start}")
        echo(_describe(config, dataset, count_parameters(parts.params)))
        interrupted = stack.enter_context(_interruptible(echo))
        report = stack.enter_context(Monitor(config, dataset, workdir, start, state, checkpointer))
        numbers = (batch_number(training, step) for step in range(start, training.max_steps))
        batches = stack.enter_context(Prefetch(dataset.train.batch, numbers))
        stack.callback(dataset.close)  # before the prefetching, which may wait for a stream, is told to end

        step = start
        for step, batch in enumerate(batches, start=start + 1):
            state, metrics = train_step(state, batch)
            report.step(step, metrics)
            last = step == training.max_steps or interrupted()
            if step % training.eval_every == 0 or last:
                with report.paused():
                    params = evaluated_params(state)
                    report.evaluation(step, evaluate(params, state.buffers))
                    sampler.parts = ModelParts(parts.graphdef, params, state.buffers)
                    report.sample(sampler.generate(config.sampling.prompt))
            if step % training.checkpoint_every == 0 or last:
                with report.paused():
                    checkpointer.save(step, state)
            if last:
                break
    return TrainResult(step, step >= training.max_steps, report.validation)


def _describe(config: Config, dataset: Dataset, num_parameters: int) -> str:
    train_tokens = "streamed" if dataset.train_tokens is None else f"{dataset.train_tokens:,}"
    return (
        f"{config.name}: {num_parameters:,} parameters, vocabulary {dataset.tokenizer.vocab_size} "
        f"({dataset.tokenizer.kind}); {train_tokens} training and {dataset.validation_tokens:,} validation "
        f"tokens from {config.data.source}; {config.training.global_batch} x {config.data.seq_length} tokens a step"
    )


@contextlib.contextmanager
def _interruptible(echo: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C (or SIGTERM) into a request to stop after the step; the second acts at once."""
    asked = False

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        echo("\nstopping after this step; once more to stop at once")

    try:
        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where signals do not arrive anyway
        previous = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
