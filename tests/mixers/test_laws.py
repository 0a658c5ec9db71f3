"""The laws that every mixer keeps, each one property over them all, in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo.blocks.around import AroundState, put_around
from zoo.blocks.cache import KeyValueState
from zoo.blocks.earlier import EarlierStates
from zoo.blocks.mixer import MixerState
from zoo.errors import InputError
from zoo.kernels.power import PowerJournalState, absorb
from zoo.mixers import LayerContext, Mixer, mixers
from zoo.mixers.sliding_window import SlidingWindow
from zoo.states import map_state, reorder_state, state_bytes

WIDTH = 16

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("softmax", {}),
    "softmax, all norms, gated": ("softmax", {"query_key_norm": True, "output_norm": True, "output_gate": True}),
    "softmax, capped": ("softmax", {"score_cap": 0.7}),
    "window of 5": ("sliding-window", {"window": 5}),
    "window of 3, capped": ("sliding-window", {"window": 3, "score_cap": 0.7}),
    "window of 1": ("sliding-window", {"window": 1}),
    "window of 3 with sinks": ("sliding-window", {"window": 3, "sinks": True}),
    "linear": ("linear", {}),
    "gated-linear": ("gated-linear", {"retention": (0.3, 0.99)}),
    "power": ("power", {}),
    "power, p=3": ("power", {"p": 3}),
    "power, not normalised": ("power", {"normalize": False, "query_key_norm": False}),
    "gated-power": ("gated-power", {"retention": (0.3, 0.99)}),
    "gated-power, p=4, no rotation": ("gated-power", {"p": 4, "rotary": False}),
    "power, offset": ("power", {"offset": 1.0}),
    "gated-power, p=3, learned offset": ("gated-power", {"p": 3, "head_width": 4, "offset": "learned"}),
    "power behind a convolution": ("power", {"around": "mamba2"}),
    "window behind a token shift": ("sliding-window", {"window": 3, "around": "rwkv7"}),
    "gla": ("gla", {"head_width": 2}),
    "gla behind a convolution": ("gla", {"head_width": 4, "expand": 1, "convolution": 3}),
    "hgrn2": ("hgrn2", {}),
    "delta": ("delta", {}),
    "delta, gated output, rates up to 2": (
        "delta",
        {"output_gate": True, "negative_eigenvalues": True, "convolution": None},
    ),
    "gated-delta": ("gated-delta", {}),
    "gated-delta, 2 value heads a key": ("gated-delta", {"heads": 2, "head_width": 3, "value_heads": 4, "expand": 1}),
    "kda": ("kda", {"head_width": 4}),
    "delta-power": ("delta-power", {"head_width": 4}),
    "delta-power, p=3, no gates": ("delta-power", {"head_width": 2, "p": 3, "gated": False}),
    "rwkv7": ("rwkv7", {}),
    "rwkv7, one head": ("rwkv7", {"head_width": 16, "decay_rank": 2, "gate_rank": 3}),
    "mamba2": ("mamba2", {"head_width": 8, "state_width": 4}),
    "mamba2, 2 groups, p=2": ("mamba2", {"head_width": 8, "state_width": 3, "groups": 2, "p": 2, "convolution": 2}),
    "mamba2, 4 groups": ("mamba2", {"head_width": 4, "state_width": 5, "groups": 4, "convolution": 1}),
}

every_variant = pytest.mark.parametrize("variant", VARIANTS)
law = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**31)
rollbacks = st.sampled_from([None, 0, 2])  # tokens that can be taken back from a state for decoding; None: another's


def test_every_registered_mixer_is_tested() -> None:
    assert {name for name, _ in VARIANTS.values()} == set(mixers)


def build(variant: str, seed: int, dtype: torch.dtype = torch.float64) -> Mixer:
    """Return a mixer with random parameters, large enough that every one of them shows."""
    torch.manual_seed(seed)
    name, options = VARIANTS[variant]
    around = options.get("around", "none")
    options = {key: value for key, value in options.items() if key != "around"}
    spec = mixers[name]
    context = LayerContext(
        width=WIDTH, heads=4, key_value_heads=(1, 2, 4)[seed % 3], head_width=4, bias=True, rotary=bool(seed % 2)
    )
    mixer = put_around(around, spec.build(spec.config(**options), context), context).to(dtype)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return mixer


def inputs(B: int, T: int) -> Tensor:
    return torch.randn(B, T, WIDTH, dtype=torch.float64)


def parts(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """A state's tensors by name, those of a state inside it too."""
    found: dict[str, Tensor] = {}
    for name, part in zip(state._fields, state, strict=True):
        found |= {prefix + name: part} if isinstance(part, Tensor) else parts(part, f"{prefix}{name}.")
    return found


