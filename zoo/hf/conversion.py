"""What a conversion is, as it stands in a model's config: which layers, with which mixer between their heads."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

from pydantic import Field, model_validator

from zoo.blocks.gate import Retention
from zoo.blocks.offset import Offset
from zoo.config import Config
from zoo.limits import LONGEST

__all__ = ["Conversion", "HeadShapes", "MixerName"]

MixerName = Literal[
    "power", "gated-power", "linear", "gated-linear", "delta", "gated-delta", "sliding-window", "softmax"
]


class HeadShapes(NamedTuple):
    """Counts of query heads and of key/value heads, and the widths of one key and of one value."""

    query: int
    key_value: int
    key_width: int
    value_width: int


class Conversion(Config):
    """Options of `zoo.hf.convert`, and the heads that each converted layer was found to have."""

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "p": ("power", "gated-power"),
        "normalize": ("power", "gated-power"),
        "offset": ("power", "gated-power"),
        "scale": ("power", "gated-power"),
        "gate": ("gated-power", "gated-linear", "gated-delta"),
        "window": ("sliding-window",),
    }
    """The mixers that an option belongs to."""

    mixer: MixerName = "gated-power"

    p: int | None = Field(None, ge=1, le=4)
    """The power of the scores, which sets the size of the state."""

    normalize: bool | None = None
    """Divide by the sum of weights, which needs an even p; None: where p is even."""

    # None is the default here, though not in `convert`: it is what a config means that does not know of offsets.
    offset: Offset = 0.0
    """Added to scores before they are raised to their power: a number, or `learned`, one a head from 1 on."""

    scale: Offset = 1.0
    """Times the model's own factor on scores: a number, or `learned`, one a head, from 1 / p on with an offset."""

    gate: Retention | None = None
    """Share of its past that the most forgetful and the most retentive head keep a token, before training."""

    window: int | None = Field(None, ge=1, le=LONGEST)
    """Tokens that a token sees, itself included."""

    heads: dict[str, tuple[int, int, int, int]] = Field(default_factory=dict)
    """Of each converted layer, by its index: query heads, key/value heads, widths of a key and of a value."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("mixer", "gated-power") not in get_args(MixerName):
            return values
        given, mixer = {**values}, values.get("mixer", "gated-power")
        for option, default in {"p": 2, "gate": (0.9, 0.9999), "window": 1024}.items():
            if mixer in cls.options[option] and given.get(option) is None:
                given[option] = default
        heads = given.get("heads")
        if isinstance(heads, Mapping):  # JSON has lists
            given["heads"] = {key: tuple(value) if isinstance(value, list) else value for key, value in heads.items()}
        return given

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        for option, mixers in self.options.items():
            unset = type(self).model_fields[option].default
            if getattr(self, option) not in (None, unset) and self.mixer not in mixers:
                raise ValueError(f"{option} is an option of {', '.join(mixers)}, not of {self.mixer}")
        if self.normalize and (self.p or 1) % 2:
            raise ValueError(f"normalize must be false for odd p={self.p}, whose weights can be negative")
        return self

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the converted layers."""
        return tuple(sorted(int(layer) for layer in self.heads))

    def shapes(self, layer: int) -> HeadShapes:
        """Return the heads of a converted layer."""
        return HeadShapes(*self.heads[str(layer)])
