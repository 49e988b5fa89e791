"""A stage's plan as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from oculi.plan.memory import Memory, PartMemory
from oculi.plan.stage import DAY, MODEL_PARTS, Macs, StagePlan

# Parts in the order of the table; objectives' own parameters come behind them.
ROWS = (*MODEL_PARTS, "attention", "lm_head", "teacher")
COLUMNS = (
    "part", "parameters", "trained", "forward", "backward", "weights", "gradients", "optimizer",
)  # fmt: skip
PREFIXES = ("", "k", "M", "G", "T", "P")
Row = tuple[str, int, int, int, int, int, int, int]


def stage_lines(number: int, stage: StagePlan) -> Iterator[str]:
    """A heading, a row for each part, and what memory and time come to."""
    yield (
        f"stage {number}, {stage.name}: {stage.steps:,} steps of {stage.batch:,} samples, each of "
        f"{stage.tokens_per_image:,} image tokens and {stage.text_tokens:,} of text"
    )
    yield from _table(stage)
    memory = stage.memory
    room = memory.samples_in(stage.gpu.memory)
    verdict = "fits" if stage.fits else "does not fit"
    yield (
        f"  memory: {_held(memory)} + {memory.samples:,} samples at once x "
        f"{si(memory.per_sample)}B = {si(memory.total)}B: {verdict}"
        + (f", {room:,} would" if room else "")
    )
    rate = stage.samples_per_second
    yield (
        f"  time: {si(stage.flops)}FLOP a sample; at most {three_digits(rate)} samples/s, "
        f"{rate * stage.tokens:,.0f} tokens/s; at least {duration(stage.batch / rate / DAY)} a step, "
        f"{duration(stage.days)} in all"
    )


def _held(memory: Memory) -> str:
    """What does not grow with the samples; of a split model, this GPU's part and what is whole on it."""
    copies = f" + {si(memory.copies)}B of autocast's copies" if memory.copies else ""
    if memory.share == 1:
        return f"{si(memory.own + memory.frozen)}B{copies}"
    return f"{si(memory.own)}B (1/{memory.share}) + {si(memory.fixed - memory.own)}B whole"


def _table(stage: StagePlan) -> Iterator[str]:
    rows = [_row(stage, part) for part in _present(stage)]
    rows.append(("total", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    flop, byte = _power(stage.flops), _power(stage.memory.total)
    powers = (0, 0, flop, flop, byte, byte, byte)
    units = ("", "", "", *(f"{PREFIXES[flop]}FLOP",) * 2, *(f"{PREFIXES[byte]}B",) * 3)
    cells = [
        (row[0].replace("_", " "), *(_cell(n, p) for n, p in zip(row[1:], powers, strict=True)))
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(COLUMNS, units, *cells, strict=True)]
    for name, *others in (COLUMNS, units, *cells):
        aligned = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  " + "  ".join([name.ljust(widths[0]), *aligned])


def _present(stage: StagePlan) -> Iterable[str]:
    there = {part for part, count in stage.parameters.items() if count}
    there |= set(stage.macs) | set(stage.memory.parts)
    return [*(part for part in ROWS if part in there), *sorted(there - set(ROWS))]


def _row(stage: StagePlan, part: str) -> Row:
    """Part, parameters, trained, FLOP forward and backward, bytes of weights, gradients and states."""
    parameters, trained = stage.parameters.get(part, 0), stage.trained.get(part, 0)
    if part in stage.objectives:
        parameters = stage.objectives[part].parameters
        trained = stage.objectives[part].trainable
    if part == "teacher":
        parameters = sum(objective.teacher for objective in stage.objectives.values())
    macs = stage.macs.get(part, Macs(0, 0))
    memory = stage.memory.parts.get(part, PartMemory())
    sizes = memory.weights, memory.gradients, memory.optimizer
    return part, parameters, trained, 2 * macs.forward, 2 * macs.backward, *sizes


def _cell(value: int, power: int) -> str:
    if not value:
        return "-"
    return f"{value / 1000**power:,.2f}" if power else f"{value:,}"


def _power(value: float) -> int:
    """Power of 1,000 in which a value is written."""
    power = 0
    while value >= 1000 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return power


def si(value: float) -> str:
    """A number with a decimal prefix, before its unit: ``15.2 G``."""
    power = _power(value)
    return f"{three_digits(value / 1000**power)} {PREFIXES[power]}"


def three_digits(value: float) -> str:
    """Three digits of a number; from 100 on, a whole number."""
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{decimals}f}"


def duration(days: float) -> str:
    """A time in the largest unit of which there are two."""
    seconds = days * DAY
    for unit, length in (("days", DAY), ("hours", 3600), ("minutes", 60), ("s", 1)):
        if seconds >= (2 * length if length > 1 else 1):
            return f"{three_digits(seconds / length)} {unit}"
    return f"{three_digits(seconds * 1000)} ms"
