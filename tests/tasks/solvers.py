"""Exact solvers, which read tokens alone: what each of them says has to be the target wherever something is asked."""

from collections.abc import Callable, Sequence
from itertools import permutations

from zoo.tasks import Case, Task

__all__ = ["SOLVERS"]

Row = Sequence[int]
Answers = dict[int, int]
"""By position, of those where something is asked."""


def solve_mqar(task: Task, case: Case, row: Row) -> Answers:
    """Look each key up in the pairs at the beginning, the first time that it comes again at a place for keys."""
    assert case.pairs is not None
    context = 2 * case.pairs
    values = dict(zip(row[:context:2], row[1:context:2], strict=True))
    assert len(values) == case.pairs
    return {place: values[row[place]] for place in range(context, case.length, 2) if row[place] in values}


def solve_copy(task: Task, case: Case, row: Row) -> Answers:
    separator = row.index(task.vocabulary - 1)
    return {separator + place: row[place] for place in range(separator)}


def solve_induction(task: Task, case: Case, row: Row) -> Answers:
    return {len(row) - 1: row[row.index(row[-1]) + 1]}


def solve_passkey(task: Task, case: Case, row: Row) -> Answers:
    told, asked = row.index(10), row.index(11)
    return {asked + place: row[told + 1 + place] for place in range(len(row) - asked)}


def solve_parity(task: Task, case: Case, row: Row) -> Answers:
    return {place: sum(row[: place + 1]) % 2 for place in range(len(row))}


def solve_s5(task: Task, case: Case, row: Row) -> Answers:
    """Move five things about as each token says, and look up the order that they are in."""
    orders = list(permutations(range(5)))
    answers, things = {}, orders[0]
    for place, token in enumerate(row):
        things = tuple(orders[token][thing] for thing in things)
        answers[place] = orders.index(things)
    return answers


SOLVERS: dict[str, Callable[[Task, Case, Row], Answers]] = {
    "mqar": solve_mqar,
    "copy": solve_copy,
    "induction": solve_induction,
    "passkey": solve_passkey,
    "parity": solve_parity,
    "s5": solve_s5,
}
