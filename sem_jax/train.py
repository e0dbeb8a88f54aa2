"""Trains a model: python -m sem_jax.train --config=configs/quickstart.py --workdir=runs/quickstart."""

from __future__ import annotations

import sys

from absl import app, flags
from ml_collections import config_flags

from sem_jax.cli import LastingOutput, parse_flags, reporting_errors, this_command
from sem_jax.config import build
from sem_jax.config.describe import help_text
from sem_jax.report import write_report
from sem_jax.training.host import keep_freed_memory
from sem_jax.training.loop import train
from sem_jax.training.plan import describe, make_plan
from sem_jax.training.processes import all_or_none, is_first, joined

_UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h: `train && evaluate` must not go on with half a run
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"Experiment, such as configs/quickstart.py. Any field of it can be given, too:\n{help_text()}"
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: metrics, checkpoints, configuration.", required=True
)


_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0, where several processes train one model; TPU pods, Slurm and Open MPI "
    "need none of these flags.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.", lower_bound=0)
_JOIN_TIMEOUT = flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Only print parameters, memory, arithmetic and tokens of a step; train nothing, write nothing."
)
_FALLBACK = flags.DEFINE_bool(
    "fallback", False, "Go on from the newest checkpoint that is intact where newer ones are damaged; they are renamed."
)

_RESCUE = flags.DEFINE_bool(
    "rescue",
    False,
    "Let a run that diverges go on from its newest sound checkpoint with the report's remedies, one after the other: "
    "learning rate 6e-4 (or half of a lower one), temperature 0, 10 iterations of CG.",
)


@reporting_errors
def main(argv: list[str]) -> None:
    """Runs the command line."""
    del argv
    keep_freed_memory()
    with joined(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _JOIN_TIMEOUT.value):
        with all_or_none():
            config = build(_CONFIG.value)
        if _DRY_RUN.value:
            said = describe(make_plan(config))  # by all: compiling takes longer than the others would wait at their end
            if is_first():
                print(said)
            return
        with LastingOutput(sys.stdout) as output:
            result = train(config, _WORKDIR.value, fallback=_FALLBACK.value, unread=output.unread, rescue=_RESCUE.value)
            if is_first() and result.finished:
                print(write_report(_WORKDIR.value))
            elif is_first():
                message = f"stopped and saved at step {result.step}; go on with: {this_command()}"
                print(message, file=sys.stderr if output.lost else output)
            output.flush()
    if not result.finished:
        sys.exit(_UNFINISHED)
    if output.lost is not None:
        raise output.lost


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)
