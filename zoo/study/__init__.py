"""Studies: variants of one recipe trained on the same data, compared in a table and on a page."""

from zoo.recipe.study import Budget, Measures, Study, available_studies, load_study, study_command
from zoo.study.results import VariantSummary
from zoo.study.run import run_study
from zoo.study.summary import StudySummary
from zoo.study.table import print_summary

__all__ = [
    "Budget",
    "Measures",
    "Study",
    "StudySummary",
    "VariantSummary",
    "available_studies",
    "load_study",
    "print_summary",
    "run_study",
    "study_command",
]
