"""Studies: a recipe and, by name, the changes that each variant makes in it."""

from zoo.recipe.study.command import study_command
from zoo.recipe.study.config import TEXT, Budget, Measures, Study, task_name
from zoo.recipe.study.files import DEFAULT_MIXERS, available_studies, load_study

__all__ = [
    "DEFAULT_MIXERS",
    "TEXT",
    "Budget",
    "Measures",
    "Study",
    "available_studies",
    "load_study",
    "study_command",
    "task_name",
]
