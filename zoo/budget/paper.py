"""The weight-state FLOP ratio as published for a model of 124M parameters, by a formula that was fitted to the table.

Published are ratios for GPT-2's small shape (12 layers of width 768, 12 heads of width 64, 50,257 tokens) with
exponential (softmax), linear and windowed attention. The formula here is a fit to them; the authors' own, which gives
other numbers for softmax, is in `zoo.budget.authors`. It takes the weights' work as tokens attended to,
`t* = 5 M + vocab / L`, against `t` for softmax attention, `min(t, window)` for a window, and `2 D + C` for a state of D
rows a head that is worked on in chunks of C = 128. It gives the rows of softmax and of the window to the digit, and
31:1 where 30:1 was published for linear attention.

Source of the ratios: Gelada et al., "Scaling Context Requires Rethinking Attention", arXiv 2507.04239.
"""

from collections.abc import Sequence
from statistics import fmean

from zoo.accounting import layer_mixers
from zoo.blocks.around import Around
from zoo.blocks.cache import KeyValueState
from zoo.blocks.mixer import Mixer
from zoo.budget.counts import check_contexts
from zoo.budget.wsfr import Ratio, RatioTable, Row, mixer_label, variants
from zoo.builder import build
from zoo.errors import InputError
from zoo.kernels.power import PowerState
from zoo.mixers import MixerConfig
from zoo.mixers.linear import LinearConfig
from zoo.mixers.sliding_window import SlidingWindowConfig
from zoo.mixers.softmax import SoftmaxConfig
from zoo.recipe import Recipe
from zoo.recipe.model import DecoderConfig
from zoo.report.numbers import ratio_text
from zoo.states import any_state

__all__ = ["PUBLISHED", "PUBLISHED_CONTEXTS", "balance", "check_terms", "paper_table"]

CHUNK = 128

PUBLISHED_CONTEXTS = (1_024, 8_192, 65_536, 1_000_000)
"""Tokens."""

PUBLISHED: tuple[tuple[MixerConfig, tuple[str, ...]], ...] = (
    (SoftmaxConfig(), ("8:1", "1:1", "1:8", "1:125")),
    (LinearConfig(), ("30:1", "30:1", "30:1", "30:1")),
    (SlidingWindowConfig(window=8_192), ("8:1", "1:1", "1:1", "1:1")),
)
"""The published rows, at `PUBLISHED_CONTEXTS`."""


def balance(model: DecoderConfig) -> float:
    """Return t*, the context in tokens at which softmax attention's ratio is 1:1."""
    return 5 * model.width + model.vocab_size / model.layers


def paper_table(recipe: Recipe, names: Sequence[str], contexts: Sequence[int]) -> RatioTable:
    """Return the ratios by the fitted formula; rows that were never published are called derived.

    Args:
        recipe: the model, of which width, layers and vocabulary count.
        names: what takes the place of its mixers; see `zoo.budget.wsfr.variants`.
        contexts: in tokens.

    Raises:
        ConfigError: an unknown mixer or option, or a mixer that does not fit the model.
        InputError: no context or one below 1, or a mixer that the formula has no term for.
    """
    check_contexts(contexts)
    model = recipe.model
    formula = (
        f"t* = 5 M + vocab / L = 5 x {model.width:,} + {model.vocab_size:,} / {model.layers} = {balance(model):,.0f} "
        f"tokens; t* / t for softmax, t* / min(t, window) for a window, t* / (2 D + C) for a state of D rows a head, "
        f"C = {CHUNK}"
    )
    notes = (
        "The formula is a fit to the published table; the authors' own is --accounting authors.",
        "Published are softmax, linear and a window of 8,192 for gpt2-124m at 1,024, 8,192, 65,536 and 1,000,000 "
        "tokens; everything else is derived from the fit.",
    )
    rows = tuple(_row(variant, contexts) for variant in variants(recipe, names))
    return RatioTable(recipe.name, "paper", formula, notes, tuple(contexts), rows)


def _row(recipe: Recipe, contexts: Sequence[int]) -> Row:
    layers = layer_mixers(build(recipe, device="meta"))
    check_terms("paper", recipe, layers)
    published = _published(recipe)
    ratios = []
    for context in contexts:
        tokens = fmean(_state_tokens(mixer, context) for mixer in layers)
        value, printed = balance(recipe.model) / tokens, published.get(context)
        ratios.append(Ratio(context, value, published=printed, source=_source(value, printed)))
    return Row(mixer_label(recipe), tuple(ratios))


def check_terms(accounting: str, recipe: Recipe, layers: Sequence[Mixer]) -> None:
    """Check that a formula for caches of keys and for power attention has a term for all of a recipe's layers.

    Raises:
        InputError: it has none.
    """
    if any(isinstance(mixer, Around) for mixer in layers):
        raise InputError(
            f"accounting: {accounting} has no term for what model.around={recipe.model.around} of {recipe.name} puts "
            f"around {mixer_label(recipe)}; set model.around=none, or take exact"
        )
    if not all(isinstance(any_state(mixer, 1).layer, KeyValueState | PowerState) for mixer in layers):
        raise InputError(
            f"accounting: {accounting} has terms for caches of keys and for power attention, not for "
            f"{mixer_label(recipe)} in {recipe.name}; name other mixers, or take exact, which has them for all"
        )


def _state_tokens(mixer: Mixer, context: int) -> int:
    """Return what one layer's work on its state for one token comes to, in tokens attended to."""
    state = any_state(mixer, context).layer
    if isinstance(state, KeyValueState):
        return min(context, state.keys.shape[1])
    return int(2 * state.S.shape[2] + CHUNK)


def _published(recipe: Recipe) -> dict[int, str]:
    """Return the published row of a recipe's model and mixer by context, empty where there is none."""
    model = recipe.model
    sizes = (model.layers, model.width, model.heads, model.key_value_heads, model.head_width, model.vocab_size)
    if sizes in ((12, 768, 12, None, None, 50_257), (12, 768, 12, 12, 64, 50_257)):
        for mixer, row in PUBLISHED:
            if set(recipe.layer_mixers) == {mixer}:
                return dict(zip(PUBLISHED_CONTEXTS, row, strict=True))
    return {}


def _source(value: float, published: str | None) -> str:
    if published is None:
        return "derived"
    return "published" if published == ratio_text(value) else f"published as {published}"
