"""Multipliers of embeddings, scores, residuals and logits mean the same in every way through a model."""

import pytest
import torch
import torch.nn.functional as F

import zoo
from zoo.models import Decoder


def model(*overrides: str) -> Decoder:
    torch.manual_seed(0)
    style = ["model.vocab_size=24", "model.width=16", "model.heads=2", "model.layers=2", "model.initializer_range=0.2"]
    return zoo.build(zoo.load_recipe("tiny", [*style, "model.feed_forward_width=null", *overrides]))


@pytest.mark.parametrize("tied", ["true", "false"])
def test_losses_and_scores_are_those_of_the_divided_logits(tied: str) -> None:
    decoder, plain = (model(f"model.tie_embeddings={tied}", f"model.logits_scaling={s}") for s in (5.0, 1.0))
    tokens, targets = torch.randint(24, (2, 2, 9))
    logits = decoder(tokens).logits
    torch.testing.assert_close(logits, plain(tokens).logits / 5)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(decoder.loss(tokens, targets), expected.mean())
    torch.testing.assert_close(decoder.score(tokens, targets)[0].flatten(), expected.detach())


@pytest.mark.parametrize("mixer", ["softmax", "power"])
@torch.no_grad()
def test_scores_are_multiplied_in_place_of_the_root(mixer: str) -> None:
    same, other, default = (
        model(f"mixer={mixer}", "mixer.query_key_norm=false", f"model.attention_multiplier={multiplier}")
        for multiplier in (8**-0.5, 0.9, "null")
    )
    tokens = torch.randint(24, (2, 9))
    torch.testing.assert_close(same(tokens).logits, default(tokens).logits)
    # The sum of powers is a ratio in which a factor of all scores cancels; a softmax's does not.
    changes = not torch.allclose(other(tokens).logits, default(tokens).logits, atol=1e-3)
    assert changes == (mixer == "softmax")


@torch.no_grad()
def test_a_multiplier_of_the_embedding_is_a_larger_embedding() -> None:
    decoder, plain = (
        model("model.tie_embeddings=false", "model.embedding_multiplier=3.0"),
        model("model.tie_embeddings=false"),
    )
    plain.token_embedding.weight.mul_(3)
    tokens = torch.randint(24, (2, 9))
    torch.testing.assert_close(decoder(tokens).logits, plain(tokens).logits)


@torch.no_grad()
def test_a_multiplier_of_residuals_is_a_smaller_projection() -> None:
    decoder, plain = model("model.residual_multiplier=0.25"), model()
    for name, parameter in plain.named_parameters():
        if "output.projection" in name or "contract" in name:
            parameter.mul_(0.25)
    tokens = torch.randint(24, (2, 9))
    torch.testing.assert_close(decoder(tokens).logits, plain(tokens).logits)
