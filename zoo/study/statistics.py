"""How sure a study can be: intervals over seeds, and differences of pairs of variants that share their seeds.

Two variants of one seed see the same batches in the same order, so their losses go up and down together, and it is
their difference, seed by seed, that is tested. Needs SciPy where there is more than one seed.

Source: Student, "The probable error of a mean", Biometrika 6 (1908); Holm, "A simple sequentially rejective multiple
test procedure", Scandinavian Journal of Statistics 6 (1979).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from statistics import fmean, stdev

__all__ = ["Difference", "compare", "half_interval"]

CONFIDENCE = 0.95


def half_interval(values: Sequence[float]) -> float | None:
    """Return half of the 95% interval of the mean of `values`, after Student; None for fewer than two."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / sqrt(len(values))


@dataclass(frozen=True)
class Difference:
    """How far the second of two variants is above the first."""

    first: str
    second: str
    mean: float
    """Over the seeds that both have."""
    interval: float
    """Half of its 95% interval."""
    p: float
    """How probable so large a difference is where there is none: of a paired two-sided t-test, corrected for the number
    of pairs that are tested."""

    @property
    def is_clear(self) -> bool:
        """Whether the two can be told apart, as sure as the intervals are."""
        return self.p < 1 - CONFIDENCE


def compare(losses: Mapping[str, Mapping[int, float]]) -> list[Difference]:
    """Compare each pair of variants that share two seeds, in their order.

    Args:
        losses: by variant and seed.
    """
    pairs: list[tuple[str, str, list[float]]] = []
    for (first, own), (second, others) in combinations(losses.items(), 2):
        differences = [others[seed] - own[seed] for seed in sorted(own.keys() & others.keys())]
        if len(differences) > 1:
            pairs.append((first, second, differences))
    corrected = _holm([_p_value(differences) for *_, differences in pairs])
    return [
        Difference(first, second, fmean(differences), half_interval(differences) or 0.0, p)
        for (first, second, differences), p in zip(pairs, corrected, strict=True)
    ]


def _p_value(differences: Sequence[float]) -> float:
    spread = stdev(differences)
    if spread == 0:  # for example of two variants that are the same
        return 1.0 if fmean(differences) == 0 else 0.0
    from scipy.stats import t

    statistic = abs(fmean(differences)) * sqrt(len(differences)) / spread
    return float(2 * t.sf(statistic, len(differences) - 1))


def _holm(values: Sequence[float]) -> list[float]:
    """Correct p values for how many there are: the lowest times all, the next times one less; their order stays."""
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda place: values[place])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = highest
    return corrected
