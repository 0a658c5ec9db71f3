"""The weight-state FLOP ratio by the formula of the ratio's authors, one layer at a time.

For one token and h heads of width d, in a model of width M: weights take `4 (h d)^2 + 4 f M`, with f the feed-forward
layer's hidden width, and the head is left out. The state takes `3 h d t` for softmax attention at t tokens (for a
window at most its length), `h (c d + 4 d d)` for linear attention in chunks of c = 256, and `h (c d + 4 D d)` for
power attention, whose state has D rows.

Source: perf/wsfr.ipynb of github.com/m-a-n-i-f-e-s-t/retention at commit e0e69051.
"""

from collections.abc import Sequence

from zoo.accounting import layer_mixers
from zoo.blocks.cache import KeyValueState
from zoo.blocks.heads import HeadShape
from zoo.blocks.mixer import Mixer
from zoo.budget.counts import check_contexts
from zoo.budget.paper import check_terms
from zoo.budget.wsfr import Ratio, RatioTable, Row, mixer_label, variants
from zoo.builder import build
from zoo.recipe import Recipe
from zoo.states import any_state

__all__ = ["authors_table"]

CHUNK = 256

_FORMULA = (
    "4 (h d)^2 + 4 f M for the weights of a layer with h heads of width d and a feed-forward layer of hidden width f, "
    "to 3 h d t for softmax at t tokens (a window: at most its length), or h (c d + 4 D d) for a state of D rows a "
    f"head (linear: D = d), c = {CHUNK}"
)
_NOTES = (
    "The authors' own, from perf/wsfr.ipynb of their repository retention (commit e0e69051); it leaves out the head, "
    "and counts a feed-forward layer as two matrices.",
)


def authors_table(recipe: Recipe, names: Sequence[str], contexts: Sequence[int]) -> RatioTable:
    """Return the ratios by the authors' formula.

    Args:
        recipe: the model, of which heads and the feed-forward layers' width count.
        names: what takes the place of its mixers; see `zoo.budget.wsfr.variants`.
        contexts: in tokens.

    Raises:
        ConfigError: an unknown mixer or option, or a mixer that does not fit the model.
        InputError: no context or one below 1, or a mixer that the formula has no term for.
    """
    check_contexts(contexts)
    rows = tuple(_row(variant, contexts) for variant in variants(recipe, names))
    return RatioTable(recipe.name, "authors", _FORMULA, _NOTES, tuple(contexts), rows)


def _row(recipe: Recipe, contexts: Sequence[int]) -> Row:
    layers = layer_mixers(build(recipe, device="meta"))
    check_terms("authors", recipe, layers)
    feed_forward = 4 * recipe.model.hidden_width * recipe.model.width
    weights = sum(4 * (_heads(mixer).query * _heads(mixer).width) ** 2 + feed_forward for mixer in layers)
    ratios = (
        Ratio(context, weights / sum(_state_work(mixer, context) for mixer in layers), source="formula")
        for context in contexts
    )
    return Row(mixer_label(recipe), tuple(ratios))


def _state_work(mixer: Mixer, context: int) -> int:
    heads, state = _heads(mixer), any_state(mixer, context).layer
    if isinstance(state, KeyValueState):
        return 3 * heads.query * heads.width * min(context, state.keys.shape[1])
    return heads.query * (CHUNK * heads.width + 4 * state.S.shape[2] * heads.width)


def _heads(mixer: Mixer) -> HeadShape:
    heads = mixer.heads
    assert isinstance(heads, HeadShape)
    return heads
