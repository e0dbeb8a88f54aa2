"""Everything that a model says about given tokens, to be compared with another implementation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sem_jax.modules.model import ModelParts
from sem_jax.training.loss import log_partition, token_losses


def token_outputs(
    parts: ModelParts, tokens: np.ndarray, token_freqs: np.ndarray | None, unitary_lambda: float
) -> dict[str, np.ndarray]:
    """What the readout makes of tokens, and its means over the positions that have a successor.

    Args:
      parts: the model.
      tokens: [B, S] int, S >= 2, each row a document.
      token_freqs: [V], optional frequencies for the transport cost.
      unitary_lambda: λ of the log²Z term.

    Returns:
      `amp_sq` [B, S, V]: a = |W·ψ|². `logits` [B, S, V]: under the reference likelihood log(a + 1e-6·mean(a) + 1e-30)
      + β, otherwise log P. Scalars: `loss`, what training under the model's likelihood minimises; `nll`, −log P of the
      normalised distribution in nats; `unitary_divergence`, log²Z, which λ multiplies in the loss.
    """
    freqs = None if token_freqs is None else jnp.asarray(token_freqs)
    with jax.default_matmul_precision("highest"):  # accelerators round float32 products to ten bits otherwise
        outputs = jax.jit(_outputs)(parts, jnp.asarray(tokens), freqs, unitary_lambda)
    return jax.device_get(outputs)


def _outputs(parts: ModelParts, tokens: Array, token_freqs: Array | None, unitary_lambda: float) -> dict[str, Array]:
    model = parts.merge()
    psi, _, _ = model(tokens, token_freqs=token_freqs)
    is_reference = model.config.likelihood == "reference"
    logits, amplitude_sq = model.readout.reference_logits(psi)
    loss, nll = token_losses(model, psi[:, :-1], tokens[:, 1:], unitary_lambda)
    return {
        "logits": logits if is_reference else model.readout.log_probs(psi),
        "amp_sq": amplitude_sq,
        "loss": jnp.mean(loss),
        "nll": jnp.mean(nll),
        "unitary_divergence": jnp.mean(jnp.square(log_partition(model, psi[:, :-1], tokens[:, 1:]))),
    }
