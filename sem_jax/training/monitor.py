"""What a run tells while it goes: progress line, metrics.jsonl, warnings, samples, and the end of a hopeless run."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sem_jax.config import Config, Stage, stages_of
from sem_jax.data import Dataset
from sem_jax.errors import SemJaxError
from sem_jax.modules.propagator import PropagatorStats
from sem_jax.optim import Reason, leaf_names
from sem_jax.reporting.live import LivePage
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.clock import Clock, describe, seconds_in, values_of
from sem_jax.training.evaluation import Evaluation
from sem_jax.training.health import chance_warning, convergence_warnings, describe_skip
from sem_jax.training.metrics import MetricsWriter, Split, bits_per_byte, gap_warning
from sem_jax.training.processes import all_or_none, gather, is_first
from sem_jax.training.progress import LateMetrics, Progress, Throughput
from sem_jax.training.rescue import Remedy
from sem_jax.training.state import TrainState
from sem_jax.training.step import StepMetrics
from sem_jax.training.trackers import Trackers

_LONGEST_SAMPLE = 10_000  # characters of a line


class TrainingDiverged(SemJaxError, RuntimeError):
    """Bad steps without end; the message names step, cause, first bad leaf and the last good checkpoint.

    Attributes:
      cause: the message without the cure.
    """

    def __init__(self, cause: str, cure: str):
        super().__init__(f"{cause}. {cure}")
        self.cause = cause


class _Nowhere(io.StringIO):
    """What a process other than the first prints to."""

    def write(self, text: str) -> int:
        return len(text)


class Monitor:
    """Brings a run's numbers to the terminal, metrics.jsonl and trackers, one step late: the device never waits.

    Attributes:
      owes_evaluation: whether an evaluation at the first step was due and never came; the same on all processes.
      validation: values of the last evaluation.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        workdir: str | Path,
        start_step: int,
        state: TrainState,
        checkpoints: Checkpointer,
        clock: Clock | None = None,
    ):
        """Opens metrics.jsonl; processes other than the first neither write nor print.

        Args:
          config: the experiment.
          dataset: tells the bytes of a token.
          workdir: of the run.
          start_step: steps taken by earlier processes of the run.
          state: of the run; only its structure is read.
          checkpoints: of the run, which learn the losses of its validations; the last good one is named where the run
            has to end.
          clock: of this process; None: a new one.
        """
        self._config = config
        self._bytes_per_token = dataset.bytes_per_token
        self._checkpoints = checkpoints
        self._leaf_names = leaf_names(state.params, state.opt_state.inner)
        with all_or_none():
            self._writer = MetricsWriter(workdir, start_step) if is_first() else None
        self._progress = Progress(config.training.max_steps, start_step, None if is_first() else _Nowhere())
        if self._writer is not None and (
            warning := gap_warning(self._writer.last_step, start_step, config.training.log_every)
        ):
            self._progress.note(f"warning: {warning}")
        self._page = LivePage(workdir, self._progress.note)
        self._trackers = Trackers(config, workdir, start_step, self._progress.note) if is_first() else None
        self._late = LateMetrics()
        self._clock = clock or Clock()
        self._start_step = self._last_step = start_step
        if self._writer is not None:
            self._clock.add(seconds_in(self._writer.spent) | {"lost": self._writer.lost_seconds})
        self._throughput = Throughput()
        self._tokens_per_step = stages_of(config)[0].tokens
        self._obstacle = ""
        self._recent: list[StepMetrics] = []
        self._start = time.perf_counter() - (self._writer.seconds if self._writer else 0)
        self.validation: dict[str, float] = {}
        checkpoints.losses |= dict(gather(list(self._writer.losses.items()) if self._writer else [])[0])
        due = start_step % config.training.eval_every == 0 or start_step == config.training.max_steps
        # Saving comes before evaluating, so the run may have been killed in between.
        self.owes_evaluation = start_step > 0 and due and start_step not in checkpoints.losses

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._read(self._late.flush())
                if self._last_step > self._start_step:
                    self._clock.turn("step")
                    self._progress.note(describe(self._clock.seconds))
        finally:
            if self._trackers is not None:
                self._trackers.close()
            if self._writer is not None:
                self._writer.close()
                self._page.update(last=True)
            self._progress.close()

    def note(self, text: str) -> None:
        """Prints a line of its own."""
        self._progress.note(text)

    def rescued(self, remedies: Iterable[Remedy]) -> None:
        """Reports what a rescue has changed, where metrics.jsonl does not tell of it yet."""
        for remedy in remedies:
            if self._writer is not None and remedy.field not in self._writer.rescued:
                self._write("rescue", self._start_step, **remedy._asdict())

    def resumed(self, number: int, stage: Stage) -> None:
        """Learns in which stage the run goes on."""
        self._tokens_per_step = stage.tokens
        if number > 1:
            self.note(f"in stage {number}, {stage}")

    def stage(self, step: int, number: int, stage: Stage, tokens: int) -> None:
        """Reports that a stage begins after `step` steps, in which the run has read so many tokens."""
        self._read(self._late.flush())
        self._write("stage", step, stage=number, tokens=tokens, tokens_per_step=stage.tokens, **stage.sizes())
        self.note(f"step {step}: stage {number} begins, {stage}")
        self._tokens_per_step, self._throughput, self._obstacle = stage.tokens, Throughput(), ""

    def stage_waits(self, step: int, number: int, reason: str) -> None:
        """Reports why a stage that is due does not begin; once for each reason."""
        if reason != self._obstacle:
            self._obstacle = reason
            self._write("stage", step, stage=number, waits=reason)
            self.note(f"step {step}: stage {number} waits: {reason}")

    def step(self, step: int, metrics: StepMetrics) -> None:
        """Takes the metrics of a step just dispatched and reports those of the one before."""
        self._last_step = step
        self._read(self._late.push(step, metrics))
        self._throughput.step(self._tokens_per_step)

    @contextlib.contextmanager
    def paused(self, cause: str) -> Iterator[None]:
        """A context whose time does not count as training, after the last step has been reported.

        Args:
          cause: what its time is spent on, one of `sem_jax.training.clock.CAUSES`.
        """
        self._read(self._late.flush())
        with self._throughput.pause(), self._clock.spending(cause):
            yield
        self._write("time", self._last_step, **values_of(self._clock.seconds))

    def _read(self, late: tuple[int, StepMetrics] | None) -> None:
        if late is None:
            return
        step, metrics = late
        self._recent.append(metrics)
        self._report_skip(step, metrics)
        if step % self._config.training.log_every == 0 or step == self._config.training.max_steps:
            self._report_training(step, metrics)
        if step % self._config.training.health_every == 0:
            self._report_health(step, metrics.propagators)

    def _report_skip(self, step: int, metrics: StepMetrics) -> None:
        if not metrics.consecutive:
            return
        reason, leaf = Reason(int(metrics.reason)), int(metrics.leaf)
        why = describe_skip(reason, leaf, self._leaf_names)
        where = {"leaf": self._leaf_names[leaf]} if leaf >= 0 else {}
        self._write(
            "skip",
            step,
            reason=reason.name.lower(),
            **where,
            loss=float(metrics.loss),
            grad_norm=float(metrics.grad_norm),
            lr_scale=float(metrics.lr_scale),
            consecutive=int(metrics.consecutive),
            skipped=int(metrics.skipped),
        )
        self._progress.note(
            f"step {step}: skipped, {why}; parameters unchanged, LR scale was {float(metrics.lr_scale):g}"
        )
        if reason == Reason.STATE:
            raise TrainingDiverged(
                f"step {step}: {why}. The state itself is damaged, so that no skipped step can mend it",
                self._way_back(),
            )
        if metrics.consecutive >= self._config.optimizer.guard_max_consecutive:
            # Within the streak the state has not changed: what its loss is on other data tells the two causes apart.
            data = " (if `sem-jax evaluate` finds its loss finite, look at the data of these steps first)"
            raise TrainingDiverged(
                f"step {step}: {int(metrics.consecutive)} bad steps in a row, the last one for this cause: {why}",
                f"{self._way_back()}, with a lower config.optimizer.learning_rate or config.optimizer.temperature = 0; "
                f"train --rescue does so by itself{data if reason == Reason.LOSS else ''}",
            )

    def _way_back(self) -> str:
        good, newest = self._checkpoints.newest_finite(), self._checkpoints.latest_step()
        if newest is None:
            return "No checkpoint has been saved yet: start again"
        if good is None:
            return f"No checkpoint in {self._checkpoints.path(newest).parent} is good: delete them and start again"
        path = self._checkpoints.path(good)
        if good == newest:
            return f"The last good checkpoint is {path}: start the run again, which goes on from there"
        return f"The last good checkpoint is {path}: delete the newer ones and start the run again"

    def _write(self, split: Split, step: int, **values: Any) -> None:
        values["seconds"] = round(time.perf_counter() - self._start, 3)
        if self._writer is not None:
            self._writer.write(split, step, **values)
        if self._trackers is not None:
            self._trackers.log(split, step, values)

    def _report_training(self, step: int, metrics: StepMetrics) -> None:
        names = ["loss", "nll"] if metrics.distill is None else ["loss", "nll", "distill"]
        # A skipped step has a line of its own, and its loss would hide that of all the others.
        taken = [m for m in self._recent if not m.consecutive] or self._recent
        means = {name: float(np.mean([getattr(m, name) for m in taken])) for name in names}
        self._recent.clear()
        values: dict[str, Any] = {
            "lr": float(metrics.lr),
            "lr_scale": float(metrics.lr_scale),
            "grad_norm": float(metrics.grad_norm),
            "tokens_per_s": self._throughput.tokens_per_second(),
            "skipped": int(metrics.skipped),
        }
        bpb = bits_per_byte(means["nll"], self._bytes_per_token)
        stats = metrics.propagators
        self._write(
            "train",
            step,
            **means,
            bits_per_byte=bpb,
            **values,
            residual=float(np.max(stats.residual, initial=0)),
            norm_drift=float(np.max(stats.norm_drift, initial=0)),
        )
        self._progress.update(step, loss=means["loss"], bits_per_byte=bpb, **values)

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Reports an evaluation."""
        values = self.validation = evaluation.values
        self._checkpoints.losses[step] = values["nll"]
        waves = {
            f"{name}_{kind}": [float(number) for number in numbers]
            for kind, stats in evaluation.waves.items()
            for name, numbers in stats._asdict().items()
        }
        self._write("validation", step, **values, **waves)
        self._progress.note(
            f"step {step}: validation {values['nll']:.4f} nats/token, {values['bits_per_byte']:.4f} bits/byte, "
            f"residual {values['residual']:.1e}, norm drift {values['norm_drift']:.1e}"
        )
        self._warn(step, evaluation.propagators)
        if warning := chance_warning(values["nll"], self._config.model.vocab_size):
            self._progress.note(f"warning, step {step}: {warning}")

    def _report_health(self, step: int, stats: PropagatorStats) -> None:
        names = {"residual": stats.residual, "norm_drift": stats.norm_drift, "h_lambda_bound": stats.h_lambda}
        self._write("health", step, **{name: [float(x) for x in numbers] for name, numbers in names.items()})
        self._warn(step, stats)

    def _warn(self, step: int, stats: PropagatorStats) -> None:
        for warning in convergence_warnings(stats, self._config.model.propagator):
            self._progress.note(f"warning, step {step}: {warning}")

    def sample(self, step: int, text: str) -> None:
        """Shows a sample, writes it down, and draws the run's page anew; for the first process alone."""
        self._write("sample", step, text=text[:_LONGEST_SAMPLE])
        self._progress.note("\n".join(f"  | {line}" for line in text.splitlines()))
        self._page.update()
