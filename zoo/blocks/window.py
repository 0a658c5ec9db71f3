"""What a call says of its tokens, made once for all layers: where they stand, which are real, where documents begin."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from zoo.kernels.sequence import SequenceGroup, at_the_end, gather

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
    in a copy. What belongs to tokens is `[B, T, ...]`, of three dimensions or more; what has fewer belongs to the call.
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
    before the first token, in column `t + 1` that of token `t`. `before [B]` counts the tokens before these. After the
    call `after [B]` tokens are seen, and the document of the last one began at `last_start [B]`.

    With a `group` the tokens, `lengths` and `resets` are those of this process's share of a sequence. All else counts
    from the sequence's first token, and `after` and `last_start` are those of the whole; `ends [B]` bool says whether a
    row's last real token is in this share, or, of a row that has none, whether this is the first share.
    """

    positions: Tensor
    starts: Tensor
    before: Tensor
    after: Tensor
    last_start: Tensor
    lengths: Tensor | None
    resets: Tensor | None
    shared: Shared
    return_state: bool
    group: SequenceGroup | None = None
    ends: Tensor | None = None

    def at_the_end(self, x: Tensor) -> Tensor:
        """Return of x `[B, ...]`, which this share has after its last real token, what is so after the whole sequence.

        It is x where no state is asked for, which saves sending it, and without a group.
        """
        if self.group is None or self.ends is None or not self.return_state:
            return x
        return at_the_end(x, self.group, self.ends)


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
        lengths: `[B]` integers, how many tokens of each row are real, in all shares together; None: all.
        resets: `[B, T]` bool: a token marked True begins a document; None: none does.
        return_state: whether layers shall return their states after the last token.
        group: processes of which each has a share of the sequence, all of one length, and the same state and lengths.
    """
    if group is not None:
        return _open_share(x, state, group, lengths=lengths, resets=resets, return_state=return_state)
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
    return Window(positions, starts, before, after, starts[:, -1], lengths, resets, Shared(), return_state)


def _open_share(
    x: Tensor,
    state: Progress | None,
    group: SequenceGroup,
    *,
    lengths: Tensor | None,
    resets: Tensor | None,
    return_state: bool,
) -> Window:
    B, T = x.shape[:2]
    first, steps = group.rank * T, torch.arange(T, device=x.device)[None]
    if state is None:
        seen = start = torch.zeros(B, device=x.device, dtype=torch.int64)
        positions = first + steps
    else:
        seen, start = state.position, state.start
        positions = (seen + first)[:, None] + steps
    after, own = seen + (group.size * T if lengths is None else lengths), None
    ends = (group.rank == group.size - 1).expand(B)
    if lengths is not None:
        own, ends = (lengths - first).clamp(0, T), group.rank == (lengths - 1).clamp(min=0) // T
    last_start = start
    if resets is not None:
        resets = _real(resets, own)
        found = gather(torch.where(resets, positions, 0).amax(1), group)  # the last of every share, 0 where none begins
        last_start = torch.maximum(start, found.amax(0))
        earlier = torch.arange(group.size, device=x.device) < group.rank
        start = torch.maximum(start, torch.where(earlier[:, None], found, 0).amax(0))
    starts = _document_starts(positions, start, resets, None)
    return Window(
        positions, starts, seen + first, after, last_start, own, resets, Shared(), return_state, group, ends
    )  # fmt: skip


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
    begins = torch.where(_real(resets, lengths), positions, 0)
    return torch.cat((start[:, None], begins), dim=1).cummax(dim=1).values


def _real(resets: Tensor, lengths: Tensor | None) -> Tensor:
    """Resets `[B, T]` of real tokens."""
    if lengths is None:
        return resets
    return resets & (torch.arange(resets.shape[1], device=resets.device) < lengths[:, None])
