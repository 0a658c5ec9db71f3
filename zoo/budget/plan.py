"""Models of a given size whose work divides evenly between weights and state at a given context."""

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import cast

import torch

from zoo.budget.counts import Budget, check_contexts, measure
from zoo.budget.layers import LayerCosts, layer_costs
from zoo.builder import build
from zoo.errors import ConfigError, InputError, nearest
from zoo.mixers import MixerConfig
from zoo.mixers import mixers as registered
from zoo.recipe import Recipe, load_recipe
from zoo.recipe.model import DecoderConfig

__all__ = ["BASE", "HEAD_WIDTHS", "SHAPES", "TOLERANCE", "Choice", "Plan", "make_plan", "parse_parameters"]

BASE = "gpt2-124m-rotary"
HEAD_WIDTHS = (32, 64, 128)
MULTIPLE = 64
"""Of which all widths are multiples."""
TOLERANCE = 0.05
SHAPES = (16, 160)
"""Least and greatest width of a model over its layers; that of GPT-2 is 64."""

_MOST_WIDTHS = 16
_MOST_POWERS = 8
_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}


@dataclass(frozen=True)
class Choice:
    """One model."""

    mixer: str
    p: int | None
    """The mixer's power; None where it has none."""
    head_width: int
    layers: int
    width: int
    overrides: tuple[str, ...]
    """Overrides that make the base recipe this model, trained at the plan's context."""
    parameters: int
    budget: Budget
    """At the plan's context, with parameters and caches in bfloat16 and running sums in float32."""

    def decode_bytes(self, batch_size: int) -> int:
        """Bytes of the parameters in bfloat16 and of the states of `batch_size` sequences."""
        return torch.bfloat16.itemsize * self.parameters + batch_size * self.budget.state_bytes


@dataclass(frozen=True)
class Plan:
    """The size and context asked for, and the models that come nearest to it, the nearest first."""

    base: str
    recipe: Recipe
    target: int
    context: int
    state_limit: int
    choices: tuple[Choice, ...]
    left_out: int
    """How many models have states over the limit, or such as the op refuses."""
    smallest_left_out: Choice | None

    def line(self, choice: Choice) -> str:
        """Return a choice as `zoo show` and `zoo train` take it."""
        return " ".join((self.base, *choice.overrides))


def parse_parameters(text: str) -> int:
    """Return the number that 124M, 1.3B, 350k or 350000000 stands for, by thousands, in capitals or not.

    Raises:
        InputError: it stands for none, or for none above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBG]?)", text.strip(), re.IGNORECASE)
    number = round(float(match[1]) * _SUFFIXES[match[2].upper()]) if match else 0
    if number < 1:
        raise InputError(f"params: expected a number of parameters such as 124M, 1.3B or 350000000, was {text!r}")
    return number


def make_plan(
    target: int,
    context: int,
    mixers: Sequence[str] | None = None,
    *,
    base: str = BASE,
    state_limit: int = 2**30,
    limit: int = 10,
) -> Plan:
    """Return the models nearest to a weight-state FLOP ratio of 1:1.

    Args:
        target: parameters; a model has them within 5%.
        context: in tokens.
        mixers: names; None: all that there are. Their options but the power are at their defaults.
        base: the recipe that gives everything but mixer, layers, width and heads.
        state_limit: bytes that the state of one sequence may take.
        limit: how many models to return.

    Raises:
        ConfigError: an unknown recipe or mixer.
        InputError: a context that the recipe does not reach, or no model of that size.
    """
    recipe = load_recipe(base)
    names = list(registered if mixers is None else mixers)
    _check(recipe, names, context)
    found: dict[tuple[object, ...], _Candidate] = {}
    for name in names:
        widths = _widths(recipe, name, target, context)
        for mixer, head_width, width in product(_powers(name), _head_widths(recipe), widths):
            for candidate in _candidates(recipe, mixer, head_width, width, target, context):
                # Where the model's head width makes no difference, the recipe's own, which is first, stands for all.
                found.setdefault(candidate.key, candidate)
    if not found:
        raise InputError(
            f"params: expected a number that {base} comes within {TOLERANCE:.0%} of, in widths that are multiples of "
            f"{MULTIPLE} and {SHAPES[0]} to {SHAPES[1]} times the layers, was {target:,}"
        )
    ranked = sorted(found.values(), key=lambda candidate: candidate.distance)
    fitting = [each for each in ranked if not each.refused and each.budget.state_bytes <= state_limit]
    over = [each for each in ranked if each.refused or each.budget.state_bytes > state_limit]
    smallest = min(over, key=lambda candidate: candidate.budget.state_bytes, default=None)
    choices = tuple(each.build(recipe) for each in fitting[:limit])
    return Plan(
        base,
        recipe,
        target,
        context,
        state_limit,
        choices,
        len(over),
        None if smallest is None else smallest.build(recipe),
    )


@dataclass(frozen=True)
class _Candidate:
    """A model whose costs are known from its layers, and that was not built."""

    config: DecoderConfig
    mixer: MixerConfig
    head_width: int
    parameters: int
    budget: Budget
    refused: bool

    @property
    def distance(self) -> float:
        return abs(math.log(self.budget.ratio))

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for models that differ in nothing that counts here."""
        budget = self.budget
        return self.mixer, self.config.layers, self.config.width, self.parameters, budget.state_bytes, budget.ratio

    def build(self, recipe: Recipe) -> Choice:
        """Build the model as its overrides say, on the meta device, and count it."""
        overrides = (*self._overrides(recipe), *_context_override(recipe, self.budget.context))
        model = build(recipe.override(overrides), device="meta")
        config = self.config
        return Choice(
            self.mixer.name, getattr(self.mixer, "p", None), self.head_width, config.layers, config.width, overrides,
            model.num_parameters(), measure(model, self.budget.context, torch.bfloat16),
        )  # fmt: skip

    def _overrides(self, recipe: Recipe) -> Iterator[str]:
        for key in ("layers", "width", "heads"):
            yield f"model.{key}={getattr(self.config, key)}"
        for key in ("key_value_heads", "head_width", "feed_forward_width"):
            if getattr(self.config, key) != getattr(recipe.model, key):
                yield f"model.{key}={getattr(self.config, key)}"
        if recipe.hybrid is not None:
            yield "hybrid=null"
        yield f"mixer={self.mixer.name}"
        if "p" in type(self.mixer).model_fields:
            yield f"mixer.p={getattr(self.mixer, 'p')}"  # noqa: B009 (mypy: some configs have none)


