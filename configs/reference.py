"""The arithmetic of the PyTorch original as it stood on 2026-02-01, with its linear solve done exactly.

Not a recommendation: Sinkhorn over the whole sequence lets the future into the past, and the loss is not a likelihood
(docs/mathematics.md, section 3, lists each difference and its consequence). It exists for parity and for imported
checkpoints.

Command:  python -m sem_jax.train --config=configs/reference.py --workdir=runs/reference
Cost:     about that of quickstart at equal size.
"""

from ml_collections import ConfigDict

from sem_jax.config import default


def get_config() -> ConfigDict:
    """The experiment."""
    config = default()
    config.name = "reference"
    config.model.update(likelihood="reference", layout="mixers_first")
    config.model.encoder.update(transport="sequence_sinkhorn", position_phase=True, embedding_skip=False)
    config.model.mixer.update(kind="fixed", ssm_init="fast", input_scale="dt", clamp_interval=256)
    config.model.propagator.update(solver="dense", cayley_dt=0.1, kerr_saturation=0.0)
    config.optimizer.update(unitary_lambda=0.1, weight_decay=0.1, decay_all=True)
    config.data.reset_at_boundary = False
    config.training.max_steps = 1000
    return config
