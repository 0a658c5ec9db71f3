"""Numbers as people read them: three digits and a unit."""

__all__ = [
    "clock", "count", "counted", "difference", "duration", "hours", "known", "milliseconds", "ratio_text",
    "short_length", "size", "with_interval",
]  # fmt: skip


def count(value: float) -> str:
    """Write a number with a decimal prefix: 950, 12.3k, 4.56M, 789G, 1.20T."""
    number, prefix = _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E"))
    return number + prefix


def counted(number: int, noun: str) -> str:
    """Write how many there are of something: 1 layer, 12 layers."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(byte_count: float) -> str:
    """Write a number of bytes with a binary prefix: 12 B, 4 KiB, 1.5 MiB."""
    number, unit = _scaled(byte_count, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


def duration(seconds: float) -> str:
    """Write a time: 0.42 s, 12.3 s, 115 s, 2 min 05 s, 3 h 07 min."""
    if seconds < 119.5:
        return f"{_three_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def milliseconds(seconds: float) -> str:
    """Write a time in milliseconds with about three digits: 0.042, 1.23, 12.3, 1,234."""
    value = seconds * 1e3
    return f"{value:,.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def clock(seconds: float) -> str:
    """Write a time that is left, as a clock does: 6:30."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


def hours(seconds: float) -> str:
    """Write a time in little room: 0:05, 12:30, 2:34:00."""
    minutes, rest = divmod(round(seconds), 60)
    whole, minutes = divmod(minutes, 60)
    return f"{whole}:{minutes:02d}:{rest:02d}" if whole else f"{minutes}:{rest:02d}"


def short_length(tokens: int) -> str:
    """Write a number of tokens: 1000, 4k, 2M, with k = 1024."""
    for unit, name in ((2**20, "M"), (2**10, "k")):
        if tokens % unit == 0:
            return f"{tokens // unit}{name}"
    return str(tokens)


def ratio_text(value: float) -> str:
    """Write a ratio as 30:1 or 1:8: the larger side in whole numbers from 5 on, with one decimal below, never `.0`."""
    larger = max(value, 1 / value)
    text = f"{larger:,.0f}" if larger >= 5 else f"{larger:.1f}".removesuffix(".0")
    return f"{text}:1" if value >= 1 else f"1:{text}"


def known(value: float | None, form: str, unit: float | None = 1) -> str:
    """Write a number of `unit`s in a form such as `.1f`, or a dash where either is not known."""
    return "-" if value is None or unit is None else format(value / unit, form)


def difference(value: float, reference: float) -> str:
    """Write how far `value` is from `reference`, relative to it: +0.42%, −1.30%, or ±0% where they are equal."""
    if value == reference:
        return "±0%"
    percent = 100 * (value / reference - 1)
    return f"{'+' if percent > 0 else '−'}{abs(percent):.2f}%"  # noqa: RUF001 (a minus sign, as wide as the plus)


def with_interval(value: float, half: float | None) -> str:
    """Write a loss, and half of its interval where it has one: 2.696, or 2.696 ± 0.025."""
    return f"{value:.3f}" if half is None else f"{value:.3f} ± {half:.3f}"


def _scaled(value: float, base: int, units: tuple[str, ...]) -> tuple[str, str]:
    """Return three digits (all of a whole number in the first unit) and the unit that leaves `value` below `base`."""
    power = 0
    while abs(value) >= base - 0.5 and power < len(units) - 1:
        value, power = value / base, power + 1
    return f"{value:.0f}" if power == 0 and value == int(value) else _three_digits(value), units[power]


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    return f"{value:.{2 if magnitude < 9.995 else 1 if magnitude < 99.95 else 0}f}"
