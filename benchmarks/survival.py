"""Does a run survive what happens in a week: kill -9, signals, a lost process, a long night of faults?

    nice -n 5 python benchmarks/survival.py --json=docs/results/survival.json
    nice -n 5 python benchmarks/survival.py --only=kills --kills=100

Each campaign is a line of the table: what was tried how often, how often the run survived and how often something was
lost. A run survives if it goes on without help and ends with the arrays, to the bit, and the metrics of a run that
nobody has disturbed. Takes an hour on two cores; --json keeps the lines of campaigns that are not chosen.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import survival_night
from absl import app, flags
from survival_runs import (
    Launcher,
    Life,
    cache_folder,
    default_signals,
    differences,
    has_torn_line,
    saved_steps,
    small_config,
    unfinished,
)
from timing import table, write_json

_STOPPED, _AT_ONCE = 75, 130  # exit statuses of a run that has stopped and saved, and of one that has only stopped
_CHECKPOINT_EVERY, _EVAL_EVERY = 5, 10
_WINDOW = 3.0  # seconds of training in which a moment lies


class Counts(NamedTuple):
    """How often, and for how long; each is a flag of the same name."""

    kills: int = 60
    lost_processes: int = 10
    signals: int = 8  # of each kind
    run_steps: int = 200  # of a run that is killed or stopped
    night_steps: int = 20_000
    fault_every: int = 500  # steps of a night


class Row(NamedTuple):
    """A line of the table; `lost` tells of each loss in a sentence."""

    what: str
    tried: int
    lost: list[str]
    found: dict[str, Any]


class Undisturbed(NamedTuple):
    """A run to compare with, and its launcher."""

    launcher: Launcher
    workdir: Path
    start_up: float  # seconds to the first step


def undisturbed(folder: Path, steps: int, **options: int) -> Undisturbed:
    """Trains without any disturbance, after a first start that only compiles."""
    config = small_config(folder, steps, training__checkpoint_every=_CHECKPOINT_EVERY, training__eval_every=_EVAL_EVERY)
    launcher, workdir = Launcher(folder, config, **options), folder / "undisturbed"
    with launcher.start(folder / "warm-up") as life:
        life.seconds_to_first_step()
    with launcher.start(workdir) as life:
        start_up = life.seconds_to_first_step()
        if life.end() != [0] * launcher.processes:
            raise SystemExit(f"the undisturbed run has failed:\n{life.said()[-2000:]}")
    return Undisturbed(launcher, workdir, start_up)


class Campaign:
    """Runs that are disturbed, one life after another, until so many disturbances have happened."""

    def __init__(self, reference: Undisturbed, rng: random.Random):
        self.reference, self.rng = reference, rng
        self.tried = self.runs = self.saving = self.torn = self.starting = self.stopped = 0
        self.most_repeated = 0  # steps that a restart had to take once more
        self.lost: list[str] = []

    def disturb(self, count: int, act: Callable[[Life], bool]) -> None:
        """Lets runs train to their end, of which `act` disturbs `count` lives; it says whether it came in time."""
        while self.tried < count:
            self.runs += 1
            workdir = self.reference.launcher.folder / f"run {self.runs}"
            durable: int | None = None
            reached = 0
            finished = False
            while not finished:
                before = unfinished(workdir)
                with self.reference.launcher.start(workdir) as life:
                    came = self.tried < count and act(life)
                    self.tried += came
                    statuses = life.end()
                    finished = not came
                    self._check_start(life, durable, reached)
                    reached = max(reached, life.last_step())
                if finished and statuses != [0] * len(statuses):
                    self.lost.append(f"a restart ended with {statuses}: {life.said()[-300:]}")
                    break
                durable = max(saved_steps(workdir), default=None)
                self.saving += came and bool(unfinished(workdir) - before)
                self.torn += came and has_torn_line(workdir)
            self.lost += differences(workdir, self.reference.workdir)[:3] if finished else []
            shutil.rmtree(workdir)
            shutil.rmtree(cache_folder(workdir))

    def _check_start(self, life: Life, durable: int | None, reached: int) -> None:
        """A life goes on from the newest checkpoint that was complete when the one before it ended."""
        if not life.last_step():
            return
        if life.resumed_from() != durable:
            self.lost.append(f"went on from {life.resumed_from()}, though {durable} was on disk")
        self.most_repeated = max(self.most_repeated, reached - (durable or 0))

    def moment(self, life: Life) -> bool:
        """Waits for a random moment, half of them in the start-up; False if the run has ended before."""
        training = self.rng.random() < 0.5
        came = life.reach(training, self.rng.uniform(0, _WINDOW if training else self.reference.start_up))
        self.starting += came and not training
        return came

    def row(self, what: str, **found: Any) -> Row:
        """The line of the table."""
        found |= {"runs": self.runs, "steps taken twice at most": self.most_repeated}
        return Row(what, self.tried, self.lost, found)


def kills(folder: Path, rng: random.Random, counts: Counts) -> Row:
    """kill -9 at any moment of one process."""
    campaign = Campaign(undisturbed(folder, counts.run_steps), rng)

    def kill(life: Life) -> bool:
        if not campaign.moment(life):
            return False
        life.processes[0].kill()
        return True

    campaign.disturb(counts.kills, kill)
    return campaign.row("kill -9", **_moments(campaign))


def lost_processes(folder: Path, rng: random.Random, counts: Counts) -> Row:
    """kill -9 of one of two processes, which have four devices each; the other one has to end by itself."""
    campaign = Campaign(undisturbed(folder, counts.run_steps, processes=2, devices=4), rng)

    def kill(life: Life) -> bool:
        if not campaign.moment(life):
            return False
        one = rng.randrange(2)
        life.processes[one].kill()
        if life.end()[1 - one] in (None, 0):
            campaign.lost.append(f"process {1 - one} did not end: {life.said(1 - one)[-300:]}")
        return True

    campaign.disturb(counts.lost_processes, kill)
    return campaign.row("kill -9 of one of 2 processes x 4 devices", **_moments(campaign))


def _moments(campaign: Campaign) -> dict[str, int]:
    return {"in the start-up": campaign.starting, "inside a save": campaign.saving, "torn lines": campaign.torn}


def signals(folder: Path, rng: random.Random, counts: Counts) -> Iterator[Row]:
    """What asks a run to stop: once, it finishes its step and saves; twice, it stops at once."""
    reference = undisturbed(folder, counts.run_steps)
    for name, numbers in {
        "SIGTERM": [signal.SIGTERM],
        "SIGHUP": [signal.SIGHUP],
        "SIGINT": [signal.SIGINT],
        "SIGINT twice": [signal.SIGINT, signal.SIGINT],
    }.items():
        campaign = Campaign(reference, rng)

        def ask(life: Life, campaign: Campaign = campaign, numbers: Sequence[int] = numbers) -> bool:
            if not campaign.moment(life):
                return False
            training = life.last_step() > 0
            for number in numbers:
                life.processes[0].send_signal(number)
                time.sleep(rng.uniform(0, 0.2))
            (status,) = life.end()
            campaign.lost += _wrongly_stopped(life, status, training, twice=len(numbers) > 1)
            campaign.stopped += status == _STOPPED
            return status != 0

        campaign.disturb(counts.signals, ask)
        yield campaign.row(name, **{"in the start-up": campaign.starting, "stopped and saved": campaign.stopped})


def _wrongly_stopped(life: Life, status: int | None, training: bool, twice: bool) -> list[str]:
    """What is wrong with the end of a run that was asked to stop."""
    said = life.said()
    newest = max(saved_steps(life.workdir), default=0)
    if status is not None and "Training loss over" in said:  # the report is the last thing that a run does
        return []
    if status is None or (training and "Traceback" in said):
        return [f"ended with {status}: {said[-300:]}"]
    if status == _STOPPED:
        good = f"stopped and saved at step {newest};" in said and newest >= life.last_step()
        return [] if good else [f"said, with {newest} on disk: {said[-300:]}"]
    if status == 0 or not training:  # it had come to its end, or had not begun
        return []
    good = twice and status == _AT_ONCE and "stopped at once" in said
    return [] if good else [f"exit status {status}: {said[-300:]}"]


def night(folder: Path, rng: random.Random, counts: Counts) -> Row:
    """A long run with a fault every so many steps, beside three seeds of the same run without."""
    steps, every = counts.night_steps, counts.fault_every
    faults = survival_night.faults(steps, every, rng)
    config = small_config(folder, steps, **survival_night.CHANGES)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        nights = [
            pool.apply(survival_night.train_all_night, (config, seed, folder / f"night {number}", planted))
            for number, (seed, planted) in enumerate([(0, faults), (0, []), (1, []), (2, [])])
        ]
    lost = survival_night.losses(nights, faults)
    return Row(f"{steps:,} steps, a fault every {every}", len(faults), lost, survival_night.summary(nights))


CAMPAIGNS: dict[str, Callable[[Path, random.Random, Counts], Row | Iterator[Row]]] = {
    "kills": kills,
    "lost_processes": lost_processes,
    "signals": signals,
    "night": night,
}


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    default_signals()
    path = Path(flags.FLAGS.json) if flags.FLAGS.json else None
    rows: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else {}
    counts = Counts(*(flags.FLAGS[name].value for name in Counts._fields))
    for name in flags.FLAGS.only or CAMPAIGNS:
        folder = Path(tempfile.mkdtemp(prefix="survival"))
        found = CAMPAIGNS[name](folder, random.Random(flags.FLAGS.seed), counts)
        for row in [found] if isinstance(found, Row) else found:
            rows[row.what] = {"tried": row.tried, "lost": row.lost, **row.found}
            print(f"{row.what}: {len(row.lost)} of {row.tried} lost", *row.lost, sep="\n    ", flush=True)
            if path:
                write_json(str(path), rows)
        shutil.rmtree(folder)
    print(as_table(rows))
    if any(row["lost"] for row in rows.values()):
        raise SystemExit(1)


def as_table(rows: dict[str, Any]) -> str:
    """Markdown, a line a campaign."""
    lines = []
    for what, row in rows.items():
        tried, lost, *_ = row.values()
        found = ", ".join(f"{name}: {value}" for name, value in list(row.items())[2:])
        lines.append([what, tried, tried - len(lost), len(lost), found])
    return table(["what", "tried", "survived", "lost", "found"], lines)


if __name__ == "__main__":
    flags.DEFINE_multi_enum("only", [], list(CAMPAIGNS), "Campaigns; without one, all.")
    for field, value in Counts()._asdict().items():
        flags.DEFINE_integer(field, value, "See `Counts`.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of moments and faults.")
    flags.DEFINE_string("json", "", "File for the same table, which keeps the lines of campaigns not chosen.")
    app.run(main)
