"""What would a step of max_aggression cost on 8, 64 and 256 devices?

Command:  python benchmarks/scaling_devices.py [--config=configs/max_aggression.py:seed] [--meshes=8x1,1x8,64x1,256x1]
          [--rows=16] [--json=FILE]

Compiles the training step for so many virtual CPU devices, each mesh ("data" x "fsdp") in a process of its own, and
runs nothing. From the compiled program come the bytes of the state on a device and of what devices send each other;
from the model its FLOPs. The time of a step is then predicted from public figures of three machines, and is a
prediction, not a measurement:

    arithmetic = FLOPs / (peak x UTILISATION),    communication = bytes sent / bandwidth of a device's links
    efficiency = arithmetic / (arithmetic + communication), as if nothing of both overlapped

A ring sends twice (n - 1)/n of an all-reduced array and (n - 1)/n of a gathered one. The CPU's program all-reduces the
gradients of spread weights where accelerators would reduce-scatter them, which sends half as much.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

from absl import app, flags
from collectives import collective_bytes
from ml_collections import config_flags
from timing import table, write_json

from sem_jax.config import Config, build, override
from sem_jax.training.plan import compile_step, make_plan

UTILISATION = 0.3  # of the peak; assumed
# The machine code is never run; these leave what XLA plans as it is.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


class Machine(NamedTuple):
    """Public figures of a device."""

    name: str
    flops: float  # float32 or its fast stand-in, a second
    bandwidth: float  # of all its links to other devices together, bytes a second in one direction
    memory: float  # bytes
    devices: int


# TPU: cloud.google.com/tpu/docs/v5e and v5p, bf16 peak over 6, for XLA makes a float32 product of six bf16 ones.
# Interconnect: 1600 and 4800 Gbit/s a chip, both directions together. H100 SXM: float32 peak, NVLink.
MACHINES = (
    Machine("v5e", 197e12 / 6, 1600e9 / 8 / 2, 16e9, 8),
    Machine("v5p", 459e12 / 6, 4800e9 / 8 / 2, 95e9, 64),
    Machine("H100", 67e12, 450e9, 80e9, 8),
)

_CONFIG = config_flags.DEFINE_config_file("config", "configs/max_aggression.py:seed", "The experiment.")
_MESHES = flags.DEFINE_list("meshes", ["8x1", "1x8", "64x1", "256x1"], "data x fsdp.")
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
    plan = make_plan(configuration(mesh))
    compiled = compile_step(plan)
    turns = plan.config.model.propagator.cg_max_iter
    return {
        "mesh": mesh,
        "devices": plan.layout.mesh.size,
        "state": plan.state_bytes,
        "activations": compiled.memory_analysis().temp_size_in_bytes,
        "flops": plan.flops,
        "tokens": plan.tokens,
        "collectives": collective_bytes(compiled.as_text(), turns),
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


def sent(found: dict[str, Any]) -> float:
    """Bytes that a device of a ring sends in a step."""
    share = (found["devices"] - 1) / found["devices"]
    return share * sum(size * (2 if kind == "all-reduce" else 1) for kind, size in found["collectives"].items())


def efficiency(found: dict[str, Any], machine: Machine) -> float:
    arithmetic = found["flops"] / (machine.flops * UTILISATION)
    return arithmetic / (arithmetic + sent(found) / machine.bandwidth)


def report(results: list[dict[str, Any]]) -> str:
    header = ["mesh", "state, MB", "activations, MB", "tokens a step", "TFLOP a device", "sent, MB"]
    header += [f"{machine.name}, predicted" for machine in MACHINES]
    rows = [
        [
            found["mesh"],
            f"{found['state'] / 1e6:,.0f}",
            f"{found['activations'] / 1e6:,.0f}",
            f"{found['tokens']:,}",
            f"{found['flops'] / 1e12:,.2f}",
            f"{sent(found) / 1e6:,.0f}",
            *(f"{100 * efficiency(found, machine):.1f} %" for machine in MACHINES),
        ]
        for found in results
    ]
    return table(header, rows)


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
