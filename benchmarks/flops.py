"""How much arithmetic does a training step need, component by component?

Command:  python benchmarks/flops.py [char d128 d256 max_aggression]

A model, not a measurement: what each module says of itself (`sem_jax.modules.cost`), and the optimizer. What is
computed again (`remat`) does not count, and what is computed only to be reported stands apart. Tests compare the model
with XLA's own count.
"""

from __future__ import annotations

from absl import app
from shapes import SHAPES, configuration, shape_of
from timing import table

from sem_jax.config import Config
from sem_jax.modules.cost import FLOAT, Cost
from sem_jax.modules.model import abstract_model, count_parameters

ADAM_PASSES = 7  # reads gradient, parameter and two moments, writes three of them
REPORTED_ONLY = ("cayley/residual",)


def optimizer(num_parameters: int) -> Cost:
    """Guard and AdamW: no products, but all parameters and moments are read and written."""
    return Cost(0, 0, 0, ADAM_PASSES * FLOAT * num_parameters / 2)


def step_costs(config: Config) -> dict[str, Cost]:
    """Every component of one training step, all layers together."""
    parts = abstract_model(config.model)
    costs = parts.merge().costs(shape_of(config).tokens)
    return costs | {"optimizer": optimizer(count_parameters(parts.params))}


def needed(config: Config) -> float:
    """FLOPs of a training step without what is only reported."""
    return sum(cost.training for name, cost in step_costs(config).items() if name not in REPORTED_ONLY)


def breakdown(config: Config) -> str:
    """Table of the components."""
    costs = step_costs(config)
    tokens, total = shape_of(config).tokens, needed(config)
    rows = [
        [
            name,
            f"{cost.forward / 1e6:,.1f}",
            f"{cost.training / 1e6:,.1f}",
            "reported only" if name in REPORTED_ONLY else f"{100 * cost.training / total:.1f}",
            f"{cost.traffic / 1e6:,.1f}",
        ]
        for name, cost in costs.items()
    ]
    title = f"{total / 1e9:.2f} GFLOP a step, {total / tokens / 1e6:.1f} MFLOP a token"
    return title + "\n\n" + table(["component", "forward, MFLOP", "training, MFLOP", "share, %", "traffic, MB"], rows)


def main(argv: list[str]) -> None:
    for name in argv[1:] or SHAPES:
        print(f"\n{name}: {SHAPES[name]}: {breakdown(configuration(SHAPES[name]))}")


if __name__ == "__main__":
    app.run(main)
