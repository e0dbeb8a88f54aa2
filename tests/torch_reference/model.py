"""The whole model: encoder, L mixers, L propagator layers, norm, readout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .encoder import Encoder
from .layers import Norm
from .mixer import Mixer, SelectiveSSM
from .propagator import Propagator
from .readout import BornReadout

NUM_SCALES = 3


@dataclass(frozen=True)
class Settings:
    """Sizes and semantics; the values given here are the default semantics (docs/mathematics.md, section 3)."""

    vocab_size: int
    hidden_dim: int
    num_layers: int
    max_seq_length: int = 2048
    transport: str = "row_softmax"  # "sequence_sinkhorn" in the reference
    embedding_skip: bool = True  # False in the reference
    sdr_candidates: int = 128
    sdr_sparsity: int = 32
    cost_dim: int = 64
    sinkhorn_epsilon: float = 0.05
    sinkhorn_max_iter: int = 50
    sinkhorn_tol: float = 1e-3
    sinkhorn_prior: float = 128.0
    block_size: int = 8
    conv_width: int = 4
    num_groups: int = 8
    state_dim: int = 16
    input_scale: str = "dt"  # or "unit_variance"
    clamp_interval: int = 0  # 256 in the reference
    cayley_dt: float = 0.1
    kerr_saturation: float = 0.1  # 0 in the reference
    likelihood: str = "born"  # or "reference"
    born_floor: float = 1e-6
    unitary_lambda: float = 1e-3


class SEM(nn.Module):
    """The Signal-Entropic Model.

    Args:
      settings: sizes and semantics.
      edges: for each layer the three edge lists [2, E_k] of its graphs.
    """

    def __init__(self, settings: Settings, edges: Sequence[Sequence[Tensor]]):
        super().__init__()
        s, dim = settings, settings.hidden_dim
        self.settings = s
        self.encoder = Encoder(
            vocab_size=s.vocab_size,
            dim=dim,
            max_seq_length=s.max_seq_length,
            transport=s.transport,
            embedding_skip=s.embedding_skip,
            num_candidates=s.sdr_candidates,
            sparsity=s.sdr_sparsity,
            cost_dim=s.cost_dim,
            epsilon=s.sinkhorn_epsilon,
            max_iter=s.sinkhorn_max_iter,
            tol=s.sinkhorn_tol,
            prior=s.sinkhorn_prior,
        )
        self.mamba_layers = nn.ModuleList(
            Mixer(
                dim,
                s.block_size,
                s.conv_width,
                SelectiveSSM(dim, s.num_groups, s.state_dim, s.input_scale, s.clamp_interval),
            )
            for _ in range(s.num_layers)
        )
        self.propagator = Propagator(dim, edges, s.cayley_dt, s.kerr_saturation)
        self.final_norm = Norm(dim)
        self.sampler = BornReadout(dim, s.vocab_size)

    @classmethod
    def from_state_dict(cls, settings: Settings, state: Mapping[str, Tensor]) -> SEM:
        """A model with the graphs and parameters of a state dict, in the default dtype; other buffers are optional.

        Raises:
          KeyError: a parameter is missing, or an entry has no place.
        """
        name = "propagator.layers.{}.hamiltonian.scales.{}.edge_indices"
        edges = [[state[name.format(layer, k)] for k in range(NUM_SCALES)] for layer in range(settings.num_layers)]
        model = cls(settings, edges)
        missing, unexpected = model.load_state_dict(state, strict=False)
        misfits = [*unexpected, *(name for name in missing if name in dict(model.named_parameters()))]
        if misfits:
            raise KeyError(f"missing or unexpected in the state dict: {', '.join(misfits)}")
        return model

    def forward(self, tokens: Tensor, resets: Tensor | None = None, token_freqs: Tensor | None = None) -> Tensor:
        """Tokens [B, S] to ψ [B, S, D]; resets [B, S] bool is True where a document starts, None for one document."""
        position = document_positions(tokens, resets)
        psi = self.encoder(tokens, position, token_freqs)
        for mixer in self.mamba_layers:
            psi = mixer(psi, None if resets is None else position)
        return self.final_norm(self.propagator(psi))

    def token_loss(self, psi: Tensor, targets: Tensor) -> Tensor:
        """Loss of each target [B, S] given ψ [B, S, D], [B, S]."""
        s = self.settings
        if s.likelihood == "reference":
            return self.sampler.reference_loss(psi, targets, s.unitary_lambda)
        return self.sampler.born_loss(psi, targets, s.unitary_lambda, s.born_floor)

    def loss(
        self,
        inputs: Tensor,
        targets: Tensor,
        resets: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Mean loss over targets [B, S], weighted by weights [B, S] where given."""
        loss = self.token_loss(self(inputs, resets), targets)
        return loss.mean() if weights is None else (weights * loss).sum() / weights.sum()


def document_positions(tokens: Tensor, resets: Tensor | None = None) -> Tensor:
    """Position of each token [B, S] in its document; a row starts one, and so does every reset [B, S]."""
    batch, length = tokens.shape
    index = torch.arange(length, device=tokens.device).expand(batch, length)
    if resets is None:
        return index
    return index - torch.where(resets, index, 0).cummax(dim=1).values
