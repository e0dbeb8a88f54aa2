"""The optimizer: complex AdamW, its schedule, Langevin noise and the guard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sem_jax.config.fields import MOST_STEPS, STEEPEST, require, setting, shown


@dataclass(frozen=True)
class OptimizerConfig:
    """Complex AdamW, its schedule, Langevin noise and the guard (docs/mathematics.md, section 2, Optimizer)."""

    learning_rate: float = setting(1.2e-3, "learning rate of the plateau", above=0, at_most=STEEPEST)
    schedule: Literal["wsd", "cosine"] = setting(
        "wsd", "wsd is warm-up, plateau, decay; cosine runs from the warm-up to the last step"
    )
    warmup_steps: int = setting(100, "linear warm-up from 0", unit="steps", at_least=0, at_most=MOST_STEPS)
    decay_steps: int = setting(
        500,
        "last steps of the run, a cosine down to lr_min_ratio (wsd); 0: no decay",
        unit="steps",
        at_least=0,
        at_most=MOST_STEPS,
    )
    lr_min_ratio: float = setting(0.1, "last learning rate, in units of learning_rate", at_least=0, at_most=1)
    matrices: Literal["adam", "muon"] = setting(
        "adam", "what moves the matrices of the layers; all other parameters are Adam's. muon takes no Langevin noise"
    )
    b1: float = setting(0.9, "decay of the first moment", at_least=0, below=1)
    b2: float = setting(0.999, "decay of the second moment", at_least=0, below=1)
    eps: float = setting(1e-8, "added to the root of the second moment", above=0, at_most=1)
    weight_decay: float = setting(0.1, "decoupled weight decay, of matrices only", at_least=0, at_most=1000)
    decay_all: bool = setting(False, "decay every parameter, as the reference does")
    clip_norm: float = setting(1.0, "largest global norm of the gradient; 0: no clipping", at_least=0, at_most=1e12)
    lr_factors: str = setting("", 'learning rate by group, "propagators/edge_weights=0.1,readout=2"; 0 freezes a group')
    decay_factors: str = setting("", "weight decay by group, of parameters that decay at all; 0 switches it off")
    temperature: float = setting(
        0.0, "T of the Langevin noise; 0: noiseless AdamW", unit="nats", at_least=0, at_most=1000
    )
    thermostat: Literal["fixed", "posterior"] = setting(
        "fixed", "fixed keeps temperature; posterior sets T = 1 / number of training tokens"
    )
    noise_floor: float = setting(
        1e-4, "least root of the second moment in the noise's preconditioner", at_least=1e-12, at_most=1000
    )
    noise_cap: float = setting(
        1.0, "largest standard deviation of the noise, in units of the learning rate", above=0, at_most=1e9
    )
    unitary_lambda: float = setting(1e-3, "λ of the log²Z term of the loss", at_least=0, at_most=STEEPEST)
    guard_backoff: float = setting(0.5, "factor of the learning rate after a bad step", above=0, below=1)
    guard_min_scale: float = setting(1e-3, "the guard's scale never falls below this", above=0, at_most=1)
    guard_regrow_steps: int = setting(
        200,
        "clean steps after which the guard's scale doubles again, up to 1",
        unit="steps",
        at_least=1,
        at_most=MOST_STEPS,
    )
    guard_max_consecutive: int = setting(
        20, "bad steps in a row that end the run", unit="steps", at_least=1, at_most=MOST_STEPS
    )
    spike_zscore: float = setting(
        0.0,
        "skip a step whose loss lies this far above the last ones; 0: never",
        unit="robust standard deviations",
        at_least=0,
        at_most=STEEPEST,
    )
    spike_window: int = setting(
        100, "good steps that a spike is measured against", unit="steps", at_least=1, at_most=100_000
    )
    spike_patience: int = setting(
        5,
        "spikes in a row that are skipped; the next one is a new level and is taken",
        unit="steps",
        at_least=1,
        at_most=MOST_STEPS,
    )


def parse_factors(text: str, field: str) -> dict[str, float]:
    """Factors by path, in their order: {"propagators": 0.1, "readout": 2.0} from "propagators=0.1, readout=2".

    Args:
      text: pairs PATH=FACTOR with commas between them; empty: there are none.
      field: where the text stands, for the message.

    Raises:
      ConfigError: an entry is no such pair, its factor is negative or not finite, or a path comes twice.
    """
    factors: dict[str, float] = {}
    for entry in text.split(",") if text.strip() else ():
        path, _, value = map(str.strip, entry.partition("="))
        try:
            factor = float(value)
        except ValueError:
            factor = math.nan
        require(
            path != "" and math.isfinite(factor) and factor >= 0,
            f"{field}: {shown(entry.strip())} must be PATH=FACTOR with a finite factor >= 0, such as readout=0.5",
        )
        require(path not in factors, f"{field} gives {path:.80} twice; keep one of the two")
        factors[path] = factor
    return factors
