"""Run by `head_shares.py`: pipelines of as many stages as there are processes, beside whole models."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig
from zoo.models.stages import Stage

PIPELINES: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "pipeline": (ScheduleGPipe, ["gated-power", "softmax"], {"positions": "learned", "embedding_norm": True}),
    "pipeline, one forward, one backward": (Schedule1F1B, ["kda", "sliding-window"], {"logits_cap": 5.0}),
}


def build(names: list[str], options: dict[str, Any]) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=31, width=16, layers=4, heads=2, tie_embeddings=False, bias=True, **options)
    decoder = Decoder(config, [mixers[name].config() for name in names * 2]).double()  # type: ignore[misc]
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return decoder


def errors(name: str) -> dict[str, float]:
    """Return relative errors of the loss, where this process has the last stage, and of its gradients."""
    schedule, names, options = PIPELINES[name]
    torch.manual_seed(1)
    tokens, targets = torch.randint(31, (2, 8, 12))
    resets = torch.rand(8, 12) < 0.1
    whole = build(names, options)
    wanted = whole.loss(tokens, targets, resets=resets)
    torch.autograd.backward(wanted)
    gradients = {key: parameter.grad for key, parameter in whole.named_parameters()}

    rank, count = dist.get_rank(), dist.get_world_size()
    stage = Stage(build(names, options), count, rank)
    piped = schedule(PipelineStage(stage, rank, count, torch.device("cpu")), 4, loss_fn=stage.loss)
    losses: list[Tensor] = []
    graded = {"target": targets, "losses": losses} if stage.is_last else {}
    piped.step(*((tokens,) if stage.is_first else ()), **graded, resets=resets)
    found = {"loss": _error(torch.stack(losses).mean(), wanted)} if stage.is_last else {}
    for key, parameter in stage.model.named_parameters():
        found[f"gradient of {key}"] = _error(parameter.grad, gradients[key])
    return found


def _error(found: Tensor | None, wanted: Tensor | None) -> float:
    assert found is not None
    assert wanted is not None
    return float((found.detach() - wanted).norm() / wanted.detach().norm())
