"""What the compilers made of a recipe's model, in one file for other machines of the same kind."""

from zoo.caching.files import Loaded, load_cache, save_cache
from zoo.caching.running import run_recipe

__all__ = ["Loaded", "load_cache", "run_recipe", "save_cache"]
