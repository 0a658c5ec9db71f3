"""What a process keeps of one run for the next: a model that is compiled already, for new weights."""

from typing import cast

from zoo.builder import build, check_state
from zoo.models import Decoder
from zoo.recipe import Recipe
from zoo.training.distributed import Processes
from zoo.training.memory import BUILDING, naming_memory_errors
from zoo.training.objective import NextTokenLoss

__all__ = ["Workshop"]


class Workshop:
    """Makes models for runs one after the other. A run that differs from the one before in its seed, learning rate,
    length and bookkeeping alone gets that one's model with weights of its own: weights and rates are inputs of what is
    compiled, so that nothing is compiled again.

    Only one run at a time may use it; after the next one has begun, what the last one trained is gone.
    """

    def __init__(self) -> None:
        self._recipe: Recipe | None = None
        self._objective: NextTokenLoss | None = None

    def objective(self, recipe: Recipe, processes: Processes) -> NextTokenLoss:
        """Return the loss of a recipe's model with freshly drawn weights, on the device of `processes`; of several, on
        the meta device, for `zoo.training.spread`.

        Raises:
            TrainingError: memory does not suffice.
        """
        kept, self._objective = self._objective, None
        if self._recipe is None or _as_compiled(self._recipe) != _as_compiled(recipe) or processes.mesh is not None:
            kept = None  # before another model takes its memory
        with naming_memory_errors(BUILDING):
            # Of many processes, none holds the whole model.
            model = build(recipe, device=processes.device if processes.mesh is None else "meta")
            check_state(model)
        if kept is None:
            kept = NextTokenLoss(model)
        else:
            kept.model.load_state_dict(model.state_dict())
            cast(Decoder, kept.model).zero_grad(set_to_none=True)  # of a run that ended within a step
        self._recipe, self._objective = recipe, kept
        return kept


def _as_compiled(recipe: Recipe) -> Recipe:
    """A recipe but for what is no part of the compiled model."""
    anything = {"seed": 0, "learning_rate": 1.0, "min_learning_rate": None, "warmup_steps": 0, "steps": 1}
    anything |= {"log_every": 1, "evaluate_every": 1, "checkpoint_every": 1, "tensorboard": False}
    return recipe.replace(training=recipe.training.replace(**anything))
