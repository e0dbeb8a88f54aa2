"""Where does the time of a training step go, and how far is each component from what the machine can do?

Command:  python benchmarks/components.py [--shapes=char,d256] [--seconds=2] [--remat=none] [--solver=dense]
          [--json=FILE]

Times each component of the default model alone, forward and forward with backward (the vector-Jacobian product of a
cotangent to its parameters and its input): one layer of it, compiled by itself, times the number of layers. "all
mixers" and "all propagators" are the loops over the layers as the model runs them. Beside them stand the FLOPs that a
component needs (`benchmarks/flops.py`), the rate at which it does them, and its floor: the time in which the machine's
own matrix product would do these FLOPs, or a copy would move the bytes that the component must read and write,
whichever is longer. Alone, a component is not fused with its neighbours and its data stay in the cache, so the sum of
the parts is not the whole step, which stands last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from absl import app, flags
from contenders import model_passes, optimizer_update, training_step
from flops import needed, step_costs
from parts import parts_of, passes
from shapes import SHAPES, configuration, shape_of
from timing import Machine, Timing, interleaved, machine, milliseconds, table, write_json

from sem_jax.config import Config
from sem_jax.modules.cost import Cost
from sem_jax.modules.model import abstract_model

_SHAPES = flags.DEFINE_list("shapes", ["char", "d256"], "Names of shapes, of benchmarks/shapes.py.")
_SECONDS = flags.DEFINE_float("seconds", 2.0, "Time for each measurement.")
_REMAT = flags.DEFINE_string("remat", "none", "What the backward pass recomputes.")
_SOLVER = flags.DEFINE_string("solver", "dense", "Of the Cayley step.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")


class Measured(NamedTuple):
    """Of one component in a whole step, all layers."""

    forward: Timing | None
    training: Timing
    flops: float
    floor: float  # seconds


def cost_of(name: str, config: Config) -> Cost:
    """Of a component in a whole step; a whole layer's inputs and outputs are those of one wave."""
    costs = step_costs(config)
    kind = name.removeprefix("one of ").removeprefix("all ")
    if kind != name:
        block, tokens = abstract_model(config.model).merge().blocks[kind], shape_of(config).tokens
        merged, ends = [costs[part] for part in block.costs(tokens)], [costs["norm"]]
    else:
        merged = ends = [cost for part, cost in costs.items() if part == name or part.startswith(f"{name}/")]
    return Cost(
        forward=sum(cost.forward for cost in merged),
        backward=sum(cost.backward for cost in merged),
        inputs=sum(cost.inputs for cost in ends),
        outputs=sum(cost.outputs for cost in ends),
    )


def measure(config: Config, host: Machine, seconds: float) -> dict[str, Measured]:
    """Of every component, of the whole gradient and of the whole step."""
    costs, results = step_costs(config), {}
    for name, part in parts_of(config).items():
        times = interleaved(passes(part), seconds)
        scaled = [Timing(*(part.repeats * s for s in t[:3]), t.calls) for t in times.values()]
        results[name] = measured(cost_of(name, config), *scaled, host)
    whole = {"optimizer": optimizer_update(config), "step": training_step(config).call} | model_passes(config)
    times = interleaved(whole, 2 * seconds)
    total = Cost(needed(config), 0)
    results["optimizer"] = measured(costs["optimizer"], None, times["optimizer"], host)
    results["whole gradient"] = measured(total, times["forward"], times["training"], host)
    results["whole step"] = measured(total, None, times["step"], host)
    return results


def measured(cost: Cost, forward: Timing | None, training: Timing, host: Machine) -> Measured:
    return Measured(forward, training, cost.training, max(cost.training / host.gemm, cost.traffic / host.copy_rate))


def report(config: Config, host: Machine, results: dict[str, Measured]) -> str:
    step = results["whole step"]
    rows = [
        [
            name,
            milliseconds(m.forward) if m.forward else "",
            milliseconds(m.training),
            f"{100 * m.training.median / step.training.median:.0f}",
            f"{m.flops / 1e6:,.0f}",
            f"{m.flops / m.training.median / 1e9:.1f}",
            f"{1e3 * m.floor:.2f}",
            f"{m.training.median / m.floor:.1f}",
        ]
        for name, m in results.items()
    ]
    header = ["component, all layers", "forward, ms", "with backward, ms", "% of step", "MFLOP", "GFLOP/s"]
    speed, rate = (amount / step.training.median for amount in (shape_of(config).tokens, step.flops))
    summary = f"{speed:,.0f} tokens/s; {100 * rate / host.gemm:.0f} % of the matrix-product rate"
    return table([*header, "floor, ms", "times floor"], rows) + "\n\n" + summary


def main(argv: list[str]) -> None:
    del argv
    host = machine()
    print(host.describe(), flush=True)
    saved: dict[str, Any] = {"machine": host}
    for name in _SHAPES.value:
        config = configuration(SHAPES[name], {"remat": _REMAT.value, "propagator.solver": _SOLVER.value})
        saved[name] = measure(config, host, _SECONDS.value)
        print(f"\n{name}: {SHAPES[name]}, remat {_REMAT.value}\n\n{report(config, host, saved[name])}", flush=True)
    if _JSON.value:
        write_json(_JSON.value, saved)


if __name__ == "__main__":
    app.run(main)
