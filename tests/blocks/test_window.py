"""What a call says of its tokens, against counting them one by one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.blocks.mixer import MixerState
from zoo.blocks.window import Shared, document_positions, open_token, open_window


def counted(position: int, start: int, resets: list[bool]) -> tuple[list[int], list[int]]:
    """The position of each token of a row, and where its document starts, first of what came before."""
    positions, starts = [], [start]
    for reset in resets:
        positions.append(position)
        starts.append(position if reset else starts[-1])
        position += 1
    return positions, starts


@settings(deadline=None)
@given(T=st.integers(0, 9), B=st.integers(1, 3), seed=st.integers(0, 2**31), data=st.data())
def test_positions_and_documents_are_counted(T: int, B: int, seed: int, data: st.DataObject) -> None:
    torch.manual_seed(seed)
    x, resets = torch.zeros(B, T, 4), torch.rand(B, T) < 0.3
    position = torch.randint(0, 20, (B,))
    state = MixerState((), position, position - torch.randint(0, 9, (B,)).clamp(max=position))
    lengths = torch.randint(0, T + 1, (B,))
    some = data.draw(st.fixed_dictionaries({"lengths": st.booleans(), "resets": st.booleans(), "state": st.booleans()}))
    before = state if some["state"] else MixerState((), torch.zeros_like(position), torch.zeros_like(position))
    window = open_window(
        x, state if some["state"] else None, lengths=lengths if some["lengths"] else None,
        resets=resets if some["resets"] else None, return_state=True,
    )  # fmt: skip

    real = lengths if some["lengths"] else torch.full((B,), T)
    assert torch.equal(window.before, before.position)
    assert torch.equal(window.after, before.position + real)
    for b in range(B):
        marked = (resets[b] & (torch.arange(T) < real[b]) & some["resets"]).tolist()
        positions, starts = counted(int(before.position[b]), int(before.start[b]), marked)
        assert window.positions.expand(B, T)[b].tolist() == positions
        assert window.starts[b].tolist() == starts
        in_document = [position - start for position, start in zip(positions, starts[1:], strict=True)]
        assert document_positions(window)[b].tolist() == in_document


def test_rows_that_have_seen_nothing_share_their_positions() -> None:
    window = open_window(torch.zeros(3, 5, 2), None, lengths=None, resets=None, return_state=False)
    assert window.positions.shape == (1, 5)


def test_a_token_stands_behind_what_was_seen() -> None:
    token = open_token(MixerState((), torch.tensor([4, 0]), torch.tensor([1, 0])))
    found: list[Tensor] = [token.position, token.after, document_positions(token)]
    assert [part.tolist() for part in found] == [[4, 0], [5, 1], [3, 0]]


def test_what_layers_leave_is_for_those_that_follow() -> None:
    first, second = torch.zeros(1), torch.ones(1)
    shared = Shared({"first": first})
    shared.left["second"] = second
    assert shared.earlier == {"first": first}
    assert shared.take() == {"first": first, "second": second}
    assert shared.take() == {"first": first}
