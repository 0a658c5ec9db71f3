"""What a study came to without its weights: small enough to carry away or to keep, and all that a report takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import CheckpointError, InputError
from zoo.reading import read_regular
from zoo.report.files import replace_file, writing
from zoo.study.collect import is_finished
from zoo.study.divergence import read_divergence
from zoo.study.halving import read_stop
from zoo.study.pace import read_pace
from zoo.study.report import read_study, stored_parts
from zoo.study.setting import read_setting
from zoo.study.variants import Part, Variant
from zoo.training import load_result

__all__ = ["Exported", "export_study"]

_OF_STUDY = ("study.yaml", "recipe.yaml")
_OF_RUN = ("recipe.yaml", "result.json", "metrics.jsonl", "machine.yaml", "diverged.yaml", "stopped.yaml")
_SETTING, _PACE = "setting.json", "pace.yaml"


@dataclass(frozen=True)
class Exported:
    """What is in a folder after an export."""

    runs: int
    """That have ended, those of before among them."""
    planned: int
    """Runs of the whole study."""
    byte_count: int
    """Of all files."""


def export_study(folders: Sequence[Path], output: Path) -> Exported:
    """Copy what a report takes of every run that has ended into a folder, beside what is there of the same study.

    Of a run these are `recipe.yaml`, `result.json`, `metrics.jsonl` and `machine.yaml`, or what says that it diverged
    or was stopped. As the folder of `zoo study run` it lets the study go on where it stopped, on any machine: runs that
    have ended are not made again, and the steps of a budget of seconds stay as they were measured.

    Args:
        folders: of one study, as `zoo study run` left them; a run counts once, from the first that has it.
        output: made if missing; none of the folders.

    Raises:
        InputError: there is no folder, or `output` is one of them.
        CheckpointError: a folder holds no study, another one, or one on another corpus or at another pace, or
            damaged runs.
        TrainingError: a file cannot be written.
    """
    if not folders:
        raise InputError("folders: expected at least one")
    if output.resolve() in [folder.resolve() for folder in folders]:
        raise InputError(f"output: {output} is one of the folders to export; name another")
    for folder in folders:
        _export(folder, output)
    parts = stored_parts(read_study(output), output)
    runs = [run for part in parts for variant in part.variants for run in variant.runs]
    return Exported(
        runs=sum(any((output / run.name / name).exists() for name in _OF_RUN) for run in runs),
        planned=len(runs),
        byte_count=sum(path.stat().st_size for path in output.rglob("*") if path.is_file()),
    )


def _export(folder: Path, output: Path) -> None:
    study = read_study(folder)
    if (output / "study.yaml").exists() and read_study(output) != study:
        raise CheckpointError(f"{folder}: holds another study than {output}; their study.yaml have to be equal")
    parts = stored_parts(study, folder)
    for part in parts:
        _check_corpus(part, folder, output)
        for variant in part.variants:
            _check_pace(variant, folder, output)
    _copy(_OF_STUDY, folder, output)
    for part in parts:
        _copy([_SETTING], folder / part.folder, output / part.folder)
        for variant in part.variants:
            _copy([_PACE], folder / variant.folder, output / variant.folder)
            _copy_runs(variant, folder, output)


def _check_corpus(part: Part, folder: Path, output: Path) -> None:
    if not (output / part.folder / _SETTING).exists():
        return
    own, there = (read_setting(each / part.folder).corpus for each in (folder, output))
    if own is not None and there is not None and own.hash != there.hash:
        raise CheckpointError(
            f"{folder}: was trained on another corpus than {output} (sha256 {own.hash[:12]}, not {there.hash[:12]})"
        )


def _check_pace(variant: Variant, folder: Path, output: Path) -> None:
    """Runs of one variant have one number of steps in a folder, which its pace says."""
    own, there = (read_pace(each / variant.folder) for each in (folder, output))
    if own is not None and there is not None and own != there:
        raise CheckpointError(
            f"{folder}: {variant.folder} was timed at another pace than in {output}; keep them apart, "
            "zoo study report puts both together"
        )


def _copy_runs(variant: Variant, folder: Path, output: Path) -> None:
    pace = read_pace(folder / variant.folder) if variant.seconds is not None else None
    variant = variant if pace is None else variant.at_pace(pace.seconds_per_step)
    for run in variant.runs:
        place = folder / run.name
        if is_finished(run, folder):
            load_result(place)  # which holds the metrics to what the run wrote
        elif read_divergence(place) is None and read_stop(place) is None:
            continue
        if not any((output / run.name / name).exists() for name in _OF_RUN):
            _copy(_OF_RUN, place, output / run.name)


def _copy(names: Sequence[str], folder: Path, output: Path) -> None:
    """Copy those files that are there, over none of before."""
    there = [name for name in names if (folder / name).exists() and not (output / name).exists()]
    if there:
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
    for name in there:
        replace_file(output / name, read_regular(folder / name))
