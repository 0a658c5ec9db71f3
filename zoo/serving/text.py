"""Text that is told while its tokens are chosen: whole characters only, and nothing that a stop may begin with."""

from collections.abc import Callable, Sequence

__all__ = ["TextStream"]

_BEFORE = 8  # tokens of a prompt that may change how an answer's first one reads
_LONGEST = 64  # tokens that are held back because they make no character yet; four do, or they never will


class TextStream:
    """The text of one answer, which `decode` makes of ids, up to the first of `stops` in it."""

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, [stop for stop in stops if stop]
        self._told, self._new = list(prompt[-_BEFORE:]), list[int]()
        self._held = ""
        self.stopped = False
        """Whether one of the stops was found."""

    def add(self, token: int) -> str:
        """Return what the next token adds to the text that can be told."""
        self._new.append(token)
        return self._tell(whole=len(self._new) < _LONGEST)

    def finish(self) -> str:
        """Return what was held back, for there are no more tokens."""
        told = self._tell(whole=False) if self._new and not self.stopped else ""
        return told if self.stopped else told + self._held

    def _tell(self, *, whole: bool) -> str:
        # Read behind the tokens before them: by itself a token may lose the space that it begins with.
        before, text = self._decode(self._told), self._decode(self._told + self._new)
        if whole and text.endswith("\ufffd"):  # bytes that make no character yet
            return ""
        self._held += text[len(before) :] if text.startswith(before) else self._decode(self._new)
        self._told, self._new = self._new, []
        found = [self._held.index(stop) for stop in self._stops if stop in self._held]
        self.stopped = bool(found)
        end = min(found) if found else len(self._held) - self._begun()
        told, self._held = self._held[:end], self._held[end:]
        return told

    def _begun(self) -> int:
        """Return how many characters at the end may begin a stop."""
        begun = [n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])]
        return max(begun, default=0)
