"""A state of another batch size, dtype, device or model is refused by name, before anything is computed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils import _pytree

from zoo.errors import InputError
from zoo.generation import Decoding, compile_decoder
from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig, DecoderState
from zoo.states import map_state

ARCHITECTURES = ("none", "mamba2", "rwkv7")


def build(name: str, *, width: int = 16, layers: int = 2, around: str = "none") -> Decoder:
    config = DecoderConfig(
        vocab_size=11, width=width, layers=layers, heads=2, positions="none", around=around,
        feed_forward="rwkv7" if around == "rwkv7" else "gelu",
    )  # fmt: skip
    return Decoder(config, [mixers[name].config()] * layers)


def last_layer(state: DecoderState, function: Callable[[Any], Any]) -> DecoderState:
    """Only the last layer's state is wrong: those before it are already written when it is met."""
    return state._replace(layers=(*state.layers[:-1], map_state(function, state.layers[-1])))


def wrong_states(name: str, around: str) -> dict[str, tuple[DecoderState, str]]:
    """A state for two rows that is wrong in one way, and how it is refused."""

    def state(name: str = name, rows: int = 2, **options: Any) -> DecoderState:
        return build(name, around=around, **options).init_state(rows, max_len=8)

    right = state()
    return {
        "batch size": (state(rows=3), "state: expected a batch of 2 as in the input, was 3"),
        "batch size of a layer": (
            last_layer(right, lambda x: x[:1]),
            "state: expected a batch of 2 as in the input, was 1",
        ),
        "dtype of sums": (
            last_layer(right, lambda x: x.int() if x.is_floating_point() else x),
            r"state\.\w+: expected (torch\.float32|a floating dtype), was torch\.int32",
        ),
        "dtype of positions": (
            right._replace(position=right.position.float()),
            r"state\.position: expected torch\.int64, was torch\.float32",
        ),
        "dtype of starts": (
            right._replace(start=right.start.float()),
            r"state\.start: expected torch\.int64, was torch\.float32",
        ),
        "device": (
            map_state(lambda x: x.to("meta"), right),
            "state.position: expected on cpu as the input is, was on meta",
        ),
        "device of a layer": (
            last_layer(right, lambda x: x.to("meta")),
            r"state\.\w+: expected on cpu as the input is, was on meta",
        ),
        "layers of a block": (
            right._replace(layers=(*right.layers[:-1], right.layers[-1][:1])),
            "state: expected 2 layers in a block as in this model, was 1",
        ),
        "model": (state("power" if name == "softmax" else "softmax"), r"state(\.\w+)?: expected .*, was "),
        "width": (state(width=32), r"state\.\w+: expected \[.*\] as in this mixer, was"),
        "layers": (state(layers=1), "state: expected 2 layers as in this model, was 1"),
        "kind": (tuple(right), "state: expected DecoderState as init_state returns it, was tuple"),
    }


@pytest.mark.parametrize("around", ARCHITECTURES)
@pytest.mark.parametrize("name", mixers)
def test_other_states_are_refused(name: str, around: str) -> None:
    torch._dynamo.reset()
    model = build(name, around=around)
    compiled = compile_decoder(model, backend="aot_eager")
    tokens, lengths = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3, 1])
    for what, (state, message) in wrong_states(name, around).items():
        before = [part.clone() for part in _pytree.tree_leaves(state)]
        calls = [
            lambda s: model.step(tokens[:, 0], s),
            lambda s: model(tokens, s),
            lambda s: model.prefill(tokens, s, lengths),
        ]
        if around == "none":
            calls += [lambda s: compiled.step(tokens[:, 0], s), lambda s: compiled.prefill(tokens, s, lengths)]
        calls += [lambda s: Decoding.from_state(compiled, s, tokens[:, 0])]
        for number, call in enumerate(calls):
            with pytest.raises(InputError, match=message) as caught:
                call(state)
            assert "\n" not in str(caught.value), (what, number)
        for part, copy in zip(_pytree.tree_leaves(state), before, strict=True):
            assert part.is_meta or torch.equal(part, copy), what


@pytest.mark.parametrize("name", ["linear", "gated-power", "mamba2", "rwkv7"])
def test_sums_in_another_precision_are_refused(name: str) -> None:
    model = build(name)
    state = map_state(lambda x: x.double() if x.is_floating_point() else x, model.init_state(2, max_len=8))
    with pytest.raises(InputError, match=r"state\.S: expected torch\.float32, was torch\.float64"):
        model.step(torch.zeros(2, dtype=torch.int64), state)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("power", lambda s: s._replace(keys=s.keys[:, :, 1:]), r"state\.keys: expected \[2, \d+, 2, 8\]"),
        ("power", lambda s: s._replace(values=s.values.double()), r"state\.values: expected torch\.float32, was .*64"),
        ("power", lambda s: s._replace(gates=s.gates.float()), r"state\.gates: expected torch\.float64"),
        ("power", lambda s: s._replace(folded=s.folded[:1]), r"state\.folded: expected \[2\]"),
        ("power", lambda s: s._replace(S=s.S[:, :1]), r"state\.S: expected \[2, 2, 36, 8\]"),
        ("mamba2", lambda s: s._replace(earlier=s.earlier._replace(S=s.earlier.S[:1])), r"state\.earlier: expected"),
        ("mamba2", lambda s: s._replace(now=s.now._replace(S=s.now.S.double())), r"state\.S: expected torch\.float32"),
        ("sliding-window", lambda s: s._replace(values=s.values[:, 1:]), r"state\.values: expected \[2, 259, 2, 8\]"),
        ("sliding-window", lambda s: type(s)(*(x[:, 4:] for x in s)), r"state\.keys: expected \[2, 256, 2, 8\]"),
    ],
)  # fmt: skip
def test_other_states_for_decoding_are_refused(name: str, change: Callable[[Any], Any], message: str) -> None:
    model, tokens = build(name), torch.zeros(2, 1, dtype=torch.int64)
    right = model.decoding_state(2, rollback=3)
    wrong = right._replace(layers=(*right.layers[:-1], (change(right.layers[-1][0]), *right.layers[-1][1:])))
    for call in (lambda s: model.step(tokens[:, 0], s), lambda s: model(tokens, s), lambda s: model.rollback(s, 0)):
        with pytest.raises(InputError, match=message):
            call(wrong)
        call(right)


def test_a_compiler_s_own_refusal_stays_its_own() -> None:
    torch._dynamo.reset()

    class Printing(Decoder):
        def step(self, tokens, state):
            print(tokens.sum().item())
            return super().step(tokens, state)

    config = DecoderConfig(vocab_size=11, width=16, layers=1, heads=2)
    model = Printing(config, [mixers["linear"].config()])
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compile_decoder(model, backend="aot_eager").step(torch.zeros(2, dtype=torch.int64), model.init_state(2))
