"""From a converted model to a good one: it follows the attention that was there, then the whole model that was."""

from zoo.hf.stages.distill import distill
from zoo.hf.stages.result import StageResult
from zoo.hf.stages.settings import Stage
from zoo.hf.stages.transfer import transfer

__all__ = ["Stage", "StageResult", "distill", "transfer"]
