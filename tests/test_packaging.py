"""A wheel holds everything, and nothing of ours gets in the way of a top-level package named `kernels`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel unpacked that was built from the source distribution, as PyPI users get it."""
    folder = tmp_path_factory.mktemp("packaging")
    clone = folder / "source"
    tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        source, target = ROOT / name, clone / name
        if not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        else:
            target.write_bytes(source.read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", cwd=clone)
    (wheel,) = (folder / "dist").glob("*.whl")
    target = folder / "installed"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=folder)
    return target


def test_a_wheel_holds_kernels_and_recipes(installed: Path, tmp_path: Path) -> None:
    code = (
        "import zoo, zoo.kernels.power; from pathlib import Path; "
        "print(Path(zoo.__file__).parent); print(zoo.load_recipe('tiny').name); "
        "from zoo.study import load_study; print(load_study('four-mixers').name); "
        "print(zoo.build('tiny', device='meta').num_parameters())"
    )
    folder, recipe, study, parameters = run(sys.executable, "-c", code, cwd=tmp_path, path=installed).split()
    assert Path(folder) == installed / "zoo"
    assert (recipe, study) == ("tiny", "four-mixers")
    assert int(parameters) > 0
    assert not (installed / "kernels").exists()
    for data in ("py.typed", "kernels/power/triton/blocks.csv"):
        assert (installed / "zoo" / data).exists()
    assert (installed / "zoo" / "study" / "page.html").exists()


def test_another_package_named_kernels_wins(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("name = 'theirs'\n")
    code = "import kernels, zoo.kernels.power; print(kernels.name)"
    assert run(sys.executable, "-c", code, cwd=ROOT, path=tmp_path).strip() == "theirs"
