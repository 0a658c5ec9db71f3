"""The state budget of a model: how its work for a token divides between its weights and its state."""

from zoo.budget.authors import authors_table
from zoo.budget.counts import Budget, budgets, measure, weight_flops
from zoo.budget.paper import paper_table
from zoo.budget.plan import Choice, Plan, make_plan, parse_parameters
from zoo.budget.wsfr import Ratio, RatioTable, Row, exact_table
from zoo.report.numbers import ratio_text

__all__ = [
    "Budget",
    "Choice",
    "Plan",
    "Ratio",
    "RatioTable",
    "Row",
    "authors_table",
    "budgets",
    "exact_table",
    "make_plan",
    "measure",
    "paper_table",
    "parse_parameters",
    "ratio_text",
    "weight_flops",
]
