"""Every architecture in every kind of conversion: padding, decoding, caches, files, gradients."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from .tiny import ARCHITECTURES, KINDS, converted, greedy, greedy_by_forward, padded, tiny, tokens

pytestmark = [
    pytest.mark.parametrize("architecture", ARCHITECTURES),
    pytest.mark.parametrize("kind", KINDS),
]


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(architecture: str, kind: str) -> None:
    model, ids = converted(architecture, kind), tokens()
    rows, mask = padded(ids, [3, 1])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = model(rows, attention_mask=mask, position_ids=positions).logits
    for row, amount in enumerate([3, 1]):
        alone = model(ids[row : row + 1]).logits[0]
        torch.testing.assert_close(found[row, amount : amount + 9], alone, rtol=1e-4, atol=1e-4)


def test_greedy_decoding_follows_the_full_forward(architecture: str, kind: str) -> None:
    model, ids = converted(architecture, kind), tokens()
    assert torch.equal(greedy(model, ids), greedy_by_forward(lambda x: model(x, use_cache=False).logits, ids))


def test_a_static_cache_decodes_padded_rows_alike(architecture: str, kind: str) -> None:
    model, ids = converted(architecture, kind), tokens()
    rows, mask = padded(ids, [3, 3])
    static = greedy(model, rows, attention_mask=mask, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, greedy(model, ids))


def test_beams_carry_their_states(architecture: str, kind: str) -> None:
    model, ids = converted(architecture, kind), tokens()
    assert torch.equal(greedy(model, ids, num_beams=3), greedy(model, ids, num_beams=3, use_cache=False))


def test_assisted_decoding_takes_back_what_was_not_accepted(architecture: str, kind: str) -> None:
    model, ids = converted(architecture, kind), tokens(rows=1)
    assistant = tiny("Llama")
    assert torch.equal(greedy(model, ids, 8, assistant_model=assistant), greedy(model, ids, 8))


def test_saved_and_loaded_gives_the_same_bits(architecture: str, kind: str, tmp_path: Path) -> None:
    model, ids = converted(architecture, kind), tokens()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_every_parameter_gets_a_gradient(architecture: str, kind: str) -> None:
    model, ids = converted(architecture, kind), tokens()
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    gates = [p for name, p in model.named_parameters() if "retention_gate" in name]
    assert all(gate.grad.count_nonzero() for gate in gates)
    model.zero_grad()
