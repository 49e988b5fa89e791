"""What an ablation is: data. Rows of recipes, and claims with their rule, written before any run.

A claim is one number, its effect, and a rule for its 95 % interval:

    not confirmed      not decidable       confirmed
    ──[─────]──────────────[──┼──]────────────[───]──▶ effect
                              smallest effect of interest
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

from oculi.ablate.metrics import named, shown_difference
from oculi.errors import RecipeError
from oculi.recipe import Recipe

Direction = Literal["above", "below", "within"]
SEEDS, QUICK_SEEDS = 3, 2
# All of a stage that decides which samples a step sees; the number of steps does not.
ORDER = frozenset(
    {"name", "data", "batch", "length", "single_turns", "plain_turns", "separate_turns", "crop"}
)


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
    of 10,000 resamples of the questions, paired over terms, where that reaches further: a claim must
    survive other seeds and other questions. With one seed that is all, and speaks of its models alone.
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
        return f"{seeds} seeds, paired" if seeds > 1 else "1 seed, paired"


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
        threshold: the smallest effect of interest, in the metric's unit. Below 0 for "not worse": so
            much on the other side still confirms it.
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
        border = (-self.threshold or 0.0) if self.direction == "below" else self.threshold
        size = shown_difference(self.effect.metric, border, sign="")
        return f"{self.direction} {'±' * (self.direction == 'within')}{size}"

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
        series: label to its points (x, row, metric); x may be a metric of the row as well.
    """

    name: str
    title: str
    x: str
    y: str
    series: Mapping[str, tuple[tuple[float | str, str, str], ...]]
    log_x: bool = False


@dataclass(frozen=True)
class Cell:
    """Pictures of one kind, about which the questions of all cells are asked.

    Attributes:
        name: key of its task in ``Ablation.tasks``, unique in its grid.
        labels: its entries under ``Grid.labels``.
        claimed: what is claimed of it by name; empty: it is measured, and nothing is claimed.
    """

    name: str
    labels: tuple[str, ...]
    claimed: str = ""


@dataclass(frozen=True)
class Grid:
    """What one row's models lose in each cell against a reference cell, paired by question.

    Attributes:
        title: of the table. labels: headers of the cells' labels.
        row: whose loss it is. beside: rows whose exact match is shown beside it.
        reference: the cell that others are compared with.
        most: the largest loss that the goal allows, a share.
        paper: what the paper says of it; part of the claims.
    """

    title: str
    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    row: str
    reference: str
    most: float
    paper: str
    beside: tuple[str, ...] = ()

    def claim(self, cell: Cell) -> Claim:
        """That the loss is as small as the goal allows."""
        terms = (
            Term(1, self.row, f"score@{self.reference}"),
            Term(-1, self.row, f"score@{cell.name}"),
        )
        return Claim(cell.claimed or cell.name, self.paper, Contrast(terms), "below", -self.most)

    def claims(self) -> tuple[Claim, ...]:
        """Those of the cells of which something is claimed."""
        return tuple(self.claim(cell) for cell in self.cells if cell.claimed)


@dataclass(frozen=True)
class Ablation:
    """A table or figure of a paper, measured again at small scale.

    Attributes:
        name, source: ours, and the paper's.
        question: what it asks, in a line.
        base: the recipe that rows override.
        labels: headers of the rows' labels. columns: metrics of the table.
        extras: what is measured beyond the run itself: ``text`` (what the LLM has forgotten),
            ``blocks`` (cosine with the teacher by block), ``cost`` (tokens and MACs of a picture),
            ``fusion`` (its score with the wrong pictures, and the time of a prefill).
        tasks: asked of the last stage's model alone, beside the recipe's evaluations: metric
            ``score@KEY`` by key. grid: a table of them.
        varied: fields of stages in which rows differ by design, of those that decide which samples a
            step sees. Without it rows must see the same ones in the same order.
        least_seeds: with one, only claims about exact match can be decided, for that seed's models.
        overridden: what ``overriding`` has set in every row.
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
    tasks: Mapping[str, str] = field(default_factory=dict)
    grid: Grid | None = None
    varied: tuple[str, ...] = ()
    least_seeds: int = 2
    overridden: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        _unique(names, "rows")
        _unique([claim.name for claim in self.claims], "claims")
        asked = [name for claim in self.claims for name in claim.effect.rows]
        for figure in self.figures:
            if isinstance(figure, Lines):
                asked += [row for points in figure.series.values() for _, row, _ in points]
        asked += [self.levels.baseline] if self.levels else []
        asked += [self.grid.row, *self.grid.beside] if self.grid else []
        for name in asked:
            if name not in names:
                raise ValueError(f'{self.name} has no row "{name}"')
        for column in self.columns:
            named(column)
        for row in self.rows:
            if len(row.labels) != len(self.labels):
                raise ValueError(f"row {row.name} has {len(row.labels)} labels")
        if unknown := sorted(set(self.varied) - ORDER):
            raise ValueError(f"rows of {self.name} cannot vary in {', '.join(unknown)}")
        if self.grid:
            self._check_grid(self.grid)

    def overriding(self, assignments: Sequence[str]) -> Ablation:
        """The same with ``key=value`` in every row, as another LLM or precision.

        Raises:
            RecipeError: a row sets that key, a part of it or what it is part of: rows are the question.
        """
        for row in self.rows:
            for mine, given in product(map(_key, row.overrides), map(_key, assignments)):
                if f"{mine}.".startswith(f"{given}.") or f"{given}.".startswith(f"{mine}."):
                    raise RecipeError(
                        f"row {row.name} of {self.name} sets {mine} itself: {given} cannot be the same "
                        "in every row"
                    )
        rows = tuple(replace(row, overrides=(*assignments, *row.overrides)) for row in self.rows)
        return replace(self, rows=rows, overridden=(*self.overridden, *assignments))

    def differences(self) -> list[str]:
        """What rows differ in by design, and what pairs them then; empty if that is their samples."""
        if not self.varied:
            return []
        return [
            f"Rows differ in {', '.join(self.varied)} by design: runs of a seed share their beginning "
            "and the questions that they are asked, not the samples that they learn."
        ]

    def _check_grid(self, grid: Grid) -> None:
        _unique([cell.name for cell in grid.cells], "cells")
        for name in [grid.reference, *(cell.name for cell in grid.cells)]:
            if name not in self.tasks:
                raise ValueError(f'{self.name} has no task for the cell "{name}"')


def difference(row: str, versus: str, metric: str) -> Contrast:
    """A metric of one row less that of another."""
    return Contrast((Term(1, row, metric), Term(-1, versus, metric)))


def _key(assignment: str) -> str:
    return assignment.partition("=")[0].strip()


def _unique(names: Sequence[str], what: str) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"two {what} have one name among {', '.join(names)}")
