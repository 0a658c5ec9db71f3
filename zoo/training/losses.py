"""What steps came to: read from the device in stretches, and watched for what is not finite and for spikes."""

import math
from collections import deque
from collections.abc import Callable, Iterable
from statistics import fmean, pstdev

import torch
from torch import Tensor

from zoo.errors import TrainingError

__all__ = ["SpikeWatch", "StepLosses"]

_STEPS = 32
_DEVIATIONS = 6.0
_NATS = 1.0


class SpikeWatch:
    """Tells spikes: losses above the mean of the 32 before by 1 nat per token and by 6 standard deviations of theirs.

    Args:
        recent: the losses before, of which the last 32 count; with fewer, nothing is a spike.
    """

    def __init__(self, recent: Iterable[float] = ()) -> None:
        self.recent = deque(recent, maxlen=_STEPS)

    def take(self, loss: float) -> float | None:
        """Take the next loss and return the mean before it where it is a spike; it counts as any other afterwards."""
        mean, limit = 0.0, math.inf
        if len(self.recent) == _STEPS:
            mean = fmean(self.recent)
            limit = mean + max(_NATS, _DEVIATIONS * pstdev(self.recent))
        self.recent.append(loss)
        return mean if loss > limit else None


class StepLosses:
    """Losses and gradient norms of steps.

    Args:
        mean: takes `[n, 2]` to the mean over processes.
        on_spike: told of a spike's step and loss, and the mean before it.
        not_finite: makes an error of a step, what is not finite, and its value.
    """

    def __init__(
        self,
        mean: Callable[[Tensor], Tensor],
        on_spike: Callable[[int, float, float], None],
        not_finite: Callable[[int, str, float], TrainingError],
    ) -> None:
        self._mean, self._on_spike, self._not_finite = mean, on_spike, not_finite
        self._unread: dict[int, Tensor] = {}
        self.spikes = SpikeWatch()
        self.since_line: list[float] = []
        """Of the steps since the last line of training metrics."""
        self.gradient_norm = 0.0
        """Of the last step, before clipping."""

    def add(self, step: int, values: Tensor) -> None:
        """Keep the loss and gradient norm of a step, `[2]`, on the device: a GPU would idle if each were read."""
        self._unread[step] = values

    def read(self) -> bool:
        """Wait for the device, check what the steps came to and return whether the last one was a spike.

        Raises:
            TrainingError: a loss or a gradient is not finite.
        """
        rows = self._mean(torch.stack(list(self._unread.values()))).tolist() if self._unread else []
        steps = list(self._unread)
        self._unread.clear()
        spiked = False
        for step, (loss, norm) in zip(steps, rows, strict=True):
            for name, value in (("loss", loss), ("gradient norm", norm)):
                if not math.isfinite(value):
                    raise self._not_finite(step, name, value)
            before = self.spikes.take(loss)
            spiked = before is not None
            if before is not None:
                self._on_spike(step, loss, before)
            self.since_line.append(loss)
            self.gradient_norm = norm
        return spiked

    def take_mean(self) -> float:
        """Return the mean loss since the last line of metrics, and begin anew."""
        mean = math.fsum(self.since_line) / len(self.since_line)
        self.since_line.clear()
        return mean
