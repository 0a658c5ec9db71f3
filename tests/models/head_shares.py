"""Run by `torchrun` for `test_head_shares.py`: models that several processes have together, beside whole ones.

Writes `{case: {what: relative error}}` of each process. Argument: `quick` leaves out most of what takes compiling.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from tests.models.stages import PIPELINES, errors
from tests.torchrun import tell
from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig
from zoo.models.head_shares import share_heads

MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "softmax": ("softmax", {"query_key_norm": True, "output_norm": True, "output_gate": True}, {}),
    "window": ("sliding-window", {"window": 5}, {"feed_forward": "gelu", "positions": "learned"}),
    "sinks": ("sliding-window", {"window": 3, "sinks": True}, {"feed_forward": "none"}),
    "linear": ("linear", {}, {"parallel": True}),
    "gated-power": ("gated-power", {}, {"bias": False}),
    "convolved": ("linear", {}, {"around": "mamba2"}),
    "shifted": ("gla", {}, {"around": "rwkv7", "feed_forward": "rwkv7"}),
    "rwkv7": ("rwkv7", {"decay_rank": 3, "rate_rank": 3, "value_rank": 3, "gate_rank": 3}, {"feed_forward": "rwkv7"}),
    "whole": ("softmax", {"query_key_norm": "whole"}, {"norm_eps": 0.1}),
    "mamba2": ("mamba2", {"groups": 2, "head_width": 4, "state_width": 4}, {"feed_forward": "none"}),
    "gla": ("gla", {"gate_rank": 3}, {}),
    "hgrn2": ("hgrn2", {}, {"norm_eps": 0.1}),
    "delta": ("delta", {"convolution": None, "output_gate": True}, {"bias": False}),
    "gated-delta": ("gated-delta", {"heads": 2, "value_heads": 4}, {}),
    "kda": ("kda", {"value_heads": 8, "negative_eigenvalues": True}, {}),
    "delta-power": ("delta-power", {}, {}),
    "offsets": ("power", {"offset": "learned", "normalize": False}, {"feed_forward": "geglu"}),
}
MODES = ("eager", "selective", "compiled", "spread")
COMPILED = ("softmax", "sinks", "gated-power", "offsets", "mamba2", "hgrn2", "kda", "rwkv7")
"""In a quick run, as spread over one process; between them they have every kind of parameter."""
T = 12


def build(name: str) -> Decoder:
    mixer, options, model = MODELS[name]
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "width": 16, "layers": 2, "heads": 4, "key_value_heads": 2}
    config = DecoderConfig(**sizes | {"feed_forward": "swiglu", "bias": True} | model)  # type: ignore[arg-type]
    decoder = Decoder(config, [mixers[mixer].config(**options)] * 2).double()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return decoder


def whole(x: Tensor | None) -> Tensor:
    assert x is not None
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach()


def train(model: Decoder) -> dict[str, Tensor]:
    """The loss, its gradients, and parameters after a step."""
    torch.manual_seed(1)
    tokens, targets = torch.randint(31, (2, 2, T))
    # One parameter at a time: those that are shared out stand on another mesh than the rest.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, eps=1e-2, foreach=False)
    loss = model.loss(tokens, targets, resets=torch.rand(2, T) < 0.1)
    torch.autograd.backward(loss)
    found = {"loss": loss.detach().double()}
    found |= {f"gradient of {name}": whole(parameter.grad) for name, parameter in model.named_parameters()}
    optimizer.step()
    return found | {f"{name} after a step": whole(parameter) for name, parameter in model.named_parameters()}


@torch.no_grad()
def read(model: Decoder) -> dict[str, Tensor]:
    """Logits behind prompts, and of tokens after them."""
    torch.manual_seed(2)
    logits, state = model.prefill(torch.randint(31, (2, T)), model.init_state(2, max_len=32), torch.tensor([T, 5]))
    return {"prefill": logits} | {f"step {n}": model.step(torch.tensor([3, 5]), state) for n in range(2)}


def shared(name: str, mode: str, mesh: DeviceMesh) -> Decoder:
    model = build(name)
    share_heads(model, mesh["tp"])
    if mode == "selective":
        model.checkpoint(mode)
    if mode in ("eager", "selective"):
        return model
    for block in model.blocks:
        torch.nn.Module.compile(block, fullgraph=True, dynamic=False, backend="aot_eager")
        if mode == "spread":
            fully_shard(block, mesh=mesh["dp_shard"])
    if mode == "spread":
        fully_shard(model, mesh=mesh["dp_shard"])
        register_fsdp_forward_method(model, "loss")
    return model


def modes(name: str, *, quick: bool) -> tuple[str, ...]:
    return (("eager", "selective", "spread") if name in COMPILED else ("eager",)) if quick else MODES


def compare(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    return {what: float((found[what] - x).norm() / x.norm().clamp(min=1e-300)) for what, x in wanted.items()}


def main(result: str, which: str) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp_shard", "tp"))
    found = {}
    for name in MODELS:
        logits, wanted = read(build(name)), train(build(name))
        for mode in modes(name, quick=which == "quick"):
            torch.compiler.reset()
            if mode == "eager":
                found[f"{name}, decoding"] = compare(read(shared(name, mode, mesh)), logits)
            found[f"{name}, {mode}"] = compare(train(shared(name, mode, mesh)), wanted)
    found |= {name: errors(name) for name in PIPELINES}
    tell(found, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
