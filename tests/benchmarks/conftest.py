"""Scripts in benchmarks/ import each other by name, as they do when they are run."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
