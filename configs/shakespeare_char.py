"""Shakespeare by characters in nanoGPT's CPU budget: 2000 steps of 12 x 64 characters, at most 0.8 M parameters.

Command:  python -m sem_jax.train --config=configs/shakespeare_char.py --workdir=runs/shakespeare \
              --config.data.path=FILE
with FILE the usual tiny Shakespeare (1,115,394 characters). First 90 % of the characters train, the last 10 %
validate, on random windows, as nanoGPT does (which publishes 1.88 nats a character for this budget).

Reaches 1.5363 nats with 793,137 parameters, the mean of seeds 0 to 2 (1.5389, 1.5356, 1.5345). With a position phase it
was 1.5481 (1.5413, 1.5505, 1.5524). With that and a weight decay of 0.1 it was 1.5561; with Adam, an amplitude gate and
a transport plan 1.5811 with 752,077 parameters; with the fixed mixer and the Born readout 1.7873 with 729,437.
"""

from ml_collections import ConfigDict

from sem_jax.config import default


def get_config() -> ConfigDict:
    """The experiment."""
    config = default()
    config.name = "shakespeare_char"
    config.data.update(source="text", split="tail", validation_fraction=0.1)
    config.data.update(tokenizer="char", packing="windows", seq_length=64)
    config.model.update(hidden_dim=160, num_layers=4, layout="interleaved")
    config.model.mixer.update(num_heads=8, state_dim=32)
    config.optimizer.update(matrices="muon", learning_rate=5e-3, b2=0.99, weight_decay=0.3)
    config.optimizer.update(warmup_steps=100, decay_steps=1500, lr_min_ratio=0.03)
    config.training.update(max_steps=2000, global_batch=12, micro_batch=12, eval_every=250, eval_batches=100)
    config.sampling.update(prompt="\n", max_tokens=400)
    return config
