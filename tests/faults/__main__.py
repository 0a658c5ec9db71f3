"""`make faults`: try kills, signals, damage and races on small runs, and say how many came out right.

    python -m tests.faults [SEED] [SHARE]

SEED draws other cases, and SHARE of them, such as 0.1, are tried.
"""

import sys
import tempfile
from pathlib import Path

from .kinds import KINDS


def run(seed: int, share: float) -> int:
    """Try all kinds, print a line for each and one for whatever went wrong, and return how much that was."""
    failures: list[str] = []
    print(f"{'':26}{'tried':>6}{'right':>6}", flush=True)
    for name, (attempt, cases, kind) in KINDS.items():
        tried, wrong = max(1, round(cases * share)), []
        with tempfile.TemporaryDirectory() as folder:
            bench = kind(Path(folder), seed)
            for case in range(tried):
                fault = attempt(bench)
                wrong += [f"{name}, seed {seed}, case {case}: {fault}"] if fault else []
        print(f"{name:26}{tried:6}{tried - len(wrong):6}", flush=True)
        failures += wrong
    print(*failures, sep="\n", end="\n" if failures else "")
    return len(failures)


if __name__ == "__main__":
    given = sys.argv[1:] + ["0", "1"][len(sys.argv) - 1 :]
    sys.exit(min(1, run(int(given[0]), float(given[1]))))
