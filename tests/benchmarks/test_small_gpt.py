"""The transformer that training is compared with: causal, of the size that was asked for, untrained at log V."""

from __future__ import annotations

import math

import pytest
import torch
from small_gpt import HEADS, SmallGPT, matching_dim, num_parameters

VOCAB, DIM, LAYERS, LENGTH = 29, 32, 2, 16


@pytest.fixture
def model() -> SmallGPT:
    torch.manual_seed(0)
    return SmallGPT(VOCAB, DIM, LAYERS, LENGTH)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def test_no_output_depends_on_later_tokens(model, tokens):
    embedded = []

    def keep(module, inputs, output):
        del module, inputs
        output.retain_grad()
        embedded.append(output)

    model.embedding.register_forward_hook(keep)
    position = 5
    model(tokens)[:, position].square().sum().backward()
    size = embedded[0].grad.abs().sum(dim=(0, 2))
    assert (size[: position + 1] > 0).all()
    assert (size[position + 1 :] == 0).all()


def test_number_of_parameters(model):
    assert sum(p.numel() for p in model.parameters()) == num_parameters(VOCAB, DIM, LAYERS, LENGTH)


@pytest.mark.parametrize("count", [200_000, 5_000_000])
def test_matching_width_comes_closest(count):
    sizes = (65, 4, 64)
    dim = matching_dim(count, *sizes)

    def distance(width: int) -> int:
        return abs(num_parameters(sizes[0], width, *sizes[1:]) - count)

    assert dim % (2 * HEADS) == 0
    assert distance(dim) <= min(distance(dim - 2 * HEADS), distance(dim + 2 * HEADS))


def test_untrained_loss_is_that_of_a_uniform_guess(model, tokens):
    assert model.loss(tokens, tokens.roll(-1, 1)).item() == pytest.approx(math.log(VOCAB), abs=0.1)
