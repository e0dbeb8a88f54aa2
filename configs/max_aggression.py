"""The seed recipe, with its fixes: D256 L16 G16 N128, 32768-token BPE, lr 1.2e-3.

Reproduces: the configuration whose PyTorch training went NaN, with cg_max_iter 3 -> 8 on the Hermitian system,
temperature 1e-4 -> 1e-5 and the guard. Mixer and readout are the original's, not the default's. If a run is still
unstable, change in this order: optimizer.learning_rate = 6e-4, optimizer.temperature = 0,
model.propagator.cg_max_iter = 10 (`sem-jax train --rescue` does). The variant without a name begins without noise: at
every temperature that was tried it only cost (docs/arena.md, Sampling).

Variants, as `--config=configs/max_aggression.py:NAME`; the model is the same in all of them, and T = 1e-5 in those with
a name:
  (none)       for one small machine: 1000 steps of 4 x 256 = 1024 tokens on the Python standard library, without a
               teacher; 4 to 9 s a step on two CPU cores that were shared, so an hour or two
  seed         the seed's batch and stages, with a teacher: 100,000 steps of 4096 x 1024 = 4.2 M tokens, and from step
               50,000 on 4096 x 2048 = 8.4 M, 629 billion in all
  fineweb_edu  the same on the seed's dataset, read while training (`pip install '.[hf]'`), documents with a
               quality score of at least 3
  smoke        3 real optimizer steps on CPU at full learning rate: one batch of 2 x 64, repeated

With a teacher the model learns from its own average too, weighted by 1/2, so the loss starts at half the likelihood's
(`nll`), and validation and samples use the average. In 1000 steps the average would still hold the start.

Command:  python -m sem_jax.train --config=configs/max_aggression.py --workdir=runs/max_aggression
Cost:     the seed's batch is meant for many GPUs or TPUs, and for a corpus of its size: the standard library holds less
          than one such step.
"""

from ml_collections import ConfigDict

from sem_jax.config import ConfigError, default


def get_config(variant: str = "") -> ConfigDict:
    """The experiment, or one of its variants."""
    config = default()
    config.name = f"max_aggression:{variant}" if variant else "max_aggression"
    config.model.update(hidden_dim=256, num_layers=16, max_seq_length=2048, remat="layers")
    config.model.update(likelihood="born", layout="mixers_first")  # the original's readout and order of layers
    config.model.encoder.update(transport="row_softmax", position_phase=True)
    config.model.encoder.update(sdr_candidates=128, sdr_sparsity=32)
    config.model.mixer.update(kind="fixed", block_size=8, conv_width=4, num_groups=16, state_dim=128)
    config.model.propagator.update(solver="cg", cayley_dt=0.1, cg_max_iter=8, solver_tol=1e-7, laplacian_sparsity=8)
    config.model.propagator.update(nonlinear_alpha=0.1, kerr_saturation=0.0)
    config.optimizer.update(learning_rate=1.2e-3, lr_min_ratio=0.1, weight_decay=0.1, clip_norm=1.0)
    config.data.update(tokenizer="bpe", bpe_vocab_size=32_768)
    config.sampling.update(top_k=50, top_p=0.95)
    if variant:
        config.optimizer.temperature = 1e-5
    match variant:
        case "":
            _small_machine(config)
        case "seed":
            _seed_batch(config)
        case "fineweb_edu":
            _seed_batch(config)
            config.data.update(source="hf", path="HuggingFaceFW/fineweb-edu", hf_config="sample-10BT", stream=True)
            config.data.update(score_field="score", min_score=3.0, max_documents=1_000_000)
        case "smoke":
            config.data.seq_length = 64
            config.optimizer.update(warmup_steps=0, decay_steps=0)
            config.training.update(max_steps=3, global_batch=2, micro_batch=2, overfit_batches=1, log_every=1)
            config.training.update(health_every=1, eval_every=3, eval_batches=1, checkpoint_every=3)
            config.sampling.max_tokens = 32
        case _:
            raise ConfigError(
                f"configs/max_aggression.py has no variant {variant!r}; choose seed, fineweb_edu or smoke, or none"
            )
    return config


def _small_machine(config: ConfigDict) -> None:
    config.data.seq_length = 256
    config.optimizer.update(warmup_steps=100, decay_steps=200)
    config.training.update(max_steps=1000, global_batch=4, micro_batch=4)
    config.training.update(log_every=5, eval_every=100, eval_batches=8, checkpoint_every=100)


def _seed_batch(config: ConfigDict) -> None:
    config.data.seq_length = 1024
    config.optimizer.update(warmup_steps=1000, decay_steps=10_000)
    config.training.update(max_steps=100_000, global_batch=4096, micro_batch=128, stages="50_000:2048")
    config.training.update(ema_decay=0.9999, ema_decay_start=0.99, ema_decay_steps=10_000)
    config.training.update(distill_weight=0.5, distill_temperature=1.5)
    config.training.update(log_every=5, eval_every=1000, health_every=50, checkpoint_every=1000, keep_checkpoints=5)
