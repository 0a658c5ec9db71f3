"""Convert one model in several ways and print, as Markdown, perplexities before and after each stage.

    python docs/studies/conversion.py SmolLM2-135M runs/conversion --text 'books/*.txt' --distill-tokens 20M

Every row is a `zoo convert`, which goes on where it was stopped, with every option that this has not added to it.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

LAYERS = 30  # of the model; every fourth stays as it was in a hybrid
HYBRID = ",".join(str(layer) for layer in range(LAYERS) if layer % 4 != 3)

CONVERSIONS = {
    "gated power, p = 2, offset and scale learned": "--mixer gated-power -p 2",
    "gated power, p = 2, no offset": "--mixer gated-power -p 2 --offset 0 --scale 0.125",
    "power, p = 2, offset and scale learned": "--mixer power -p 2",
    "gated linear": "--mixer gated-linear",
    "sliding window of 128": "--mixer sliding-window --window 128",
    "gated power, p = 2, every fourth layer softmax": f"--mixer gated-power -p 2 --layers {HYBRID}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--only", type=int, nargs="*", help="rows, from 0")
    asked, rest = parser.parse_known_args()
    for number, (name, options) in enumerate(CONVERSIONS.items()):
        out = asked.folder / str(number)
        if asked.only is None or number in asked.only:
            command = [sys.executable, "-m", "zoo", "convert", asked.model, str(out), "--text", asked.text]
            subprocess.run([*command, *shlex.split(options), *rest], check=True)
        if (out / "stages.json").exists():
            say(name, json.loads((out / "stages.json").read_text()))


def say(name: str, stages: dict[str, dict[str, float]]) -> None:
    """A row of the table: perplexities at first, after each stage, and the teacher's."""
    found = list(stages.values())
    after = {stage: f"{result['perplexity_after']:,.4g}" for stage, result in stages.items()}
    cells = [name, f"{found[0]['perplexity_before']:,.4g}", after.get("transfer", "-"), after.get("distill", "-")]
    ratio = found[-1]["perplexity_after"] / found[-1]["teacher_perplexity"]
    print("|", " | ".join([*cells, f"{found[-1]['teacher_perplexity']:,.4g}", f"{ratio:.3f}"]), "|", flush=True)


if __name__ == "__main__":
    main()
