"""What a run trains on and is evaluated by: windows of a corpus, or sequences drawn for a task."""

from zoo.data import Corpus
from zoo.errors import TrainingError
from zoo.recipe.evaluation import EvaluationConfig
from zoo.recipe.training import TrainingConfig
from zoo.tasks import Task
from zoo.training.distributed import Processes
from zoo.training.examples.protocol import Examples
from zoo.training.examples.task import TaskExamples
from zoo.training.examples.text import TextExamples

__all__ = ["Examples", "examples_of"]


def examples_of(
    material: Corpus | Task, config: TrainingConfig, evaluation: EvaluationConfig, processes: Processes
) -> Examples:
    """Return the examples of a corpus or a task.

    Raises:
        CorpusError: the corpus is too short for one window of a context.
        TrainingError: the batch cannot be shared out evenly.
    """
    if config.batch_size % processes.data_count:
        each = "" if processes.group is None else f" over training.parallel.context {processes.group.size}"
        each += "" if config.parallel.tensor == 1 else f" over training.parallel.tensor {config.parallel.tensor}"
        raise TrainingError(
            f"training.batch_size: expected a multiple of the {processes.count} processes{each}, "
            f"got {config.batch_size}"
        )
    if isinstance(material, Task):
        return TaskExamples(material, config, evaluation, processes)
    return TextExamples(material, config, evaluation, processes)
