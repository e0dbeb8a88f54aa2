"""What would a step of max_aggression cost on 8, 64 and 256 devices?

Command:  python benchmarks/scaling_devices.py [--config=configs/max_aggression.py:seed]
          [--meshes=8x1,1x8,64x1,1x64,256x1] [--rows=16] [--json=FILE]

Compiles the training step for so many virtual CPU devices, each mesh ("data" x "fsdp") in a process of its own, and
runs nothing; a mesh takes one or two minutes, whatever its size. From the compiled program come the bytes that a device
holds and what devices send each other; from the model its FLOPs. The time of a step is then predicted from the public
figures in machines.py, and is a prediction, not a measurement.

The CPU's program all-reduces the gradients of spread weights where accelerators would reduce-scatter them, which sends
half as much.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from absl import app, flags
from collectives import collective_bytes
from machines import MACHINES, predict, sent
from ml_collections import config_flags
from timing import table, write_json

from sem_jax.config import Config, build, override
from sem_jax.training.plan import compile_step, make_plan

# The machine code is never run; these leave what XLA plans as it is.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

_CONFIG = config_flags.DEFINE_config_file("config", "configs/max_aggression.py:seed", "The experiment.")
_MESHES = flags.DEFINE_list("meshes", ["8x1", "1x8", "64x1", "1x64", "256x1"], "data x fsdp.")
_ROWS = flags.DEFINE_integer("rows", 16, "Sequences of a device in a pass.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")
_CHILD = flags.DEFINE_bool("child", False, "Compile the one mesh and print its numbers; for internal use.")


def configuration(mesh: str) -> Config:
    """The experiment on a mesh, with as many sequences in a pass as its devices take."""
    data, fsdp = map(int, mesh.split("x"))
    values = _CONFIG.value.to_dict()
    rows = _ROWS.value * data * fsdp
    batch = max(values["training"]["global_batch"] // rows, 1) * rows
    changes = {"training.micro_batch": rows, "training.global_batch": batch}
    return build(override(values, changes | {"mesh.data": data, "mesh.fsdp": fsdp}))


def measure(mesh: str) -> dict[str, Any]:
    """What a device of the mesh holds, computes and sends in a step; bytes, and FLOPs without recomputation."""
    plan = make_plan(configuration(mesh))
    compiled = compile_step(plan)
    found = collective_bytes(compiled.as_text(), unknown_turns=plan.config.model.propagator.cg_max_iter)
    return {
        "mesh": mesh,
        "devices": plan.layout.mesh.size,
        "state": plan.state_bytes,
        "activations": compiled.memory_analysis().temp_size_in_bytes,
        "flops": plan.flops,
        "tokens": plan.tokens,
        "collectives": found,
        "sent": sent(found, plan.layout.mesh.size),
    }


def in_child(mesh: str) -> dict[str, Any]:
    """`measure` in a process that sees as many devices as the mesh needs."""
    data, fsdp = map(int, mesh.split("x"))
    options = f"--xla_force_host_platform_device_count={data * fsdp} {_QUICK}"
    environment = os.environ | {"XLA_FLAGS": options, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*sys.orig_argv, f"--meshes={mesh}", "--child"], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def report(results: list[dict[str, Any]]) -> str:
    """What each mesh needs, and what the machines with as many devices would make of it."""
    header = ["mesh", "state, MB", "activations, MB", "tokens a step", "TFLOP a device", "sent, MB"]
    rows = [
        [
            found["mesh"],
            f"{found['state'] / 1e6:,.0f}",
            f"{found['activations'] / 1e6:,.0f}",
            f"{found['tokens']:,}",
            f"{found['flops'] / 1e12:,.2f}",
            f"{found['sent'] / 1e6:,.0f}",
        ]
        for found in results
    ]
    return table(header, rows) + "\n\n" + predictions(results)


def predictions(results: list[dict[str, Any]]) -> str:
    """The table of the machines."""
    rows = []
    for machine in MACHINES:
        for found in results:
            if found["devices"] != machine.devices:
                continue
            step = predict(machine, found["flops"], found["sent"])
            memory = (found["state"] + found["activations"]) / machine.memory
            times = (f"{1e3 * seconds:,.1f}" for seconds in step)
            rows.append(
                [machine.name, found["mesh"], f"{100 * memory:.0f} %", *times, f"{100 * step.efficiency:.1f} %"]
            )
    return table(["predicted for", "mesh", "memory", "arithmetic, ms", "communication, ms", "efficiency"], rows)


def main(argv: list[str]) -> None:
    del argv
    if _CHILD.value:
        print(json.dumps(measure(_MESHES.value[0])))
        return
    results = [in_child(mesh) for mesh in _MESHES.value]
    print(report(results))
    if _JSON.value:
        write_json(_JSON.value, results)


if __name__ == "__main__":
    app.run(main)
