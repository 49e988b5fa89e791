"""What an ablation is: data. Rows of recipes, and claims with their rule, written before any run.

A claim is one number, its effect, and a rule for its 95 % interval:

    not confirmed      not decidable       confirmed
    ──[─────]──────────────[──┼──]────────────[───]──▶ effect
                              smallest effect of interest
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from oculi.ablate.metrics import named, shown_difference
from oculi.recipe import Recipe

Direction = Literal["above", "below", "within"]
SEEDS, QUICK_SEEDS = 3, 2


@dataclass(frozen=True)
class Row:
    """One configuration.

    Attributes:
        name: of its runs' folders, ``NAME-seedN``.
        overrides: of the recipe, as ``oculi train`` takes them.
        labels: its cells under ``Ablation.labels``.
        paper: the paper's own numbers for it, by column.
        base: another recipe than the ablation's.
    """

    name: str
    overrides: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    paper: Mapping[str, str] = field(default_factory=dict)
    base: Callable[[], Recipe] | None = None


@dataclass(frozen=True)
class Term:
    """One run's metric in a contrast, with its weight."""

    weight: float
    row: str
    metric: str


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of metrics of runs with one seed; its mean over seeds is the effect.

    The interval is Student's over the seeds. For exact match it is widened to the percentile interval
    of 10,000 resamples of the questions, paired over rows, where that reaches further: a claim must
    survive other seeds and other questions.
    """

    terms: tuple[Term, ...]

    @property
    def rows(self) -> tuple[str, ...]:
        """Whose runs it reads."""
        return tuple(dict.fromkeys(term.row for term in self.terms))

    @property
    def metric(self) -> str:
        """The one whose unit the effect has."""
        return self.terms[0].metric

    def formula(self) -> str:
        """The effect in words."""
        text = ""
        for number, term in enumerate(self.terms):
            sign = "- " if term.weight < 0 else "+ " if number else ""
            factor = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} "
            text += f"{' ' * bool(number)}{sign}{factor}{term.metric}[{term.row}]"
        return text

    def sample(self, seeds: int) -> str:
        """What it is measured on."""
        return f"{seeds} seeds, paired"


@dataclass(frozen=True)
class Shares:
    """Share of runs with a property among some rows, less that among others; Newcombe's interval.

    For what happens or not: three runs that all went well say little about the fourth.
    """

    rows_of: tuple[str, ...]
    versus: tuple[str, ...]
    metric: str

    @property
    def rows(self) -> tuple[str, ...]:
        """Whose runs it reads."""
        return (*self.rows_of, *self.versus)

    def formula(self) -> str:
        """The effect in words."""
        return f"share of {self.metric}[{', '.join(self.rows_of)}] - [{', '.join(self.versus)}]"

    def sample(self, seeds: int) -> str:
        """What it is measured on."""
        return f"{seeds * len(self.rows_of)} runs against {seeds * len(self.versus)}"


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two metrics over rows, per seed; Student's interval over seeds."""

    x: str
    y: str
    rows: tuple[str, ...]
    metric: str = "correlation"

    def formula(self) -> str:
        """The effect in words."""
        return f"rank correlation of {self.x} and {self.y} over rows"

    def sample(self, seeds: int) -> str:
        """What it is measured on."""
        return f"{seeds} seeds of {len(self.rows)} rows"


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper as something that can fail.

    Attributes:
        name: short, unique in its ablation.
        paper: its words or numbers.
        effect: what is measured.
        direction: where the paper says that the effect lies: above ``threshold``, below minus
            ``threshold``, or within it on both sides.
        threshold: the smallest effect of interest, in the metric's unit.
    """

    name: str
    paper: str
    effect: Contrast | Shares | Correlation
    direction: Direction
    threshold: float

    def rule(self) -> str:
        """The decision rule in words."""
        return (
            f"confirmed if the whole 95 % interval lies {self.where()}, not confirmed if it lies wholly "
            "elsewhere, else not decidable"
        )

    def where(self) -> str:
        """The region that confirms it, in words."""
        size = shown_difference(self.effect.metric, self.threshold, sign="")
        sign = {"above": "", "below": "-" if self.threshold else "", "within": "±"}[self.direction]
        return f"{self.direction} {sign}{size}"

    def to_json(self, seeds: int) -> dict[str, Any]:
        """For ``claims.json``."""
        return {
            "name": self.name, "paper": self.paper, "effect": self.effect.formula(),
            "direction": self.direction, "threshold": self.threshold, "rule": self.rule(),
            "statistic": type(self.effect).__name__.lower(), "sample": self.effect.sample(seeds),
        }  # fmt: skip

    def lines(self, seeds: int) -> list[str]:
        """For the terminal, before the first run."""
        return [
            f"claim {self.name}: {self.paper}",
            f"  effect: {self.effect.formula()}; {self.effect.sample(seeds)}",
            f"  rule: {self.rule()}",
        ]


@dataclass(frozen=True)
class Levels:
    """Losses to be reached, taken from a baseline's own curve (VoRA, figure 7).

    ``steps@NAME`` of a row is the number of steps after which its running mean first is at the
    baseline's after a share of its steps, divided by the baseline's own number.
    """

    baseline: str
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Curves:
    """A figure: running means of what a step logs, one line per row, the mean over seeds."""

    name: str
    value: str
    title: str
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lines:
    """A figure: metrics of runs as points, with the range over seeds.

    Attributes:
        series: label to its points (x, row, metric).
    """

    name: str
    title: str
    x: str
    y: str
    series: Mapping[str, tuple[tuple[float, str, str], ...]]
    log_x: bool = False


@dataclass(frozen=True)
class Ablation:
    """A table or figure of a paper, measured again at small scale.

    Attributes:
        name, source: ours, and the paper's.
        question: what it asks, in a line.
        base: the recipe that rows override.
        labels: headers of the rows' labels. columns: metrics of the table.
        extras: what is measured beyond the run itself: ``text`` (what the LLM has forgotten),
            ``blocks`` (cosine with the teacher by block).
        notes: how this differs from the paper's set-up; part of the report.
    """

    name: str
    source: str
    question: str
    base: Callable[[], Recipe]
    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    claims: tuple[Claim, ...]
    figures: tuple[Curves | Lines, ...] = ()
    extras: tuple[str, ...] = ()
    levels: Levels | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        _unique(names, "rows")
        _unique([claim.name for claim in self.claims], "claims")
        asked = [name for claim in self.claims for name in claim.effect.rows]
        for figure in self.figures:
            if isinstance(figure, Lines):
                asked += [row for points in figure.series.values() for _, row, _ in points]
        for name in [*asked, *([self.levels.baseline] if self.levels else [])]:
            if name not in names:
                raise ValueError(f'{self.name} has no row "{name}"')
        for column in self.columns:
            named(column)
        for row in self.rows:
            if len(row.labels) != len(self.labels):
                raise ValueError(f"row {row.name} has {len(row.labels)} labels")


def difference(row: str, versus: str, metric: str) -> Contrast:
    """A metric of one row less that of another."""
    return Contrast((Term(1, row, metric), Term(-1, versus, metric)))


def _unique(names: Sequence[str], what: str) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"two {what} have one name among {', '.join(names)}")
