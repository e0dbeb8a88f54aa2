"""The Signal-Entropic Model in plain PyTorch, written from the equations alone: what sem_jax is compared with.

Loops over time, dense linear solves, logits over the whole vocabulary, autograd. Parameters carry the names of the
original's state dict (docs/mathematics.md, section 6), so `state_dict()` of a model in reference semantics is a file of
that format.

Shapes: B batch, S sequence, D hidden, V vocabulary, M candidates, P cost dimension, G groups, d = D/G, N states of a
group, b spinor block, K taps, L layers.
"""

from .model import SEM, Settings, document_positions
from .optimizer import ComplexAdamW, warmup_stable_decay

__all__ = ["SEM", "ComplexAdamW", "Settings", "document_positions", "warmup_stable_decay"]
