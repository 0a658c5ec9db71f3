"""Scores of single tokens are what the loss is the mean of, for every kind of head."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from zoo.errors import InputError
from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig

SIZES = {"vocab_size": 11, "width": 16, "layers": 2, "heads": 2}


class WrappedLinear(nn.Linear):
    """A head that is more than its matrix."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).tanh()


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens, targets = torch.randint(0, 11, (2, 3, 20))
    targets[:, 4:9] = -100
    resets = torch.zeros(3, 20, dtype=torch.bool)
    resets[1, 7] = resets[2, 0] = True
    return tokens, targets, resets


@pytest.mark.parametrize("name", ["softmax", "gated-power", "rwkv7"])
@pytest.mark.parametrize("head", ["tied", "own", "wrapped"])
def test_scores_are_the_terms_of_the_loss(name: str, head: str) -> None:
    config = DecoderConfig(**SIZES, tie_embeddings=head == "tied", initializer_range=0.5)
    model = Decoder(config, [mixers[name].config()] * 2).double().eval()
    if head == "wrapped":
        model.head = WrappedLinear(16, 11, bias=False).double()
    tokens, targets, resets = example()
    losses, hits = model.score(tokens, targets, resets=resets)
    asked = targets != -100
    assert losses.shape == hits.shape == targets.shape
    assert not losses.requires_grad
    assert (losses[~asked] == 0).all()
    torch.testing.assert_close(losses[asked].mean().float(), model.loss(tokens, targets, resets=resets).detach())
    likeliest = model(tokens, resets=resets).logits.argmax(-1)
    assert torch.equal(hits, (likeliest == targets) & asked)


def test_bad_targets_are_refused() -> None:
    model = Decoder(DecoderConfig(**SIZES), [mixers["linear"].config()] * 2)
    tokens, targets, _ = example()
    with pytest.raises(InputError, match=r"targets: expected int64 \[3, 20\] as tokens, was"):
        model.score(tokens, targets[:, 1:])
    with pytest.raises(InputError, match="targets: expected 0 to 10, or -100 to be ignored, was 11"):
        model.score(tokens, targets.clamp(min=11))


@pytest.mark.parametrize("name", ["softmax", "sliding-window", "gated-power", "gated-delta", "mamba2", "rwkv7"])
def test_all_lengths_but_the_first_take_one_graph(name: str) -> None:
    """Measures at many lengths rely on it; a lone row takes one of its own, as the compiler sets sizes of 1 apart."""
    torch._dynamo.reset()
    config = DecoderConfig(**SIZES | {"layers": 1}, positions="rotary")
    model = Decoder(config, [mixers[name].config()]).eval()
    counter = CompileCounter()
    score = torch.compile(model.score, backend=counter, fullgraph=True)
    graphs = []
    for rows, length in ((3, 16), (2, 24), (4, 64), (1, 100), (1, 150)):
        tokens, targets = torch.randint(0, 11, (2, rows, length))
        resets = torch.rand(rows, length) < 0.1
        found = score(tokens, targets, resets=resets)
        graphs.append(counter.frame_count)
        torch.testing.assert_close(found.losses, model.score(tokens, targets, resets=resets).losses)
    assert graphs[0] == 1
    assert graphs[2] <= 2
    assert graphs[4] <= 3
