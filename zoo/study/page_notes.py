"""What a reader of a study's page should know, in sentences."""

from html import escape

from zoo.study.summary import StudySummary

__all__ = ["notes"]


def notes(summary: StudySummary) -> str:
    """Return list items, each a head and what there is to know about it."""
    found = {
        f"Loss in {summary.unit}": _loss(summary),
        **({"The bigram model": _BIGRAM} if summary.bigram_bits is not None else {}),
        "Equal": _MATCHED[summary.match],
        **({"The budget": _budget(summary)} if summary.budget else {}),
        **_seeds(summary),
        **({"Stopped early": _STOPPED} if summary.stopped else {}),
        **_positions(summary),
        "Seconds": "depend on the machine; tokens, operations and losses do not, up to rounding.",
    }
    return "".join(f"<li><b>{escape(head)}</b> {escape(text)}</li>" for head, text in found.items())


_BIGRAM = "predicts each token from the one before, by counts of the training text plus one."

_MATCHED = {
    "parameters": (
        "are the parameters, within 1%, by the width of the feed-forward layers: a mixer with more weights of its own "
        "gets narrower ones."
    ),
    "state": (
        "are the states at the training context, within 10%, by the width of heads or the window, and then the "
        "parameters, within 1%, by the width of the feed-forward layers."
    ),
    "flops": "are the operations of a token, within 1%, by the width of the feed-forward layers.",
    "none": "is nothing but data, seeds and budget: sizes are what each variant says.",
}

_STOPPED = (
    "are learning rates that were in the worse half at a fraction of the steps, on the text that rates are chosen by. "
    "A rate that learns slowly at first and best at the end would be lost so."
)


def _loss(summary: StudySummary) -> str:
    if summary.unit == "bits per byte":
        return (
            "is what the model needs to write down one byte of unseen text, 8 bits being what it needs without knowing "
            "anything: lower is better. It does not depend on the tokenizer."
        )
    return "is what the model needs to write down one token of unseen text: lower is better."


def _budget(summary: StudySummary) -> str:
    text = f"of each run is {summary.budget}; the schedule of the learning rate ends with it."
    if summary.budget_kind == "flops":
        return f"{text} Each variant makes as many steps as its own operations leave room for."
    if summary.budget_kind == "seconds":
        return (
            f"{text} Each variant's step was timed before its first run, and all its runs make as many as there is "
            "room for at that pace, so that what a run really took differs a little: see training time."
        )
    return text


def _seeds(summary: StudySummary) -> dict[str, str]:
    if len(summary.seeds) == 1:
        note = (
            f"({summary.seeds[0]}), and the same batches in the same order for all. Another seed moves every loss a "
            "little, so read small differences with care."
        )
        return {"One seed": note}
    return {
        f"{len(summary.seeds)} seeds": (
            "of weights and of the order of batches, the same ones for all. Bands reach from the lowest to the highest "
            "loss. Two variants are not distinguishable where a paired t-test over the seeds, corrected for the number "
            "of pairs, gives a probability of 5% or more."
        )
    }


def _positions(summary: StudySummary) -> dict[str, str]:
    ends = [each.end for variant in summary.variants for run in variant.chosen for each in run.positions if each.tokens]
    if not ends:
        return {}
    reach = f"reach to {max(ends):,} tokens: no validation document has tokens further in." if ends else ""
    return {"Positions in the document": reach}
