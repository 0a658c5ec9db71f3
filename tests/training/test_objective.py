"""The loss, its value in bits per byte, against the definition."""

import math

import pytest
import torch
from torch.nn import functional

from zoo.data import ByteTokenizer, validation_batches
from zoo.training.objective import NextTokenLoss, evaluate
from zoo.training.optimizer import autocast


def test_bits_per_byte_counts_every_target_and_divides_by_bytes(corpus, tiny_model):
    torch.manual_seed(0)
    model = tiny_model(dropout=0.0)
    objective = NextTokenLoss(model)
    batches = validation_batches(corpus.validation, 3, 16, 500)
    found = evaluate(lambda batch: objective(*batch), batches, ByteTokenizer())
    nats, byte_count, tokens = 0.0, 0, 0
    for batch in batches:
        log_probabilities = functional.log_softmax(model(batch.tokens, resets=batch.resets).logits.double(), dim=-1)
        for row, targets in zip(log_probabilities, batch.targets, strict=True):
            for distribution, target in zip(row, targets.tolist(), strict=True):
                nats -= distribution[target].item()
                byte_count += target < 256
                tokens += 1
    assert tokens - byte_count > 0
    assert found.loss == pytest.approx(nats / tokens, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / byte_count, rel=1e-6)


def test_the_loss_is_float32_under_autocast(tiny_model, corpus):
    batch = validation_batches(corpus.validation, 2, 16, 32)[0]
    model = tiny_model()
    with autocast(torch.bfloat16, torch.device("cpu")):
        assert model(batch.tokens).logits.dtype == torch.bfloat16
        assert NextTokenLoss(model)(*batch).dtype == torch.float32
