"""10,000 steps at the seed recipe's learning rate 1.2e-3 and temperature 1e-5: does a small model stay finite?

The optimizer of max_aggression (warm-up 1000, weight decay 0.1, clipping at 1, Langevin noise; the decay is the last
1000 steps) and its propagator (CG, 8 iterations, dt 0.1, sparsity 8) on a model small enough for one core, with the
seed's mixer of fixed B and C and the Born readout.
docs/stability.md tells what came of it.

Command:  python -m sem_jax.train --config=configs/ten_thousand_steps.py --workdir=runs/ten_thousand_steps
"""

from ml_collections import ConfigDict

from sem_jax.config import default


def get_config() -> ConfigDict:
    """The experiment."""
    config = default()
    config.name = "ten_thousand_steps"
    config.model.update(hidden_dim=64, num_layers=4, likelihood="born", layout="mixers_first")
    config.model.encoder.update(transport="row_softmax", position_phase=True)
    config.model.mixer.kind = "fixed"
    config.model.propagator.update(solver="cg", cayley_dt=0.1, cg_max_iter=8, solver_tol=1e-7, laplacian_sparsity=8)
    config.model.propagator.update(nonlinear_alpha=0.1, kerr_saturation=0.0)
    config.optimizer.update(
        learning_rate=1.2e-3, warmup_steps=1000, decay_steps=1000, lr_min_ratio=0.1, weight_decay=0.1, clip_norm=1.0
    )
    config.optimizer.temperature = 1e-5
    config.data.update(tokenizer="byte", seq_length=32)
    config.training.update(max_steps=10_000, global_batch=8, micro_batch=8)
    config.training.update(log_every=20, eval_every=1000, eval_batches=64, checkpoint_every=5000)
    config.sampling.update(prompt="def ", max_tokens=80, temperature=0.7)
    return config
