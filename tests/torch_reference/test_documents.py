"""What a reset means: each document of a row is computed as if it stood alone."""

from __future__ import annotations

import pytest
import torch

from . import SEM, Settings

LENGTHS = (5, 1, 7)


@pytest.mark.parametrize("transport", ["none", "row_softmax", "causal_sinkhorn"])
def test_documents_of_one_row_do_not_see_each_other(transport):
    torch.manual_seed(0)
    settings = Settings(
        vocab_size=11,
        hidden_dim=8,
        num_layers=2,
        max_seq_length=16,
        transport=transport,
        sdr_candidates=6,
        sdr_sparsity=3,
        cost_dim=4,
        sinkhorn_max_iter=3,
        sinkhorn_prior=2.0,
        block_size=4,
        conv_width=3,
        num_groups=2,
        state_dim=3,
        clamp_interval=2,
    )
    ring = torch.stack([torch.arange(8), torch.arange(1, 9) % 8])
    model = SEM(settings, [[ring] * 3] * 2).double()
    tokens = torch.randint(0, 11, (1, sum(LENGTHS)))
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[0, [0, LENGTHS[0], LENGTHS[0] + LENGTHS[1]]] = True
    together = model(tokens, starts)
    alone = torch.cat([model(document) for document in tokens.split(LENGTHS, dim=1)], dim=1)
    # Other orders of sums: a few roundings of 1e-16 in each of some ten operations.
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)
