"""Scripts in benchmarks/ import each other by name, as they do when they are run."""

import pathlib
import sys

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "stability")]
