"""A mixer between a projection to heads of queries, keys and values and one back."""

from zoo.blocks.heads import HeadShape, QueryKeyValue
from zoo.blocks.mixer import Mixer

__all__ = ["HeadMixer"]


class HeadMixer(Mixer):
    """What mixers of query, key and value heads have in common."""

    heads: HeadShape
    input: QueryKeyValue

    @property
    def head_counts(self) -> tuple[int, int]:
        return self.heads.query, self.heads.key_value

    @property
    def head_groups(self) -> int:
        return self.heads.key_value

    def keep_share(self, count: int) -> None:
        self.heads = self.input.heads = self.heads.share(count)
