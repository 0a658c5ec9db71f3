"""Language models put together from blocks and mixers."""

from zoo.models.decoder import Decoder, DecoderOutput, DecoderState
from zoo.recipe.model import DecoderConfig

__all__ = ["Decoder", "DecoderConfig", "DecoderOutput", "DecoderState"]
