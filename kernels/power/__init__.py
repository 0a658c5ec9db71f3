"""Power attention: contract (`api`), definition (`reference`), linear-cost form on any device (`chunked`)."""

from zoo.kernels.power.api import Implementation, PowerAttentionOutput, power_attention, power_attention_step
from zoo.kernels.power.checks import debug_checks, values_unchecked
from zoo.kernels.power.expansion import state_size
from zoo.kernels.power.flops import forward_flops, step_flops
from zoo.kernels.power.heads import Heads
from zoo.kernels.power.journal import FORGETS, PowerJournalState, absorb, due, fold_size, open_journal, worthwhile
from zoo.kernels.power.journal_sequence import power_journal_attention
from zoo.kernels.power.journal_step import power_journal_step
from zoo.kernels.power.state import PowerState, init_power_state
from zoo.kernels.state_limit import state_limit

__all__ = [
    "FORGETS",
    "Heads",
    "Implementation",
    "PowerAttentionOutput",
    "PowerJournalState",
    "PowerState",
    "absorb",
    "debug_checks",
    "due",
    "fold_size",
    "forward_flops",
    "init_power_state",
    "open_journal",
    "power_attention",
    "power_attention_step",
    "power_journal_attention",
    "power_journal_step",
    "state_limit",
    "state_size",
    "step_flops",
    "values_unchecked",
    "worthwhile",
]
