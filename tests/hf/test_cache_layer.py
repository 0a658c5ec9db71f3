"""A layer of the cache is the law in another shape: pieces, crops and beams leave the state of the tokens kept."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.errors import InputError
from zoo.hf.between_heads import BetweenHeads, HeadInputs, between_heads
from zoo.hf.cache_layer import StateLayer
from zoo.hf.conversion import Conversion, HeadShapes

HEADS = HeadShapes(query=4, key_value=2, key_width=4, value_width=6)
MIXERS = {
    name: between_heads(Conversion(mixer=name, **({"window": 3} if name == "sliding-window" else {})))
    for name in ("power", "gated-power", "gated-linear", "gated-delta", "sliding-window")
}
TOKENS = 64


def draw(mixer: BetweenHeads, seed: int) -> HeadInputs:
    """Return inputs of two rows, in double precision so that only a wrong state makes a difference."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(2, TOKENS, *sizes, generator=generator, dtype=torch.float64)

    width = HEADS.key_width
    value = width if mixer is MIXERS["sliding-window"] else HEADS.value_width
    gates = mixer.gates(HEADS)
    return HeadInputs(
        normal(HEADS.query, width), normal(HEADS.key_value, width), normal(HEADS.key_value, value), 0.5,
        -normal(gates).abs() / 8 if mixer.gated else None,
        -normal(gates).abs() if mixer.writes else None,
    )  # fmt: skip


def chosen(inputs: HeadInputs, places: list[int]) -> HeadInputs:
    return inputs.map(lambda x: x[:, places])


@given(
    name=st.sampled_from(sorted(MIXERS)),
    static=st.booleans(),
    actions=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=6),
    seed=st.integers(0, 9),
)
@torch.no_grad()
def test_what_is_cropped_leaves_no_trace(name: str, static: bool, actions: list[tuple[int, int]], seed: int) -> None:
    mixer = MIXERS[name]
    inputs, layer = draw(mixer, seed), StateLayer(mixer, TOKENS if static else None)
    layer.activate_past_recording()
    kept: list[int] = []
    read = 0
    for count, back in actions:
        kept += range(read, read + count)
        layer.attend(chosen(inputs, list(range(read, read + count))))
        read += count
        back = min(back, count)
        layer.crop(-back)
        kept = kept[: len(kept) - back]
    kept.append(read)
    found = layer.attend(chosen(inputs, [read]))
    whole, _ = mixer.attend(chosen(inputs, kept), None, return_state=False)
    torch.testing.assert_close(found[:, 0], whole[:, -1], rtol=1e-5, atol=1e-7)
    assert int(layer.get_seq_length()) == len(kept)


@given(name=st.sampled_from(sorted(MIXERS)), static=st.booleans(), seed=st.integers(0, 9))
@torch.no_grad()
def test_rows_go_where_beams_send_them(name: str, static: bool, seed: int) -> None:
    mixer = MIXERS[name]
    inputs, layer = draw(mixer, seed), StateLayer(mixer, TOKENS if static else None)
    layer.activate_past_recording()
    layer.attend(chosen(inputs, list(range(5))))
    layer.reorder_cache(torch.tensor([1, 1]))
    layer.attend(chosen(inputs, [5, 6]))
    layer.crop(-1)
    found = layer.attend(chosen(inputs, [7]))
    rows = inputs.map(lambda x: torch.cat((x[[1, 1], :5], x[:, 5:]), 1))
    whole, _ = mixer.attend(chosen(rows, [0, 1, 2, 3, 4, 5, 7]), None, return_state=False)
    torch.testing.assert_close(found[:, 0], whole[:, -1], rtol=1e-5, atol=1e-7)


def test_a_window_takes_values_as_wide_as_keys() -> None:
    with pytest.raises(InputError, match="mixer: sliding-window attention takes values as wide as keys, 4, was 6"):
        MIXERS["sliding-window"].empty(1, HEADS, None, torch.float32)


@pytest.mark.parametrize("name", MIXERS)
def test_an_early_state_is_the_empty_one(name: str) -> None:
    layer = StateLayer(MIXERS[name], TOKENS)
    layer.lazy_initialization(torch.zeros(2, 4, 0, 4), torch.zeros(2, 4, 0, 4))
    assert layer.is_initialized
    assert layer.get_seq_length() == 0
    assert layer.get_mask_sizes(3) == (TOKENS, 0)
