"""Language models put together from blocks and mixers."""

from zoo.models.decoder import Decoder, DecoderConfig, DecoderOutput, DecoderState

__all__ = ["Decoder", "DecoderConfig", "DecoderOutput", "DecoderState"]