def make_state(mixer: Mixer, rows: int, max_len: int, rollback: int | None) -> Any:
    """An empty state, made for decoding unless `rollback` is None."""
    if rollback is None:
        return mixer.init_state(rows, max_len=max_len)
    return mixer.decoding_state(rows, max_len=max_len, rollback=rollback)


def remembered(state: Any, position: Tensor, mixer: Mixer) -> Any:
    """What a state knows, however it keeps it: the sums over all tokens, where some are beside them."""
    if isinstance(state, PowerJournalState):
        return absorb(state, position, state.slots - 1, p=mixer.p)
    if isinstance(state, KeyValueState) and isinstance(mixer, SlidingWindow):  # a ring that may have more slots
        place = position[:, None] - 1 - torch.arange(mixer.window)
        row, there = torch.arange(len(position))[:, None], (place >= 0)[..., None, None]
        return KeyValueState(*(torch.where(there, x[row, place % x.shape[1]], 0) for x in state))
    if isinstance(state, EarlierStates):
        return remembered(state.now, position, mixer)
    if isinstance(state, AroundState):
        return state._replace(mixer=remembered(state.mixer, position, mixer.mixer))
    return state


def same_state(one: MixerState, other: MixerState, mixer: Mixer) -> None:
    """Compare what two states remember; slots beyond the position hold nothing."""
    one, other = (x._replace(layer=remembered(x.layer, x.position, mixer)) for x in (one, other))
    for (name, a), b in zip(parts(one).items(), parts(other).values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"state.{name}: {text}")


@st.composite
def splits(draw: st.DrawFn) -> list[int]:
    """Lengths of pieces, single tokens and empty pieces among them."""
    return draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, 7, 11]), min_size=1, max_size=5))


@every_variant
@law
@given(pieces=splits(), seed=seeds, some_resets=st.booleans(), first_is_none=st.booleans(), rollback=rollbacks)
def test_splitting_a_sequence_anywhere_changes_nothing(
    variant: str, pieces: list[int], seed: int, some_resets: bool, first_is_none: bool, rollback: int | None
) -> None:
    mixer, T = build(variant, seed), sum(pieces)
    x = inputs(2, T).requires_grad_()
    resets = torch.rand(2, T) < 0.2 if some_resets else None
    weights = torch.randn_like(x)
    room = make_state(mixer, 2, T + 1, rollback)
    whole, last = mixer(x, room, True, resets=resets)

    state = None if first_is_none and VARIANTS[variant][0] != "softmax" else room
    outputs, start = [], 0
    for length in pieces:
        at = slice(start, start + length)
        y, state = mixer(x[:, at], state, True, resets=None if resets is None else resets[:, at])
        outputs.append(y)
        start += length
    y = torch.cat(outputs, dim=1)

    torch.testing.assert_close(y, whole)
    same_state(state, last, mixer)
    torch.testing.assert_close(*(torch.autograd.grad((o * weights).sum(), x)[0] for o in (y, whole)))


@every_variant
@law
@given(prompt=st.integers(0, 9), steps=st.integers(1, 40), seed=seeds, rollback=rollbacks)
def test_a_step_is_a_forward_of_one_token_in_place(
    variant: str, prompt: int, steps: int, seed: int, rollback: int | None
) -> None:
    mixer, T = build(variant, seed), prompt + steps
    x = inputs(2, T)
    resets = torch.rand(2, T) < 0.2
    resets[:, prompt:] = False  # a step has no resets
    whole, last = mixer(x, mixer.init_state(2, max_len=T), True, resets=resets)

    _, state = mixer(x[:, :prompt], make_state(mixer, 2, T, rollback), True, resets=resets[:, :prompt])
    addresses, size = [part.data_ptr() for part in parts(state).values()], state_bytes(state)
    y = torch.stack([mixer.step(x[:, t], state) for t in range(prompt, T)], dim=1)

    torch.testing.assert_close(y, whole[:, prompt:])
    same_state(state, last, mixer)
    assert [part.data_ptr() for part in parts(state).values()] == addresses
    assert state_bytes(state) == size


