"""What a call says of its tokens, made once for all layers: where they stand, which are real, where documents begin."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from zoo.kernels.sequence import SequenceGroup, check_share, gather

__all__ = ["Progress", "Shared", "Token", "Window", "document_positions", "open_token", "open_window"]


class Progress(Protocol):
    """A state, of a mixer or of a model, that says how far it is."""

    @property
    def position(self) -> Tensor:
        """`[B]` int64, the tokens seen."""

    @property
    def start(self) -> Tensor:
        """`[B]` int64, how many of them stand before the current document, which sees none of those."""


class Shared:
    """What layers of one call hand on: a layer finds what `earlier` blocks left, and leaves its own in `left`.

    So a layer that is computed again for its backward pass finds what it found the first time. This is no dictionary
    but an object, because wrappers may rebuild the containers among their arguments, and nobody would see what is left
    in a copy.
    """

    def __init__(self, earlier: Mapping[str, Tensor] | None = None) -> None:
        self.earlier: dict[str, Tensor] = dict(earlier or {})
        self.left: dict[str, Tensor] = {}

    def take(self) -> dict[str, Tensor]:
        """Return what there is for the blocks that follow.

        It is forgotten here: a layer's recomputation may hold this object, and its outputs hold that recomputation.
        """
        together = {**self.earlier, **self.left}
        self.left = {}
        return together


class Window(NamedTuple):
    """The tokens `[B, T]` of one call, behind those that a state has seen.

    `positions [B or 1, T]` int64 counts tokens from the first of all, over all documents; it has one row where no row
    has seen anything. `starts [B, T + 1]` are the positions at which documents begin: in column 0 the one that stands
    before the first token, in column `t + 1` that of token `t`. `before [B]` and `after [B]` count the tokens seen
    before this call and with it. With a `group` the tokens are this process's share of a sequence, and all of this
    counts from the sequence's first token.
    """

    positions: Tensor
    starts: Tensor
    before: Tensor
    after: Tensor
    lengths: Tensor | None
    resets: Tensor | None
    shared: Shared
    return_state: bool
    group: SequenceGroup | None = None


class Token(NamedTuple):
    """The window of one token a row, for a step that writes the state in place.

    It stands at `position [B]`, in a document that began at `start [B]`; `after [B]` counts it among the tokens seen.
    """

    position: Tensor
    start: Tensor
    after: Tensor
    shared: Shared


def open_window(
    x: Tensor,
    state: Progress | None,
    *,
    lengths: Tensor | None,
    resets: Tensor | None,
    return_state: bool,
    group: SequenceGroup | None = None,
) -> Window:
    """Return the window of the tokens of `x [B, T, ...]`.

    Args:
        state: what came before; None: nothing.
        lengths: `[B]` integers, how many tokens of each row are real; None: all.
        resets: `[B, T]` bool: a token marked True begins a document; None: none does.
        return_state: whether layers shall return their states after the last token.
        group: processes of which each has a share of the sequence, all of one length.

    Raises:
        InputError: there is a state, lengths or `return_state` beside a group.
    """
    if group is not None:
        check_share(state=state, lengths=lengths, return_state=return_state or None)
        return _open_share(x, resets, group)
    B, T = x.shape[:2]
    steps = torch.arange(T, device=x.device)[None]
    if state is None:
        before = start = torch.zeros(B, device=x.device, dtype=torch.int64)
        positions = steps
    else:
        before, start = state.position, state.start
        positions = before[:, None] + steps
    after = before + (T if lengths is None else lengths)
    starts = _document_starts(positions, start, resets, lengths)
    return Window(positions, starts, before, after, lengths, resets, Shared(), return_state)


def _open_share(x: Tensor, resets: Tensor | None, group: SequenceGroup) -> Window:
    B, T = x.shape[:2]
    first = group.rank * T
    positions = first + torch.arange(T, device=x.device)[None]
    before = first.expand(B)
    start = torch.zeros(B, device=x.device, dtype=torch.int64)
    if resets is not None:
        last_starts = gather(torch.where(resets, positions, 0).amax(1), group)  # of every share, 0 where none begins
        earlier = torch.arange(group.size, device=x.device) < group.rank
        start = torch.where(earlier[:, None], last_starts, 0).amax(0)
    starts = _document_starts(positions, start, resets, None)
    return Window(positions, starts, before, before + T, None, resets, Shared(), False, group)


def open_token(state: Progress) -> Token:
    """Return the window of the next token of each row."""
    return Token(state.position, state.start, state.position + 1, Shared())


def document_positions(window: Window | Token) -> Tensor:
    """Return positions counted from the start of each token's document, `[B, T]` or `[B]`."""
    if isinstance(window, Token):
        return window.position - window.start
    return window.positions - window.starts[:, 1:]


def _document_starts(positions: Tensor, start: Tensor, resets: Tensor | None, lengths: Tensor | None) -> Tensor:
    """`Window.starts`; resets in the padding beyond `lengths` count for nothing."""
    if resets is None:
        return start[:, None].expand(-1, positions.shape[1] + 1)
    if lengths is not None:
        resets = resets & (torch.arange(resets.shape[1], device=resets.device) < lengths[:, None])
    return torch.cat((start[:, None], torch.where(resets, positions, 0)), dim=1).cummax(dim=1).values
