"""A variant's colour, by its name: a mixer has the same one in every study."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

from zoo.report.plots import Theme
from zoo.study.summary import StudySummary

__all__ = ["color_of", "line_of"]

_PLACES = (
    "softmax", "linear", "power", "gated-power", "sliding-window", "gated-linear", "mamba2", "rwkv7", "delta",
    "gated-delta", "kda", "gla", "hgrn2", "delta-power",
)  # fmt: skip
"""The palette's colours, by the mixer that has each; a new mixer comes last."""

_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))


def color_of(name: str, summary: StudySummary, theme: Theme) -> str:
    """Return the colour of a variant, the same in every plot; of many variants, the later share one, in dashes."""
    return theme.variants[_places(summary.planned)[name]]


def line_of(name: str, summary: StudySummary, theme: Theme) -> dict[str, Any]:
    """Return how a variant's line is drawn: its colour, and its dashes where another one has that colour too."""
    places = _places(summary.planned)
    earlier = summary.planned[: summary.planned.index(name)]
    dashes = _DASHES[sum(places[each] == places[name] for each in earlier) % len(_DASHES)]
    return {"color": theme.variants[places[name]], "linewidth": 1.6} | ({"dashes": dashes} if dashes else {})


def _places(names: Sequence[str]) -> dict[str, int]:
    """Give each name the place of the mixer that it begins with, or, where another has that one, the next free one."""
    own = {name: _own_place(name) for name in names}
    places: dict[str, int] = {}
    for name, place in own.items():
        if place not in places.values():
            places[name] = place
    for name, place in own.items():
        if name not in places:
            following = ((place + further) % len(_PLACES) for further in range(len(_PLACES)))
            places[name] = next((each for each in following if each not in places.values()), place)
    return places


def _own_place(name: str) -> int:
    found = [mixer for mixer in _PLACES if name == mixer or name.startswith((f"{mixer} ", f"{mixer}-", f"{mixer}."))]
    return _PLACES.index(max(found, key=len)) if found else crc32(name.encode()) % len(_PLACES)
