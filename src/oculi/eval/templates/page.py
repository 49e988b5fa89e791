"""A report as one HTML page: no script, nothing loaded from anywhere, every text escaped."""

from __future__ import annotations

from collections.abc import Sequence

from oculi.eval.templates.contents import Answer, Contents, Eval, Restored
from oculi.eval.templates.figures import curves
from oculi.eval.templates.markup import NAME, text
from oculi.eval.templates.scores import scores
from oculi.eval.templates.shown import shown_at_checkpoints
from oculi.eval.templates.style import STYLE

# A browser that honours it loads and runs nothing, whatever slipped through.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(contents: Contents) -> str:
    """The page's text."""
    title = text(contents.title, NAME)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>",
        f"<header><h1>{title}</h1><p>{text(contents.summary)}</p>{_facts(contents.facts)}</header>",
        _notes(contents.notes),
        f"<h2>Scores</h2>{scores(contents.evals)}",
        f"<h2>Curves</h2>{curves(contents.stages)}",
        f"<h2>Answers</h2>{_answers(contents.evals)}",
        shown_at_checkpoints(contents.shown),
        _restored(contents.restored),
        f"<h2>Recipe</h2>{_recipe(contents.recipe)}",
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in facts)
    return f'<dl class="facts">{rows}</dl>' if facts else ""


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{text(note)}</li>" for note in notes)
    return f'<div class="notes"><b>Not complete</b><ul>{items}</ul></div>' if notes else ""


def _recipe(recipe: str) -> str:
    if not recipe:
        return "<p>There is no recipe.yaml to show.</p>"
    whole = text(recipe, len(recipe))
    return f"<details><summary>All of recipe.yaml</summary><pre>{whole}</pre></details>"


def _answers(evals: Sequence[Eval]) -> str:
    parts = []
    last = next((one for one in reversed(evals) if one.shown and not one.blind), None)
    for one in evals:
        if not one.shown:
            continue
        how = "blind" if one.blind else "seeing"
        title = f"{text(one.task, NAME)} after {text(one.stage, NAME)}, {how}"
        cards = "".join(_card(answer, one.blind) for answer in one.shown)
        parts.append(
            f"<details{' open' if one is last else ''}><summary>{title}</summary>"
            f'<p class="quiet">Chosen from the first {one.read} answers, wrong and right; their '
            "shares here are not the score. All are in "
            f"<code>evals/{text(one.name, NAME)}/answers.jsonl</code>.</p>"
            f'<div class="cards">{cards}</div>{_failed(one.failed)}</details>'
        )
    return "".join(parts) or "<p>None was found.</p>"


def _restored(restored: Restored | None) -> str:
    """Nothing where there is none: few runs have it."""
    if restored is None:
        return ""
    rows = "".join(
        f'<tr><td class="text">{text(one.label)}</td><td>{text(one.measure, NAME)}</td>'
        f"<td>{one.mean:.3f}<small>{one.low:.3f} to {one.high:.3f}</small></td></tr>"
        for one in restored.measures
    )
    shown = f"<p><small>{text(restored.note)}</small></p>"
    if restored.picture is not None:
        whole = text(restored.picture, len(restored.picture))
        shown = f'<div class="wide"><img src="{whole}" alt="originals and restorations"></div>'
    return (
        '<h2>Restored pictures</h2><p class="quiet">From what the LLM is given of them, by '
        f"<code>{text(restored.command)}</code>; means over {restored.pictures} pictures with 95 % "
        "intervals. Rows: the picture; through the autoencoder alone; then for each checkpoint from "
        f"its own tokens and from those of the next picture.</p>{shown}"
        '<div class="wide"><table><thead><tr><th>Tokens</th><th>Measure</th><th>Mean</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _card(answer: Answer, blind: bool) -> str:
    picture, note = "", ""
    if answer.picture is not None:
        picture = f'<img src="{text(answer.picture, len(answer.picture))}" alt="the picture">'
    elif not blind:
        note = f"<p><small>{text(answer.note or 'its picture was not kept')}</small></p>"
    mark = "✓ right" if answer.correct else "✗ wrong"
    expected = "" if answer.correct else f"<p><small>right is</small> {text(answer.answer)}</p>"
    return (
        f'<div class="card{"" if answer.correct else " wrong"}">{picture}<div>'
        f"<p>{text(answer.question)}</p><p><small>says</small> {text(answer.prediction)}</p>"
        f'{expected}<p><span class="mark">{mark}</span> <small>{text(answer.group, NAME)}</small>'
        f"</p>{note}</div></div>"
    )


def _failed(failed: Sequence[Answer]) -> str:
    if not failed:
        return ""
    rows = "".join(
        "<tr>"
        + "".join(f'<td class="text">{text(v)}</td>' for v in (a.question, a.prediction, a.answer))
        + f"<td>{text(a.group, NAME)}</td></tr>"
        for a in failed
    )
    return (
        '<details><summary>More wrong answers</summary><div class="wide"><table><thead><tr>'
        "<th>Question</th><th>Says</th><th>Right is</th><th>Kind</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></details>"
    )
