"""Rotary frequencies of models whose context was extended: the published rules, as transformers computes them.

A rule is fixed when a model is built. Some published ones change with the longest sequence of a batch, after which keys
that are already rotated would be wrong, and a token would depend on later ones: these take `context_length` here.
"""

import functools
import math
from abc import abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from zoo.config import Config
from zoo.errors import ConfigError
from zoo.limits import LONGEST

__all__ = [
    "DynamicScaling", "LinearScaling", "Llama3Scaling", "LongropeScaling", "RotaryScaling", "ScalingConfig",
    "YarnScaling", "parse_scaling", "scalings",
]  # fmt: skip


class ScalingConfig(Config):
    """One rule; `factor` is how many times longer the context became."""

    kind: str

    @abstractmethod
    def frequencies(self, pairs: Tensor, base: float) -> Tensor:
        """Return how far each of the pairs turns a token, in radians.

        Args:
            pairs: 0 to P - 1 in float64; unscaled, pair `i` turns by `base^(-i/P)`.
        """

    @property
    def amplitude(self) -> float:
        """What rotated queries and keys are each multiplied by, the `attention_factor` of transformers."""
        return 1.0

    def check(self, pairs: int) -> None:
        """Check that a rule fits so many pairs of channels.

        Raises:
            ConfigError: it does not.
        """

    def resize(self, pairs: int) -> "ScalingConfig":
        """Return the rule for heads of another width, made of so many pairs."""
        return self

    def reaching(self, context_length: int) -> "ScalingConfig":
        """Return the rule of a model for sequences of up to `context_length` tokens, where it depends on that."""
        return self.replace(context_length=context_length) if "context_length" in type(self).model_fields else self


class LinearScaling(ScalingConfig):
    """Every position divided by `factor` (Chen et al., arXiv 2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(ge=1)

    def frequencies(self, pairs: Tensor, base: float) -> Tensor:
        return _unscaled(pairs, base) / self.factor


class DynamicScaling(ScalingConfig):
    """A base that grows with the context beyond `original_positions` (NTK-aware, in transformers `dynamic`)."""

    kind: Literal["dynamic"] = "dynamic"
    factor: float = Field(ge=1)
    original_positions: int = Field(ge=1, le=LONGEST)
    """The longest sequence of the first training."""

    context_length: int | None = Field(None, ge=1, le=LONGEST)
    """The longest sequence that this model is for; None: `original_positions`, with which nothing is scaled."""

    def frequencies(self, pairs: Tensor, base: float) -> Tensor:
        length = max(self.context_length or 0, self.original_positions)
        growth = self.factor * length / self.original_positions - (self.factor - 1)
        return _unscaled(pairs, base * growth ** (len(pairs) / (len(pairs) - 1)))

    def check(self, pairs: int) -> None:
        if pairs < 2:
            raise ConfigError(f"rotary_scaling: dynamic needs at least 4 channels of a head that turn, got {2 * pairs}")


class YarnScaling(ScalingConfig):
    """Slow pairs interpolated, fast ones left alone, a ramp between them (Peng et al., arXiv 2309.00071)."""

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(ge=1)
    original_positions: int = Field(ge=1, le=LONGEST)
    """The longest sequence of the first training."""

    attention_factor: float | None = Field(None, gt=0)
    """What rotated queries and keys are each multiplied by; None: 0.1 ln(factor) + 1."""

    fast_turns: float = Field(32.0, gt=0)
    """Pairs of more turns than this in `original_positions` tokens keep their frequency."""

    slow_turns: float = Field(1.0, gt=0)
    """Pairs of fewer turns than this are interpolated in full."""

    truncate: bool = True
    """Let the ramp begin and end at whole pairs."""

    def frequencies(self, pairs: Tensor, base: float) -> Tensor:
        first, last = self._pair_of(self.fast_turns, len(pairs), base), self._pair_of(self.slow_turns, len(pairs), base)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * len(pairs) - 1)
        share = ((pairs - first) / (last - first or 0.001)).clamp(0, 1)  # of the interpolated frequency
        unscaled = _unscaled(pairs, base)
        return unscaled / self.factor * share + unscaled * (1 - share)

    def _pair_of(self, turns: float, pairs: int, base: float) -> float:
        return pairs * math.log(self.original_positions / (turns * 2 * math.pi)) / math.log(base)

    @property
    def amplitude(self) -> float:
        return self.attention_factor or 0.1 * math.log(self.factor) + 1


class Llama3Scaling(ScalingConfig):
    """Long wavelengths times `factor`, short ones left alone, a blend between them (Llama 3.1)."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(ge=1)
    original_positions: int = Field(ge=1, le=LONGEST)
    """The longest sequence of the first training."""

    low_frequency_factor: float = Field(1.0, gt=0)
    """Pairs of fewer turns than this in `original_positions` tokens are slowed in full."""

    high_frequency_factor: float = Field(4.0, gt=0)
    """Pairs of more turns than this keep their frequency."""

    def frequencies(self, pairs: Tensor, base: float) -> Tensor:
        unscaled = _unscaled(pairs, base)
        turns = self.original_positions * unscaled / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        share = ((turns - low) / (high - low)).clamp(0, 1)  # of the unscaled frequency
        return (1 - share) * unscaled / self.factor + share * unscaled

    def check(self, pairs: int) -> None:
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ConfigError(
                "rotary_scaling.high_frequency_factor: must be more than low_frequency_factor "
                f"{self.low_frequency_factor}, got {self.high_frequency_factor}"
            )