@every_variant
@law
@given(prompt=st.integers(0, 30), most=st.integers(1, 4), data=st.data(), seed=seeds)
def test_tokens_that_are_taken_back_had_never_been(variant: str, prompt: int, most: int, data: Any, seed: int) -> None:
    """Whether they were stepped or read; of each row another number; and what follows, stepped and read."""
    mixer, taken = build(variant, seed), data.draw(st.integers(0, most + 2))
    history, wrong, more = inputs(2, prompt), inputs(2, taken), inputs(2, 4)
    count = torch.tensor([data.draw(st.integers(0, min(taken, most))) for _ in range(2)])
    resets = torch.rand(2, prompt) < 0.1
    _, state = mixer(history, mixer.decoding_state(2, max_len=prompt + taken + 8, rollback=most), True, resets=resets)
    expected = mixer(wrong, state, True, lengths=taken - count).state
    if data.draw(st.booleans()):
        state = mixer(wrong, state, True).state
    else:
        for t in range(taken):
            mixer.step(wrong[:, t], state)
    addresses = [part.data_ptr() for part in parts(state).values()]
    mixer.rollback(state, count)
    assert [part.data_ptr() for part in parts(state).values()] == addresses
    assert torch.equal(state.position, expected.position)
    wanted, last = mixer(more, expected, True)
    y, after = mixer(more, state, True)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(torch.stack([mixer.step(more[:, t], state) for t in range(4)], 1), wanted)
    torch.testing.assert_close(mixer(more, after).y, mixer(more, last).y)


@every_variant
def test_what_cannot_be_taken_back_is_refused(variant: str) -> None:
    mixer, x = build(variant, 0), inputs(2, 3)
    state = mixer(x, mixer.decoding_state(2, max_len=9, rollback=2), True).state
    kept = map_state(torch.clone, state)
    refusals: list[tuple[str, Any]] = [
        (r"tokens: expected 0 or more to take back, was -1", -1),
        (r"tokens: expected a whole number or int64 \[2\], was torch.int64 \[1\]", torch.tensor([1])),
        (r"tokens: expected a whole number or int64 \[2\], was 1.5", 1.5),
        (r"tokens: expected at most those of each document, \[3, 3\], was \[4, 0\]", torch.tensor([4, 0])),
    ]
    if VARIANTS[variant][0] != "softmax":
        refusals[-1] = (r"tokens: expected at most 2, which .*, was 3; make it with decoding_state\(rollback=3\)", 3)
        other = mixer(x, mixer.init_state(2), True).state
        with pytest.raises(InputError, match=r"tokens: expected at most 0, which this state can take back, was 1"):
            mixer.rollback(other, 1)
    for message, tokens in refusals:
        with pytest.raises(InputError, match=message):
            mixer.rollback(state, tokens)
    assert all(map(torch.equal, parts(state).values(), parts(kept).values()))
    with pytest.raises(InputError, match="rollback: expected a whole number from 0 on, was -1"):
        mixer.decoding_state(2, max_len=9, rollback=-1)


@every_variant
@law
@given(T=st.integers(2, 14), data=st.data(), seed=seeds)
def test_a_token_changes_nothing_before_it(variant: str, T: int, data: st.DataObject, seed: int) -> None:
    mixer, t = build(variant, seed), data.draw(st.integers(0, T - 1))
    x = inputs(1, T)
    changed = x.clone()
    changed[:, t] += 1
    before, after = mixer(x).y, mixer(changed).y

    assert torch.equal(before[:, :t], after[:, :t])
    assert not torch.allclose(before[:, t], after[:, t])


@every_variant
@law
@given(T=st.integers(1, 14), seed=seeds, rollback=rollbacks)
def test_rows_of_a_batch_do_not_meet(variant: str, T: int, seed: int, rollback: int | None) -> None:
    mixer, order = build(variant, seed), torch.tensor([2, 0, 1, 2])
    x, resets = inputs(3, 2 * T), torch.rand(3, 2 * T) < 0.2
    _, state = mixer(x[:, :T], make_state(mixer, 3, 2 * T, rollback), True, resets=resets[:, :T])
    y, last = mixer(x[:, T:], state, True, resets=resets[:, T:])
    reordered, reordered_last = mixer(x[order, T:], reorder_state(state, order), True, resets=resets[order, T:])

    torch.testing.assert_close(reordered, y[order])
    same_state(reordered_last, reorder_state(last, order), mixer)


@every_variant
@law
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=3), seed=seeds, with_state=st.booleans(),
    rollback=rollbacks,
)  # fmt: skip
def test_padding_changes_nothing(
    variant: str, lengths: list[int], seed: int, with_state: bool, rollback: int | None
) -> None:
    mixer, B, T = build(variant, seed), len(lengths), 13
    history, x, more = inputs(B, 4), inputs(B, T), inputs(B, 3)
    resets = torch.rand(B, T) < 0.3  # in the padding too
    state = make_state(mixer, B, 4 + T + 3, rollback)
    if with_state:
        state = mixer(history, state, True).state
    y, after = mixer(x, state, True, lengths=torch.tensor(lengths), resets=resets)
    assert y.isfinite().all()
    continued, _ = mixer(more, after, True)

    for b, length in enumerate(lengths):
        row = reorder_state(state, torch.tensor([b]))
        y_row, after_row = mixer(x[b : b + 1, :length], row, True, resets=resets[b : b + 1, :length])
        torch.testing.assert_close(y[b, :length], y_row[0])
        same_state(reorder_state(after, torch.tensor([b])), after_row, mixer)
        torch.testing.assert_close(continued[b], mixer(more[b : b + 1], after_row, True).y[0])


