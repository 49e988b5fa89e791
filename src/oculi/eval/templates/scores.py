"""The scores of a run as tables: seeing, blind, and what a constant answer reaches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from oculi.eval.score import Score
from oculi.eval.templates.contents import Eval, Part
from oculi.eval.templates.markup import text


def scores(evals: Sequence[Eval]) -> str:
    """The table, and one per task for its kinds of question."""
    if not evals:
        return "<p>No evaluation has finished.</p>"
    pairs = _pairs(evals)
    rows = [_row((task, stage), seeing, blind) for task, stage, seeing, blind in pairs]
    table = _table(("Task", "After stage"), rows)
    details = []
    for task, stage, seeing, blind in pairs:
        names = {**(seeing.groups if seeing else {}), **(blind.groups if blind else {})}
        if not names:
            continue
        groups = [_row((name,), _group(seeing, name), _group(blind, name)) for name in names]
        title = f"{text(task, 80)} after {text(stage, 80)}, by kind of question"
        kinds = _table(("Kind",), groups)
        details.append(f"<details><summary>{title}</summary>{kinds}</details>")
    explained = (
        '<p class="quiet">Share of exactly right answers with 95 % intervals. Blind is the same '
        "model without the pictures; a constant gives each kind of question its commonest answer. "
        "In the drawing: seeing filled, blind hollow, the constant a line.</p>"
    )
    return explained + table + "".join(details)


def _pairs(evals: Sequence[Eval]) -> list[tuple[str, str, Eval | None, Eval | None]]:
    """Each seeing evaluation with its blind one; what finds no partner stands alone."""
    blinds = [one for one in evals if one.blind]
    # Two files of one name are two tasks of one name: their folders tell them apart.
    claimed = {f"{one.name}-blind" for one in evals if not one.blind}
    pairs: list[tuple[str, str, Eval | None, Eval | None]] = []
    for seeing in evals:
        if not seeing.blind:
            fits = [b for b in blinds if (b.task, b.stage) == (seeing.task, seeing.stage)]
            own = [b for b in fits if b.name == f"{seeing.name}-blind"]
            free = [b for b in fits if b.name not in claimed]
            partner = next(iter(own or free), None)
            if partner:
                blinds.remove(partner)
            pairs.append((seeing.task, seeing.stage, seeing, partner))
    return pairs + [(blind.task, blind.stage, None, blind) for blind in blinds]


def _group(one: Eval | None, name: str) -> Eval | Part | None:
    return one.groups.get(name) if one else None


def _part(one: Eval | Part | None) -> Part:
    return one.whole if isinstance(one, Eval) else one or Part(None)


def _row(names: Iterable[str], one: Eval | Part | None, other: Eval | Part | None) -> str:
    seeing, blind = _part(one), _part(other)
    constant = seeing.constant if seeing.constant is not None else blind.constant
    verdict = "–"
    if seeing.score and blind.score:
        verdict = "yes" if seeing.score.low > blind.score.high else "not clearly"
    cells = [f'<td class="text">{text(name, 80)}</td>' for name in names]
    cells += [_score(seeing.score), _score(blind.score), f"<td>{_percent(constant)}</td>"]
    bar = _bar(seeing.score, blind.score, constant)
    return f"<tr>{''.join(cells)}<td>{verdict}</td><td>{bar}</td></tr>"


def _table(names: Sequence[str], rows: Sequence[str]) -> str:
    heads = (*names, "Seeing", "Blind", "Constant", "Above blind?", "0 to 100 %")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _score(score: Score | None) -> str:
    if score is None:
        return "<td>–</td>"
    interval = f"{100 * score.low:.1f} to {100 * score.high:.1f} %"
    return (
        f"<td>{_percent(score.score)}<small>{interval}</small>"
        f"<small>{score.correct} of {score.n}</small></td>"
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _bar(seeing: Score | None, blind: Score | None, constant: float | None) -> str:
    """The numbers beside it once more: intervals as boxes on a line from 0 to 1."""
    parts = ['<path d="M4 15H104" stroke="var(--rule)"/>']
    if constant is not None:
        parts.append(f'<path d="M{4 + 100 * constant:.1f} 1V29" stroke="var(--muted)"/>')
    for score, y, colour, fill in (
        (seeing, 4, "var(--c0)", "var(--c0)"), (blind, 17, "var(--c1)", "var(--paper)"),
    ):  # fmt: skip
        if score:
            low, middle, high = (4 + 100 * v for v in (score.low, score.score, score.high))
            parts.append(
                f'<rect x="{low:.1f}" y="{y}" width="{max(high - low, 1):.1f}" height="9" '
                f'fill="{fill}" fill-opacity=".5" stroke="{colour}" stroke-width=".7"/>'
                f'<path d="M{middle:.1f} {y}v9" stroke="{colour}" stroke-width="1.6"/>'
            )
    return f'<svg class="bar" viewBox="0 0 108 30" aria-hidden="true">{"".join(parts)}</svg>'
