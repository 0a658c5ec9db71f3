"""A model behind OpenAI's interface: rows of one state that requests join and leave between decode steps."""

try:
    import starlette as _starlette  # noqa: F401
    import uvicorn as _uvicorn  # noqa: F401
except ImportError as error:
    raise ImportError(f"serve: needs an optional library ({error.name}): pip install 'mixer-zoo[serve]'") from error

from zoo.serving.app import make_app, run_app
from zoo.serving.engine import Engine, FullError, Job
from zoo.serving.speech import Speech, load_served

__all__ = ["Engine", "FullError", "Job", "Speech", "load_served", "make_app", "run_app"]
