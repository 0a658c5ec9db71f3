"""A run as a folder that transformers loads."""

from pathlib import Path

from zoo.data import RawTokens, tokenizer_of
from zoo.errors import InputError
from zoo.hf.folders import load_hf_run
from zoo.hf.tokenizer import to_hf_tokenizer
from zoo.report.files import writing

__all__ = ["export_run"]


def export_run(run_folder: Path | str, folder: Path | str) -> None:
    """Write the newest checkpoint of a run as weights, config and, where it has text, tokenizer of transformers.

    Args:
        run_folder: what `zoo train` wrote.
        folder: where they go; made if need be.

    Raises:
        CheckpointError: there is no run or no checkpoint yet, or it is damaged.
        InputError: they cannot be written.
    """
    recipe, model = load_hf_run(Path(run_folder))
    tokenizer = tokenizer_of(recipe.data)
    with writing(Path(folder), InputError):
        model.save_pretrained(folder)
        if not isinstance(tokenizer, RawTokens):
            to_hf_tokenizer(tokenizer).save_pretrained(folder)