def _context_override(recipe: Recipe, context: int) -> list[str]:
    return [] if context == recipe.training.context_length else [f"training.context_length={context}"]


def _check(recipe: Recipe, names: Sequence[str], context: int) -> None:
    check_contexts([context])
    for name in names:
        if name not in registered:
            raise ConfigError(f"mixers: expected {', '.join(registered)}, was {name!r}{nearest(name, registered)}")
    model = recipe.model
    if model.positions == "learned" and context > model.max_positions:
        raise InputError(
            f"context: expected at most the {model.max_positions:,} learned positions of {recipe.name}, was {context:,}"
        )


def _powers(name: str) -> list[MixerConfig]:
    """Return a mixer's config at every power that it takes, or the only one of a mixer without powers."""
    kind = registered[name].config
    if "p" not in kind.model_fields:
        return [cast("MixerConfig", kind())]
    configs: list[MixerConfig] = []
    for p in range(1, _MOST_POWERS + 1):
        try:
            configs.append(cast("MixerConfig", kind(p=p)))
        except ConfigError:
            return configs
    return configs


def _head_widths(recipe: Recipe) -> list[int]:
    """The recipe's own first."""
    own = recipe.model.head_width or recipe.model.width // recipe.model.heads
    return sorted(HEAD_WIDTHS, key=lambda width: width != own)


def _widths(recipe: Recipe, name: str, target: int, context: int) -> list[int]:
    """Return the widths at which a model of the size has a shape in range, or a little out of it; at most 16."""
    # Grouped heads, which not every width takes, change a layer's size little enough for the margins below.
    alone = recipe.replace(model=recipe.model.replace(key_value_heads=None))
    mixer = _powers(name)[0]

    def shape(width: int) -> float:
        """Width over layers, which grows with the width."""
        costs = _costs(alone, mixer, MULTIPLE, width, context)
        layers = _layers(costs, target) if costs else math.inf
        return width / layers if layers > 0 else math.inf

    widths = range(MULTIPLE, math.isqrt(target) + MULTIPLE, MULTIPLE)  # a layer has more weights than one square
    found = widths[bisect_left(widths, 0.8 * SHAPES[0], key=shape) : bisect_right(widths, 1.25 * SHAPES[1], key=shape)]
    step = MULTIPLE * math.ceil(len(found) / _MOST_WIDTHS)
    return [width for width in found if width % step == 0]


def _candidates(
    recipe: Recipe, mixer: MixerConfig, head_width: int, width: int, target: int, context: int
) -> Iterator[_Candidate]:
    """Yield the models of the size with every number of layers that gives it."""
    costs = _costs(recipe, mixer, head_width, width, context)
    if costs is None:
        return
    least, most = (_layers(costs, target * (1 + side * TOLERANCE)) for side in (-1, 1))
    for layers in range(max(1, math.ceil(least)), math.floor(most) + 1):
        if SHAPES[0] <= width / layers <= SHAPES[1]:
            config = _config(recipe, head_width, width).replace(layers=layers)
            yield _Candidate(config, mixer, head_width, costs.parameters(layers), costs.budget(layers), costs.refused)


def _layers(costs: LayerCosts, target: float) -> float:
    """Return the number of layers, not a whole one, that gives `target` parameters."""
    return 1 + (target - costs.parameters(1)) / (costs.parameters(2) - costs.parameters(1))


def _costs(recipe: Recipe, mixer: MixerConfig, head_width: int, width: int, context: int) -> LayerCosts | None:
    """Return what models of one width cost by layers; None where the heads do not fit the width."""
    if width % head_width:
        return None
    try:
        return layer_costs(_config(recipe, head_width, width), mixer, context, torch.bfloat16)
    except ConfigError:
        return None


def _config(recipe: Recipe, head_width: int, width: int) -> DecoderConfig:
    """Return the recipe's model at another width, with heads in groups and feed-forward layers in its proportions.

    Raises:
        ConfigError: there are not so many heads that the groups come out even.
    """
    model, heads = recipe.model, width // head_width
    group = model.heads // (model.key_value_heads or model.heads)
    hidden = model.feed_forward_width
    if hidden is not None:
        hidden = math.ceil(hidden * width / (model.width * MULTIPLE)) * MULTIPLE if width != model.width else hidden
    if heads % group:
        raise ConfigError(f"heads: expected a multiple of {group}, was {heads}")
    return model.replace(
        layers=1,
        width=width,
        heads=heads,
        key_value_heads=None if model.key_value_heads is None else heads // group,
        head_width=None if model.head_width is None else head_width,
        feed_forward_width=hidden,
    )
