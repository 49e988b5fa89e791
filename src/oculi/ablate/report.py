"""The report: the table beside the paper's numbers, claims with intervals and verdicts, figures."""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from oculi import durable
from oculi.ablate.grid import grid_json, grid_lines
from oculi.ablate.judge import QUICK, Judged, Results, judge
from oculi.ablate.metrics import named
from oculi.ablate.spec import Ablation, Row
from oculi.bench.report import versions
from oculi.recipe import Recipe

_HOW = (
    "Written down before the first run. A claim is confirmed if its whole 95 % interval lies where it "
    "says, not confirmed if it lies wholly elsewhere, else not decidable. Intervals of contrasts are "
    "Student's over seeds, paired on the same data in the same order; for exact match they are widened "
    "to the bootstrap over questions where that reaches further. Shares of runs have Newcombe's."
)


@dataclass(frozen=True)
class Report:
    """What is known so far; with all runs, the verdicts.

    Attributes:
        ablation: what was run. seeds: how many were planned. quick: of a few steps, no result.
        results: runs so far. recipes: of the rows.
    """

    ablation: Ablation
    seeds: int
    quick: bool
    results: Results
    recipes: Mapping[str, Recipe]

    @property
    def done(self) -> list[int]:
        """Seeds of which every row is there."""
        rows = [row.name for row in self.ablation.rows]
        return [s for s in range(self.seeds) if all((row, s) in self.results for row in rows)]

    @property
    def complete(self) -> bool:
        """Whether all runs are there; before that nothing is judged."""
        return len(self.done) == self.seeds

    @property
    def command(self) -> str:
        """What makes this report."""
        overrides = shlex.join(self.ablation.overridden)
        options = f"--seeds {self.seeds}{' --quick' * self.quick}"
        return " ".join(filter(None, ("oculi ablate", self.ablation.name, overrides, options)))

    def judged(self) -> list[Judged]:
        """The claims with their verdicts; none before the last run."""
        if not self.complete:
            return []
        return [judge(claim, self.results, self.done) for claim in self.ablation.claims]

    def table(self) -> list[str]:
        """The rows as a Markdown table: labels, our metrics, the paper's own numbers."""
        rows, labels = self.ablation.rows, self.ablation.labels
        paper = list(dict.fromkeys(column for row in rows for column in row.paper))
        titles = [
            named(column).title + " (%)" * named(column).percent for column in self.ablation.columns
        ]
        head = ["row", *labels, *titles, *(f"paper: {column}" for column in paper)]
        lines = [head, ["---"] * len(head)]
        for row in rows:
            cells = [self._cell(row, column) for column in self.ablation.columns]
            theirs = [row.paper.get(column, "") for column in paper]
            lines.append([row.name, *row.labels, *cells, *theirs])
        return [f"| {' | '.join(cells)} |" for cells in lines]

    def _cell(self, row: Row, column: str) -> str:
        metric = named(column)
        found = [self.results[row.name, seed].values.get(column) for seed in self.done]
        values = [value * (100 if metric.percent else 1) for value in found if value is not None]
        if not values:
            return "-"
        mean = f"{statistics.fmean(values):.{metric.digits}f}"
        spread = f" ± {statistics.stdev(values):.{metric.digits}f}" if len(values) > 1 else ""
        missing = f" ({len(values)} of {len(found)})" if len(values) < len(found) else ""
        return mean + (spread if metric.digits else "") + missing

    def verdicts(self) -> list[str]:
        """The claims as a Markdown table."""
        lines = [
            "| claim | the paper | effect | found, 95 % interval | confirmed if | sample | verdict |",
            "|---|---|---|---|---|---|---|",
        ]
        for one in self.judged():
            said = QUICK if self.quick else f"**{one.verdict}**"
            cells = [
                one.claim.name, one.claim.paper, one.claim.effect.formula(), one.shown(),
                one.claim.where(),
                one.sample, said,
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        return lines

    def lines(self) -> list[str]:
        """For the terminal."""
        tables = [*self.table(), "", *self._grid(), *self.verdicts()]
        return [*([QUICK] if self.quick else []), *tables]

    def _grid(self) -> list[str]:
        """The cells as Markdown and a blank line; nothing without a grid or before the last run."""
        grid = self.ablation.grid
        if grid is None or not self.complete:
            return []
        return [*grid_lines(grid, self.results, self.done, self.quick), ""]

    def markdown(self, figures: Sequence[str] = ()) -> str:
        """The page; ``figures`` are names of SVG files beside it."""
        ablation = self.ablation
        made = ", ".join(f"{name} {number}" for name, number in versions().items())
        day = datetime.now(UTC).date().isoformat()
        state = "" if self.complete else f" **{len(self.done)} of {self.seeds} seeds so far.**"
        note = f"**{QUICK}: the verdicts are meaningless.** " if self.quick else ""
        lines = [
            f"# {ablation.name}: {ablation.source}", "",
            f"{ablation.question}", "",
            f"{note}Written by `{self.command}` on {day}, {made}. {self._cost()}{state}", "",
            f"Mean ± standard deviation over seeds. {self._definitions()}", "",
            *self.table(), "",
        ]  # fmt: skip
        if self.complete:
            lines += self._grid()
            lines += [
                "## Claims", "",
                " ".join([_HOW, *ablation.differences()]), "",
                *self.verdicts(), "",
            ]  # fmt: skip
        lines += [f"![{name}]({name})" for name in figures]
        lines += ["", "## What differs from the paper", ""] if ablation.notes else []
        lines += [f"- {text}" for text in ablation.notes]
        return "\n".join(lines).rstrip() + "\n"

    def _definitions(self) -> str:
        seen = {named(column).what: column for column in self.ablation.columns}
        said = [f"{re.split('[:.@]', column)[0]}: {what}" for what, column in seen.items()]
        text = "; ".join(dict.fromkeys(said)) + "."
        if levels := self.ablation.levels:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in levels.shares.items())
            text += (
                f" Levels are the running mean of {levels.baseline} after a share of its steps "
                f"({shares}); steps are relative to its own."
            )
        return text

    def _cost(self) -> str:
        seconds = sum(run.seconds for run in self.results.values())
        stages = next(iter(self.recipes.values())).stages
        samples = " + ".join(f"{stage.steps * stage.batch:,}" for stage in stages)
        return (
            f"{len(self.results)} runs, {seconds / 60:.1f} minutes of training in all; seeds 0 to "
            f"{self.seeds - 1}; the first row sees {samples} samples."
        )

    def to_json(self) -> dict[str, Any]:
        """All numbers, run by run."""
        return {
            "ablation": self.ablation.name,
            "source": self.ablation.source,
            "command": self.command,
            "quick": self.quick,
            "date": datetime.now(UTC).date().isoformat(),
            "versions": versions(),
            "seeds": self.seeds,
            "complete": self.complete,
            "claims": [one.to_json(self.quick, self.seeds) for one in self.judged()],
            "runs": [
                {
                    "row": row, "seed": seed, "ended": run.ended,
                    "seconds": round(run.seconds, 1),
                    "values": {k: v for k, v in run.values.items() if math.isfinite(v)},
                }
                for (row, seed), run in self.results.items()
            ],
            **self._grid_json(),
            "notes": list(self.ablation.notes),
        }  # fmt: skip

    def _grid_json(self) -> dict[str, Any]:
        grid = self.ablation.grid
        if grid is None or not self.complete:
            return {}
        return {"grid": grid_json(grid, self.results, self.done, self.quick)}

    def write(self, path: Path) -> None:
        """The page at ``path``, its numbers and its figures beside it; raises DiskError."""
        from oculi.ablate.figures import draw

        rows = [row.name for row in self.ablation.rows]
        names = []
        with durable.disk_errors(f"the report {path}"):
            for figure in self.ablation.figures:
                names.append(f"{path.stem}-{figure.name}.svg")
                svg = draw(figure, rows, self.done, self.results)
                durable.write_text(path.with_name(names[-1]), svg)
            numbers = json.dumps(self.to_json(), indent=1, ensure_ascii=False)
            durable.write_text(path.with_suffix(".json"), numbers + "\n")
            durable.write_text(path, self.markdown(names))
