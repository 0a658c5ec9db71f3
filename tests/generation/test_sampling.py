"""The choice of a token: nothing that a CUDA graph could not hold, and one stream of random numbers for a seed."""

from typing import Any

import pytest
import torch

from zoo.generation.sampling import Sampling

OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 5, "top_p": 0.8},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_no_value_is_looked_at(options: dict[str, Any]) -> None:
    """Tensors of the meta device have none, and shapes that depend on values do not exist there."""
    chosen = Sampling(**options).choose(torch.empty(3, 50, device="meta"))
    assert chosen.shape == (3,)
    assert chosen.dtype == torch.int64


@pytest.mark.parametrize("options", OPTIONS)
def test_a_draw_takes_as_many_random_numbers_whatever_the_logits_are(options: dict[str, Any]) -> None:
    states = []
    for logits in (torch.zeros(2, 50), torch.randn(2, 50).double(), torch.full((2, 50), -1e4).bfloat16()):
        generator = torch.Generator().manual_seed(3)
        Sampling(**options).choose(logits, generator)
        states.append(generator.get_state())
    assert all(torch.equal(state, states[0]) for state in states)


def test_limits_wider_than_the_vocabulary_change_nothing() -> None:
    logits = torch.randn(4, 9)

    def choose(**options: Any) -> torch.Tensor:
        return Sampling(1.0, **options).choose(logits, torch.Generator().manual_seed(0))

    assert torch.equal(choose(top_k=9), choose())
    assert torch.equal(choose(top_k=90), choose())


def test_logits_of_minus_infinity_are_never_chosen() -> None:
    logits = torch.full((2000, 4), -torch.inf)
    logits[:, 2] = 0
    for options in OPTIONS:
        assert (Sampling(**options).choose(logits) == 2).all()
