"""Run by `torchrun` for `test_shares.py`: models whose sequences several processes have together, beside one process.

Writes `{model: {what: relative error}}` of each process.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.torchrun import tell
from zoo.budget.traffic import Received, count_pass
from zoo.builder import build as make
from zoo.builder import shrink
from zoo.kernels.sequence import SequenceGroup
from zoo.kernels.targets import IGNORED
from zoo.mixers import MixerConfig, mixers
from zoo.models import Decoder, DecoderConfig
from zoo.recipe import load_recipe
from zoo.recipe.training import Checkpointing
from zoo.states import detach_state

SHARE = 9  # tokens
MODES: tuple[Checkpointing, ...] = ("none", "selective", "full")
MODELS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "gpt": (("gated-power", "softmax"), {"positions": "learned", "max_positions": 64}),
    "rwkv": (("rwkv7", "power", "rwkv7"), {"feed_forward": "rwkv7", "around": "rwkv7", "norm": "layernorm"}),
    "mamba": (("mamba2", "gla"), {"feed_forward": "none", "around": "mamba2"}),
    "shared gates": (("hgrn2", "delta", "hgrn2"), {"feed_forward": "swiglu"}),
}


def build(model: str) -> Decoder:
    torch.manual_seed(0)
    names, options = MODELS[model]
    configs: list[MixerConfig] = [mixers[name].config() for name in names]
    config = DecoderConfig(vocab_size=31, width=16, layers=len(names), heads=2, **options)
    return Decoder(config, configs).double()


def batch(T: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, targets and resets; far fewer targets in the first share than in the last."""
    tokens, targets = torch.randint(31, (2, 2, T))
    resets = torch.rand(2, T) < 0.15
    targets[:, : SHARE - 2] = IGNORED
    return tokens, targets, resets


def gradients(model: Decoder, tokens: Tensor, targets: Tensor, resets: Tensor) -> dict[str, Tensor]:
    """The loss and its gradients."""
    model.zero_grad()
    loss = model.loss(tokens, targets, resets=resets)
    torch.autograd.backward(loss)
    found = {"loss": loss.detach().double()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return found


def compare(name: str, group: SequenceGroup) -> dict[str, float]:
    torch.manual_seed(1)  # the same for all processes
    inputs, errors = batch(SHARE * group.size), {}
    whole = gradients(build(name), *inputs)
    scores = build(name).score(*inputs[:2], resets=inputs[2]).losses
    own = [x.chunk(group.size, 1)[int(group.rank)] for x in inputs]
    for mode in MODES:
        model = build(name)
        model.share_sequences(group)
        model.checkpoint(mode)
        for part, found in gradients(model, *own).items():
            dist.all_reduce(found)  # the mean over processes, as of many that train together
            size = whole[part].norm().clamp(min=1e-300)
            errors[f"{mode}, {part}"] = float((found / group.size - whole[part]).norm() / size)
    found = model.score(*own[:2], resets=own[2]).losses
    errors["scores"] = float((found - scores.chunk(group.size, 1)[int(group.rank)]).abs().max())
    return errors


def read(model: Decoder, pieces: list[tuple[Tensor, Tensor]], group: SequenceGroup | None) -> dict[str, Tensor]:
    """Logits of the last tokens of prompts in pieces, of a token after them, and the states then."""
    found, state = {}, model.init_state(2, max_len=64)
    for number, (tokens, lengths) in enumerate(pieces):
        own = tokens if group is None else tokens.chunk(group.size, 1)[int(group.rank)]
        found[f"piece {number}"], state = model.prefill(own, state, lengths)
        state = detach_state(state)
    found["step"] = model.step(torch.tensor([3, 5]), state)
    tensors = tree_leaves(state)
    return found | {f"state {number}": part.double() for number, part in enumerate(tensors)}


def compare_prefill(name: str, group: SequenceGroup) -> dict[str, float]:
    torch.manual_seed(2)
    T = SHARE * group.size
    pieces = [(torch.randint(31, (2, T)), torch.tensor(lengths)) for lengths in ([T, 2], [SHARE + 1, T - 1])]
    wanted, model = read(build(name), pieces, None), build(name)
    model.share_sequences(group)
    found = read(model, pieces, group)
    return {what: float((found[what] - part).norm() / part.norm().clamp(min=1e-300)) for what, part in wanted.items()}


def traffic(mixer: str, mode: Checkpointing, group: SequenceGroup) -> dict[str, list[int]]:
    """Bytes and collectives of a pass as it is, and as it is counted without other processes."""
    recipe = shrink(load_recipe("tiny", [f"mixer={mixer}"]))
    recipe = recipe.replace(model=recipe.model.replace(layers=1))
    model = make(recipe)
    model.share_sequences(group)
    model.checkpoint(mode)
    tokens = torch.zeros(1, 32, dtype=torch.int64)
    with Received(group.size) as received:
        torch.autograd.backward(model.loss(tokens, tokens))
    counted = count_pass(recipe, 32, group.size, mode, torch.float32)
    return {
        "is": [received.bytes.total(), received.calls.total()],
        "counted": [counted.received, counted.collectives],
    }


def main(result: str) -> None:
    dist.init_process_group("gloo")
    group = SequenceGroup.of(dist.group.WORLD, "cpu")  # type: ignore[arg-type]
    found: dict[str, Any] = {name: compare(name, group) for name in MODELS}
    found |= {f"prefill, {name}": compare_prefill(name, group) for name in MODELS}
    found["traffic"] = {mixer: traffic(mixer, "none", group) for mixer in mixers}
    found["traffic"] |= {f"gated-power, {mode}": traffic("gated-power", mode, group) for mode in MODES}
    tell(found, result)


if __name__ == "__main__":
    main(sys.argv[1])
