"""The registry of tasks beside text: what a recipe's `task.kind` may be."""

from typing import Annotated

from pydantic import Field

from zoo.tasks.copying import Copying
from zoo.tasks.draws import Rows, held_back_rows, held_back_sequences, training_rows
from zoo.tasks.induction import Induction
from zoo.tasks.mqar import Mqar
from zoo.tasks.parity import Parity
from zoo.tasks.passkey import Passkey
from zoo.tasks.s5 import S5
from zoo.tasks.task import Case, Sequences, Task

__all__ = [
    "Case",
    "Rows",
    "Sequences",
    "Task",
    "TaskConfig",
    "held_back_rows",
    "held_back_sequences",
    "tasks",
    "training_rows",
]

TaskConfig = Annotated[Mqar | Copying | Induction | Passkey | Parity | S5, Field(discriminator="kind")]
"""Any task; `kind` says which."""

tasks: dict[str, type[Task]] = {
    "mqar": Mqar,
    "copy": Copying,
    "induction": Induction,
    "passkey": Passkey,
    "parity": Parity,
    "s5": S5,
}
