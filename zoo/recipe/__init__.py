"""Recipes with their sections, and studies that compare recipes, as strict data."""

from zoo.recipe.data import DataConfig
from zoo.recipe.evaluation import EvaluationConfig
from zoo.recipe.model import DecoderConfig
from zoo.recipe.recipe import Hybrid, Recipe, available_recipes, load_recipe
from zoo.recipe.study import Study, available_studies, load_study
from zoo.recipe.training import TrainingConfig

__all__ = [
    "DataConfig",
    "DecoderConfig",
    "EvaluationConfig",
    "Hybrid",
    "Recipe",
    "Study",
    "TrainingConfig",
    "available_recipes",
    "available_studies",
    "load_recipe",
    "load_study",
]
