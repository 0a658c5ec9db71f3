"""What sets the variants of a study apart, besides the mixer."""

import json
from collections.abc import Mapping, Sequence

from zoo.config import flatten
from zoo.study.summary import Option
from zoo.study.variants import Variant

__all__ = ["differing_options"]

_SAID_ELSEWHERE = {"name", "description", "mixer.name"}


def differing_options(variants: Sequence[Variant]) -> tuple[Option, ...]:
    """Return every setting that not all variants which have it have alike; one that a single variant has is its own."""
    settings = {variant.name: _settings(variant) for variant in variants}
    keys = dict.fromkeys(key for values in settings.values() for key in values if key not in _SAID_ELSEWHERE)
    found = []
    for key in keys:
        values = {name: json.dumps(own[key]) for name, own in settings.items() if key in own}
        if len(set(values.values())) > 1:
            found.append(Option(key=key, values=values))
    return tuple(found)


def _settings(variant: Variant) -> Mapping[str, object]:
    values = dict(flatten(variant.recipe.model_dump(mode="json")))
    values["model.feed_forward_width"] = variant.recipe.model.hidden_width  # what it comes to
    rates = tuple(dict.fromkeys(run.learning_rate for run in variant.runs))
    values["training.learning_rate"] = list(rates) if len(rates) > 1 else rates[0]
    return values
