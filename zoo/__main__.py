"""`python -m zoo` is the command `zoo`; it is what `torchrun -m zoo` starts."""

from zoo.cli import main

if __name__ == "__main__":
    main(prog_name="python -m zoo")