class LongropeScaling(ScalingConfig):
    """A factor of its own for each pair, found by search (Ding et al., arXiv 2402.13753)."""

    kind: Literal["longrope"] = "longrope"
    short_factors: tuple[float, ...] = Field(min_length=1)
    """What each pair is slowed by in sequences of up to `original_positions`."""

    long_factors: tuple[float, ...] = Field(min_length=1)
    """The same for longer ones."""

    original_positions: int = Field(ge=2, le=LONGEST)
    """The longest sequence of the first training."""

    factor: float = Field(1.0, ge=1)
    """How many times longer the context became."""

    attention_factor: float | None = Field(None, gt=0)
    """What rotated queries and keys are each multiplied by; None: sqrt(1 + ln(factor) / ln(original_positions))."""

    context_length: int | None = Field(None, ge=1, le=LONGEST)
    """The longest sequence that this model is for, which chooses the factors; None: `original_positions`."""

    def frequencies(self, pairs: Tensor, base: float) -> Tensor:
        is_long = (self.context_length or 0) > self.original_positions
        return _unscaled(pairs, base) / _on(pairs.device, self.long_factors if is_long else self.short_factors)

    @property
    def amplitude(self) -> float:
        return self.attention_factor or math.sqrt(1 + math.log(self.factor) / math.log(self.original_positions))

    def check(self, pairs: int) -> None:
        for name in ("short_factors", "long_factors"):
            factors = getattr(self, name)
            if len(factors) != pairs or min(factors) <= 0:
                raise ConfigError(
                    f"rotary_scaling.{name}: must be {pairs} numbers above 0, one for each pair of channels, "
                    f"got {len(factors)}, the least of them {min(factors)}"
                )

    def resize(self, pairs: int) -> "LongropeScaling":
        """Return the rule with the factors of equally spaced pairs."""
        short, long = (
            tuple(factors[pair * len(factors) // pairs] for pair in range(pairs))
            for factors in (self.short_factors, self.long_factors)
        )
        return self.replace(short_factors=short, long_factors=long)


RotaryScaling = Annotated[
    LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling | LongropeScaling, Field(discriminator="kind")
]

scalings: dict[str, type[ScalingConfig]] = {
    "linear": LinearScaling,
    "dynamic": DynamicScaling,
    "yarn": YarnScaling,
    "llama3": Llama3Scaling,
    "longrope": LongropeScaling,
}
"""By kind."""

_adapter: TypeAdapter[ScalingConfig] = TypeAdapter(RotaryScaling)


@functools.lru_cache
def parse_scaling(text: str) -> ScalingConfig | None:
    """Return the rule that was written by `model_dump_json`; None of an empty text."""
    return _adapter.validate_json(text) if text else None


def _unscaled(pairs: Tensor, base: float) -> Tensor:
    return base ** (-pairs / len(pairs))


# Kept, because a copy to the device in every call would wait for it, and could be in no CUDA graph.
@functools.lru_cache
def _on(device: torch.device, factors: tuple[float, ...]) -> Tensor:
    return torch.tensor(factors, dtype=torch.float64, device=device)
