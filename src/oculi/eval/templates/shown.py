"""What objectives have shown at checkpoints, as a part of the page."""

from __future__ import annotations

from collections.abc import Sequence

from oculi.eval.templates.contents import Shown
from oculi.eval.templates.markup import NAME, text


def shown_at_checkpoints(found: Sequence[Shown]) -> str:
    """A table with a line per checkpoint, and the pictures; nothing where there is none."""
    if not found:
        return ""
    names = list(dict.fromkeys(name for one in found for name in one.scores))
    head = "".join(f"<th>{text(name, NAME)}</th>" for name in names)
    lines = "".join(
        f'<tr><td class="text">{_when(one)}</td>{"".join(_cell(one, name) for name in names)}</tr>'
        for one in found
    )
    pictures = "".join(_sheet(one, last=one is found[-1]) for one in found)
    return (
        '<h2>Shown at checkpoints</h2><p class="quiet">By what each stage minimises, of its first '
        "samples, the same each time; means over their images. All pictures are in "
        f'<code>shown</code>.</p><div class="wide"><table><thead><tr><th>Checkpoint</th>{head}</tr>'
        f"</thead><tbody>{lines}</tbody></table></div>{pictures}"
    )


def _when(one: Shown) -> str:
    return f"{text(one.stage, NAME)}, step {one.step}: {text(one.objective, NAME)}"


def _cell(one: Shown, name: str) -> str:
    value = one.scores.get(name)
    return "<td>–</td>" if value is None else f"<td>{value:.3f}</td>"


def _sheet(one: Shown, last: bool) -> str:
    if one.picture is None:
        return f"<p><small>{_when(one)}: {text(one.note)}</small></p>" if one.note else ""
    rows = "; ".join(text(name, NAME) for name in one.rows)
    return (
        f"<details{' open' if last else ''}><summary>{_when(one)}</summary>"
        f'<p class="quiet">Rows: {rows}.</p><div class="wide">'
        f'<img src="{text(one.picture, len(one.picture))}" alt="pictures of {one.images} images"></div>'
        "</details>"
    )
