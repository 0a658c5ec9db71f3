"""The loss, its value in bits per byte, precision and clipping, each against the definition."""

import math

import pytest
import torch
from torch.nn import functional

from zoo.data import ByteTokenizer, validation_batches
from zoo.training import TrainingConfig
from zoo.training.objective import NextTokenLoss, evaluate
from zoo.training.optimizer import autocast, autocast_dtype, build_optimizer, clip_gradients


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


@pytest.mark.parametrize(("setting", "expected"), [("auto", None), ("none", None), ("bfloat16", torch.bfloat16)])
def test_precision_on_a_cpu(setting, expected):
    assert autocast_dtype(TrainingConfig(autocast=setting), torch.device("cpu")) is expected


def test_matrices_decay_and_vectors_do_not(tiny_model):
    model = tiny_model()
    optimizer = build_optimizer(model, TrainingConfig(weight_decay=0.3))
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert decays[id(parameter)] == (0.3 if parameter.ndim >= 2 else 0.0)


def test_frozen_parameters_are_left_out(tiny_model):
    model = tiny_model()
    model.norm.requires_grad_(False)
    optimizer = build_optimizer(model, TrainingConfig())
    assert len([parameter for group in optimizer.param_groups for parameter in group["params"]]) == 5


@pytest.mark.parametrize("limit", [None, 0.5, 1e9])
def test_the_joint_norm_is_returned_and_limited(limit):
    model = torch.nn.Linear(3, 2)
    model.weight.grad = torch.full((2, 3), 2.0)
    model.bias.grad = torch.full((2,), 3.0)
    before = math.sqrt(6 * 4 + 2 * 9)
    assert clip_gradients(model, limit).item() == pytest.approx(before)
    after = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in model.parameters()))
    assert after == pytest.approx(min(before, limit or before), rel=1e-4)
