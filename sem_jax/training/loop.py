"""The training run, read from top to bottom."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sem_jax.config import Config, lookup, with_posterior_temperature, with_vocabulary
from sem_jax.config.fields import walk
from sem_jax.data import Batch, Dataset, Prefetch, open_dataset
from sem_jax.inference.language_model import LanguageModel
from sem_jax.modules.model import count_parameters
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.clock import Clock
from sem_jax.training.curriculum import Curriculum, obstacle
from sem_jax.training.evaluation import Evaluator
from sem_jax.training.host import single_threaded_lapack
from sem_jax.training.mesh import make_layout
from sem_jax.training.monitor import Monitor, TrainingDiverged
from sem_jax.training.processes import all_or_none, interruptible, is_first, require_same
from sem_jax.training.profile import Profile
from sem_jax.training.rescue import Remedy, in_effect, next_remedy, set_unsound_aside, with_remedies
from sem_jax.training.state import TrainState, init_state, leaves_of_first_stage
from sem_jax.training.step import TrainStep, make_train_step
from sem_jax.training.workdir import FREE_FIELDS, checkpoint_folder, locked_workdir, prepare_workdir, recorded_remedies


class TrainResult(NamedTuple):
    """How a run ended."""

    step: int
    finished: bool  # False when it was interrupted
    validation: dict[str, float]  # of the last evaluation


def train(
    config: Config,
    workdir: str | Path,
    echo: Callable[[str], None] = print,
    make_step: Callable[[Config], TrainStep] | None = None,
    fallback: bool = False,
    unread: Callable[[], bool] = lambda: False,
    rescue: bool = False,
) -> TrainResult:
    """Trains until `training.max_steps`, resuming from the newest checkpoint in `workdir`.

    On several processes each calls it alike. All need to see the workdir; of a checkpoint each writes what its devices
    hold, anything else process 0 writes and says.

    Args:
      config: the experiment.
      workdir: where metrics, checkpoints and the resolved configuration go.
      echo: prints a line.
      make_step: in place of `make_train_step`, from the configuration to the step; see
        `sem_jax.testing.planting`.
      fallback: whether to go on from the newest checkpoint that is intact where newer ones are damaged; these are
        renamed, not deleted.
      unread: whether nobody reads what is printed any more, as behind a closed pipe; the run stops as after Ctrl-C.
      rescue: whether a run that diverges goes on from its newest sound checkpoint with the next remedy of
        `sem_jax.training.rescue`.

    Raises:
      ConfigError, DataError, CheckpointError: the input, the devices or the workdir cannot be used.
      ProcessError: another process of the run failed, or is not started alike.
      TrainingDiverged: `optimizer.guard_max_consecutive` bad steps in a row, or a damaged state; with `rescue`, when no
        remedy is left.
    """
    echo = echo if is_first() else _say_nothing
    with all_or_none():
        remedies = recorded_remedies(workdir)
        config = with_remedies(config, remedies)
    for remedy in in_effect(config, remedies):
        echo(f"rescued before: the run goes on with {remedy}; any other value that is given wins")
    while True:
        try:
            return _train(config, workdir, echo, make_step, fallback, unread, remedies)
        except TrainingDiverged as error:
            if not rescue:
                raise
            echo(f"rescue: {error.cause}")
            found = next_remedy(config, remedies, error.cause, echo)
            if found is None:
                tried = ", then ".join(map(str, remedies)) or "nothing, for no remedy would change anything"
                raise TrainingDiverged(error.cause, f"No remedy is left; --rescue has tried {tried}") from error
        gc.collect()  # the state of what has failed, for which there may be no room beside the next one's
        remedies, config = [*remedies, found], with_remedies(config, [found])
        good = set_unsound_aside(checkpoint_folder(workdir), config.training.keep_checkpoints, echo)
        start = "begins anew" if good is None else f"goes on from step {good}, its newest sound checkpoint,"
        echo(f"rescue: the run {start} with {found}")


def _train(
    config: Config,
    workdir: str | Path,
    echo: Callable[[str], None],
    make_step: Callable[[Config], TrainStep] | None,
    fallback: bool,
    unread: Callable[[], bool],
    remedies: Sequence[Remedy],
) -> TrainResult:
    """One attempt of `train`, with the remedies that the configuration has taken."""
    training = config.training
    clock = Clock()
    with all_or_none():
        dataset = open_dataset(config.data, training.seed, training.global_batch)
        config = with_posterior_temperature(with_vocabulary(config, dataset.tokenizer.vocab_size), dataset.train_tokens)
        curriculum = Curriculum(config, dataset)
    require_same(_common(config, dataset))
    layout = make_layout(config)
    state = init_state(config)  # before the workdir, for here a path that fits no parameter is found out
    with contextlib.ExitStack() as stack:
        stack.enter_context(clock)
        with all_or_none():
            if is_first():
                stack.enter_context(locked_workdir(workdir))
                for change in prepare_workdir(workdir, config, dataset, remedies):
                    echo(f"changed since the last start: {change}")

        train_steps = [(make_step or make_train_step)(each) for each in curriculum.configs]
        evaluate = Evaluator(config, dataset)
        sampler = LanguageModel(config, dataset.tokenizer, state.model)
        sampler.encode_prompt(config.sampling.prompt)  # an impossible prompt ends the run now, not at the first sample
        stack.enter_context(single_threaded_lapack())
        checkpointer = stack.enter_context(
            Checkpointer(checkpoint_folder(workdir), training.keep_checkpoints, str(layout))
        )
        start = 0
        if checkpointer.latest_step() is not None:
            with clock.spending("restore"):
                absent = leaves_of_first_stage(config)
                start, state = checkpointer.restore(layout.abstract(state), fallback=fallback, absent=absent)
            curriculum.resume(state)
            for damaged, what in checkpointer.passed_over.items():
                echo(f"warning: {what}; it is called {checkpointer.set_aside(damaged)} now")
            echo(f"resuming from step {start}")
            if checkpointer.saved_on != str(layout):
                echo(f"saved on {checkpointer.saved_on}, goes on on {layout}: sums are rounded in another order now")
        echo(_describe(config, dataset, count_parameters(state.params)))
        if jax.device_count() > 1:
            echo(f"{layout.mesh.size} of {jax.device_count()} devices in {jax.process_count()} processes, {layout}")
        interrupted = stack.enter_context(interruptible(echo, unread))
        report = stack.enter_context(Monitor(config, dataset, workdir, start, state, checkpointer, clock))
        profile = stack.enter_context(Profile(training.profile if is_first() else "", workdir, start, report.note))
        report.rescued(in_effect(config, remedies))
        report.resumed(curriculum.number, curriculum.stage)

        def own_batch(step: int) -> Batch:
            return curriculum.batch(step, layout.own_rows(curriculum.stage.global_batch))

        batches = stack.enter_context(Prefetch(own_batch, range(start, training.max_steps)))
        stack.callback(dataset.close)  # before the prefetching, which may wait for a stream, is told to end

        def evaluate_and_sample(step: int, state: TrainState) -> None:
            with report.paused("evaluation"):
                report.evaluation(step, evaluate(state.evaluated))
                sampler.parts = layout.here(state.evaluated)
                if is_first():
                    report.sample(step, sampler.generate(config.sampling.prompt))

        def next_stage(step: int, state: TrainState) -> TrainState:
            if reason := obstacle(state, checkpointer.losses):
                report.stage_waits(step, curriculum.number + 1, reason)
                return state
            state = curriculum.begin_next(step, state)
            report.stage(step, curriculum.number, curriculum.stage, curriculum.tokens(step))
            batches.restart(range(step, training.max_steps))
            return state

        step = start
        clock.turn("step")
        if report.owes_evaluation:
            evaluate_and_sample(step, state)
        for step, batch in enumerate(clock.waiting(batches, "data"), start=start + 1):
            profile.before(step, state)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                placed = layout.place_batch(batch, curriculum.stage.global_batch)
                state, metrics = train_steps[curriculum.number - 1](state, placed)
            profile.after(step, state)
            report.step(step, metrics)
            checkpointer.check()
            last = interrupted(step) or step == training.max_steps
            if curriculum.is_due(step):
                state = next_stage(step, state)  # before it is saved, so that the run goes on in the same stage
            # Saved first: what follows may fail, and a stop may leave little time.
            if step % training.checkpoint_every == 0 or last:
                with report.paused("save"):
                    _save(checkpointer, evaluate, step, state, last, echo)
            if step % training.eval_every == 0 or last:
                evaluate_and_sample(step, state)
            if last:
                break
        with clock.spending("save"):
            checkpointer.wait()  # while signals still only ask
    return TrainResult(step, step >= training.max_steps, report.validation)


def _save(
    checkpointer: Checkpointer,
    evaluate: Evaluator,
    step: int,
    state: TrainState,
    last: bool,
    echo: Callable[[str], None],
) -> None:
    """Saves a state that training can go on from: numbers may be finite and their forward pass not.

    Within a streak of bad steps nothing changes but the guard's memory.
    """
    if int(state.opt_state.consecutive) > 1 and not last:
        return
    if evaluate.is_finite(state.model):
        checkpointer.save(step, state)
    else:
        echo(f"step {step}: not saved, for the loss of this state is not finite; the checkpoint before it is kept")


def _describe(config: Config, dataset: Dataset, num_parameters: int) -> str:
    train_tokens = "streamed" if dataset.train_tokens is None else f"{dataset.train_tokens:,}"
    return (
        f"{config.name}: {num_parameters:,} parameters, vocabulary {dataset.tokenizer.vocab_size} "
        f"({dataset.tokenizer.kind}); {train_tokens} training and {dataset.validation_tokens:,} validation "
        f"tokens from {config.data.source}; {config.training.global_batch} x {config.data.seq_length} tokens a step"
    )


def _common(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What all processes must agree on, by name; where its data lie is each one's own."""
    fields = [f"{path}{each.name}" for path, _, settings in walk(Config) for each in settings]
    values = {f"config.{field}": lookup(config, field) for field in fields if field not in FREE_FIELDS}
    return values | {"the data": dataset.fingerprint}


def _say_nothing(_: str) -> None:
    pass