@every_variant
@law
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=seeds, with_state=st.booleans(),
    rollback=rollbacks,
)  # fmt: skip
def test_resets_are_separate_calls(
    variant: str, lengths: list[int], seed: int, with_state: bool, rollback: int | None
) -> None:
    mixer, T = build(variant, seed), sum(lengths)
    x, more = inputs(1, T), inputs(1, 3)
    starts = torch.tensor([sum(lengths[:i]) for i in range(len(lengths))])
    resets = torch.zeros(1, T, dtype=torch.bool)
    resets[:, starts] = True
    state = make_state(mixer, 1, T + 8, rollback)
    if with_state:
        state = mixer(inputs(1, 5), state, True).state
    y, state = mixer(x, state, True, resets=resets)
    continued = mixer(more, state).y

    last = None
    for start, length in zip(starts.tolist(), lengths, strict=True):
        part, last = mixer(x[:, start : start + length], mixer.init_state(1, max_len=length + 3), True)
        torch.testing.assert_close(y[:, start : start + length], part)
    torch.testing.assert_close(continued, mixer(more, last).y)


@every_variant
@law
@given(T=st.integers(1, 14), seed=seeds, rollback=rollbacks)
def test_no_argument_is_changed(variant: str, T: int, seed: int, rollback: int | None) -> None:
    mixer = build(variant, seed)
    _, state = mixer(inputs(2, 3), make_state(mixer, 2, T + 3, rollback), True)
    x, resets, lengths = inputs(2, T), torch.rand(2, T) < 0.2, torch.randint(0, T + 1, (2,))
    arguments = (x, *parts(state).values(), lengths, resets)
    before = map_state(torch.clone, arguments)
    mixer(x, state, True, lengths=lengths, resets=resets)
    assert all(torch.equal(a, b) for a, b in zip(before, arguments, strict=True))


@every_variant
def test_gradients_reach_every_parameter(variant: str) -> None:
    mixer = build(variant, 0)
    y = mixer(inputs(2, 6)).y
    mixer(inputs(2, 6), mixer(y, mixer.init_state(2, max_len=12), True).state).y.square().sum().backward()

    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@every_variant
def test_the_state_has_one_size_unless_it_is_a_growing_cache(variant: str) -> None:
    mixer = build(variant, 0)
    short, long = (state_bytes(mixer.init_state(1, max_len=length)) for length in (10, 100_000))
    assert (short < long) == (VARIANTS[variant][0] == "softmax")


@every_variant
@pytest.mark.parametrize("rollback", [None, 0])
@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_half_precision_stays_near(variant: str, how: str, rollback: int | None) -> None:
    mixer = build(variant, 1, torch.float32)
    x = inputs(2, 12).float()
    exact = mixer(x).y
    half = torch.bfloat16
    if how == "bfloat16":
        mixer, x = mixer.to(half), x.to(half)
    with torch.autocast("cpu", half, enabled=how == "autocast"):
        y = mixer(x).y
        _, state = mixer(x[:, :7], make_state(mixer, 2, 12, rollback), True)
        stepped = torch.stack([mixer.step(x[:, t], state) for t in range(7, 12)], dim=1)

    assert y.dtype == stepped.dtype == half
    for got, wanted in ((y, exact), (stepped, exact[:, 7:])):
        assert (got - wanted).norm() < 0.1 * wanted.norm()


@every_variant
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_steps_run_without_gradients(variant: str, mode: Any) -> None:
    mixer = build(variant, 0)
    with mode():
        state = mixer.decoding_state(2, max_len=3)
        for token in inputs(3, 2):
            y = mixer.step(token, state)
            assert y.isfinite().all()
            assert not y.requires_grad
    assert not any(part.requires_grad for part in parts(state).values())
    assert state.position.tolist() == [3, 3]


def test_states_compare_by_content() -> None:
    mixer = build("softmax", 0)
    _, state = mixer(inputs(1, 3), mixer.init_state(1, max_len=4), True)
    with pytest.raises(AssertionError, match=r"state\.layer\.keys: "):
        same_state(state, map_state(lambda part: part + 1, state), mixer)
