"""What all errors of this package have in common."""


class SemJaxError(Exception):
    """An error whose cause lies outside the code: a configuration, a file, a run. The message names the cure.

    Each layer has its own: `ConfigError`, `DataError`, `InteropError`, `CheckpointError`, `MetricsError` and
    `TrainingDiverged`. The commands print any of them as one line.
    """
