"""Shakespeare by characters in nanoGPT's CPU budget: 2000 steps of 12 x 64 characters, at most 0.8 M parameters.

Command:  python -m sem_jax.train --config=configs/shakespeare_char.py --workdir=runs/shakespeare \
              --config.data.path=FILE
with FILE the usual tiny Shakespeare (1,115,394 characters). First 90 % of the characters train, the last 10 % validate.
An epoch is a shuffled pass over all pieces of 64 characters, so that in 1.5 epochs every character is learned from.
nanoGPT, which publishes 1.88 nats a character for this budget, draws its windows with replacement (`packing="windows"`
here), which passes over a fifth of them. docs/results.md has the figures.
"""

from ml_collections import ConfigDict

from sem_jax.config import default


def get_config() -> ConfigDict:
    """The experiment."""
    config = default()
    config.name = "shakespeare_char"
    config.data.update(source="text", split="tail", validation_fraction=0.1)
    config.data.update(tokenizer="char", packing="documents", seq_length=64)
    config.model.update(hidden_dim=160, num_layers=4, layout="interleaved", scan_layers=False)
    config.model.mixer.update(num_heads=8, state_dim=32)
    config.optimizer.update(matrices="muon", learning_rate=5e-3, b2=0.99, weight_decay=0.3)
    config.optimizer.update(warmup_steps=100, decay_steps=1500, lr_min_ratio=0.03)
    # 146 batches are all of the held-out text.
    config.training.update(max_steps=2000, global_batch=12, micro_batch=12, eval_every=500, eval_batches=146)
    config.sampling.update(prompt="\n", max_tokens=400)
    return config
