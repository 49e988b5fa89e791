"""``report.html``: what a run did, in one file that opens anywhere and loads nothing.

It is rewritten while the run goes on, so all that is read is bounded: the report of a long run
takes hardly longer than that of a short one. A run folder may come from anyone and may be broken
at any place, so nothing in it is trusted, nothing outside it is read, and what is missing or
damaged is said in the report instead of ending the training that asked for it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import torch
import yaml

from oculi.errors import DataError
from oculi.eval.folder import MAX_SHEET_SIDE, RunFolder
from oculi.eval.templates import values
from oculi.eval.templates.contents import Contents, Eval, Part, Restored, Shown, StageLog
from oculi.eval.templates.page import render
from oculi.eval.templates.values import Json

MAX_RECIPE = 64 * 2**10  # bytes
MAX_RESULT = 2**20
MAX_ANSWERS = 2**18  # of answers.jsonl: about the first thousand
MAX_METRICS = 64 * 2**20
MAX_LINES = 20_000  # of metrics.jsonl; of more, every n-th is drawn
MAX_FOLDERS = 200  # in evals
MAX_EVALS = 24
MAX_NOTES = 30
MAX_STAGES = 12
MAX_SHOWN = 60  # checkpoints of which scores are in the page
MAX_SHEETS = 6  # of these with their pictures
RESTORED = "restored"  # folder in a run for what `oculi reconstruct` shows of it


def write_report(run: Path) -> Path:
    """Make ``run/report.html`` from what the folder holds; every part of it may be missing.

    The old report stays until the new one is complete.

    Args:
        run: a run's folder, see ``oculi.training.run``.

    Returns:
        the file.

    Raises:
        DataError: ``run`` is no folder.
        OSError: the file cannot be written.
    """
    if not run.is_dir():
        raise DataError(f"{run} is no folder: a report is made from a run's folder")
    page = render(_contents(RunFolder(run.resolve())))
    aside = run / f".report.html.{os.getpid()}"
    aside.unlink(missing_ok=True)  # a link left there must not be written through
    try:
        aside.write_bytes(page.encode("utf-8", "replace"))
        os.replace(aside, run / "report.html")
    finally:
        aside.unlink(missing_ok=True)
    return run / "report.html"


def _contents(folder: RunFolder) -> Contents:
    recipe, text = _recipe(folder)
    rows = _metrics(folder)
    stages = _stages(folder, rows)
    evals = _evals(folder, [stage.name for stage in stages])
    _expect(folder, recipe, stages, evals)
    restored, shown = _restored(folder), _shown(folder)
    facts = [("Run", folder.path.name), *_times(folder, rows), *_progress(stages)]
    unique = list(dict.fromkeys(folder.notes))
    notes = unique[:MAX_NOTES]
    if len(unique) > len(notes):
        notes.append(f"And {len(unique) - len(notes)} more of this kind.")
    return Contents(
        title=values.string(recipe.get("name")) or folder.path.name or "a run",
        summary=values.string(recipe.get("summary")),
        recipe=text,
        facts=facts,
        stages=stages,
        evals=evals,
        restored=restored,
        shown=shown,
        notes=notes,
    )


# The recipe and what it announces


def _recipe(folder: RunFolder) -> tuple[Json, str]:
    """Its top level, as far as it is one, and its text. Old recipes count: it is not validated."""
    found = folder.text("recipe.yaml", MAX_RECIPE)
    if found is None:
        folder.notes.append("There is no recipe.yaml.")
        return {}, ""
    text, cut = found
    if cut:
        folder.notes.append(f"recipe.yaml is longer than {MAX_RECIPE // 1024} KiB: it was cut.")
    try:
        recipe = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict):
        folder.notes.append("recipe.yaml holds no recipe.")
        return {}, text
    return recipe, text


def _expect(
    folder: RunFolder, recipe: Json, stages: Sequence[StageLog], evals: Sequence[Eval]
) -> None:
    """Note what the recipe announces and the run does not have (yet)."""
    if not stages:
        folder.notes.append("No step has been logged in metrics.jsonl.")
    if not evals:
        folder.notes.append("No evaluation has finished.")
    logged = {stage.name: stage for stage in stages}
    tasks = [entry["task"] for entry in values.entries(recipe.get("evals"), "task")]
    for entry in values.entries(recipe.get("stages"), "name"):
        name = entry["name"]
        if name not in logged:
            folder.notes.append(f"Stage {name} has not begun.")
            continue
        step, planned = int(logged[name].steps[-1]), logged[name].planned
        if planned and step < planned and logged[name] is stages[-1]:  # else it has been finished
            folder.notes.append(f"Stage {name} is at step {step} of {planned}.")
            continue
        scored = {one.task for one in evals if one.stage == name}
        for task in tasks if evals else ():
            if task not in scored and Path(task).stem not in scored:  # a file's task is its stem
                folder.notes.append(f"{task} has not been scored after stage {name}.")


# metrics.jsonl


def _metrics(folder: RunFolder) -> list[Json]:
    """Its lines in the order of writing, those with a stage and a step."""
    found = folder.text("metrics.jsonl", MAX_METRICS)
    if found is None:
        return []
    text, cut = found
    lines = [line for line in text.split("\n") if line.strip()]
    if cut:
        folder.notes.append("metrics.jsonl is very long: only its beginning was read.")
    if len(lines) > MAX_LINES:
        every = math.ceil(len(lines) / MAX_LINES)
        folder.notes.append(f"Of {len(lines)} lines of metrics.jsonl one in {every} is drawn.")
        lines = lines[::-every][::-1]  # the newest is among them
    rows = values.objects(lines)
    rows = [
        row
        for row in rows
        if values.string(row.get("stage")) and values.count(row.get("step")) is not None
    ]
    if len(rows) < len(lines):
        folder.notes.append(
            f"{len(lines) - len(rows)} of {len(lines)} lines of metrics.jsonl cannot be used; "
            "the last one may just be being written."
        )
    return rows


def _stages(folder: RunFolder, rows: Sequence[Json]) -> list[StageLog]:
    stages = values.stage_logs(rows)
    if len(stages) > MAX_STAGES:
        folder.notes.append(f"Of {len(stages)} stages the first {MAX_STAGES} are shown.")
    numbers = (values.number(value) for row in rows for value in row.values())
    if bad := sum(value is not None and not math.isfinite(value) for value in numbers):
        folder.notes.append(f"{bad} logged values are not finite and are not drawn.")
    return stages[:MAX_STAGES]


# The header


def _times(folder: RunFolder, rows: Sequence[Json]) -> list[tuple[str, str]]:
    facts = []
    # The recipe is written when a run begins and then left alone.
    with suppress(OSError):
        if recipe := folder.real("recipe.yaml"):
            facts.append(("Began", _date(recipe.stat().st_mtime)))
    facts.append(("This report", _date(time.time())))
    named = (values.string(row.get("device")) for row in reversed(rows))
    facts.append(("Device", next(filter(None, named), None) or _device()))
    # "elapsed" starts again with every stage and every resume.
    seconds, last, stage = 0.0, 0.0, ""
    for row in rows:
        elapsed = values.finite(row.get("elapsed"))
        if elapsed is None:
            continue
        if row["stage"] != stage or elapsed < last:
            seconds, stage = seconds + last, row["stage"]
        last = elapsed
    if seconds + last > 0:
        facts.append(("Time in training", _duration(seconds + last)))
    return facts


def _progress(stages: Sequence[StageLog]) -> list[tuple[str, str]]:
    facts = []
    seen = [
        values.count(stage.values["samples"][-1]) for stage in stages if "samples" in stage.values
    ]
    if total := sum(filter(None, seen)):
        facts.append(("Samples seen", f"{total:,}"))
    for stage in stages:
        of = f" of {stage.planned}" if stage.planned else ""
        facts.append((f"Stage {stage.name}", f"step {stage.steps[-1]:.0f}{of}"))
    return facts


def _device() -> str:
    if torch.cuda.is_initialized():  # asking more would start CUDA in a process that trains nothing
        return torch.cuda.get_device_name()
    return "not recorded" if torch.cuda.is_available() else "CPU"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(min(seconds, 1e12)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


# The evaluations


def _evals(folder: RunFolder, order: Sequence[str]) -> list[Eval]:
    """Those with a result, by stage, task and blindness."""
    results = []
    for name in _names(folder):
        found = folder.text(f"evals/{name}/result.json", MAX_RESULT)
        objects = values.objects([found[0]]) if found else []
        if objects and isinstance(objects[0].get("exact"), dict):
            results.append((name, objects[0]))
        else:
            folder.notes.append(f"evals/{name} has no result.json that can be read.")
    place = {stage: i for i, stage in enumerate(order)}

    def key(named: tuple[str, Json]) -> tuple[int, str, str]:
        stage, task = (values.string(named[1].get(k)) for k in ("stage", "task"))
        return place.get(stage, len(place)), task, named[0]

    results.sort(key=key)
    if len(results) > MAX_EVALS:
        folder.notes.append(f"Of {len(results)} evaluations the last {MAX_EVALS} are shown.")
    # The newest first, so that they get the pictures when the pixels run out.
    return [_eval(folder, *one) for one in reversed(results[-MAX_EVALS:])][::-1]


def _names(folder: RunFolder) -> list[str]:
    root = folder.real("evals")
    if root is None or not root.is_dir():
        return []
    try:
        names = sorted(path.name for path in root.iterdir() if path.is_dir())
    except OSError:
        folder.notes.append("The folder evals cannot be read.")
        return []
    if len(names) > MAX_FOLDERS:
        folder.notes.append(f"evals holds {len(names)} folders; {MAX_FOLDERS} were looked at.")
    return names[:MAX_FOLDERS]


def _eval(folder: RunFolder, name: str, result: Json) -> Eval:
    found = folder.text(f"evals/{name}/answers.jsonl", MAX_ANSWERS)
    if found is None:
        folder.notes.append(f"evals/{name} has no answers.jsonl.")
    # Not splitlines: an answer may hold U+2028, which JSON leaves as it is.
    rows = values.objects(found[0].split("\n")) if found else []
    chosen, failed = values.choice(rows)
    groups = values.groups(result.get("groups"))
    majority = result.get("majority")
    constant = majority.get("score") if isinstance(majority, dict) else majority
    return Eval(
        name=name,
        task=values.string(result.get("task")) or name,
        stage=values.string(result.get("stage")) or "–",
        blind=result.get("blind") is True,
        whole=Part(values.score(result["exact"]), values.share(constant)),
        groups={
            k: Part(values.score(v), values.share(v.get("majority"))) for k, v in groups.items()
        },
        shown=[
            values.answer(row, *folder.picture(f"evals/{name}", row.get("image"))) for row in chosen
        ],
        failed=[values.answer(row) for row in failed],
        read=len(rows),
    )


def _restored(folder: RunFolder) -> Restored | None:
    """What ``oculi reconstruct ... --out RUN/restored`` has written, if it was called."""
    found = folder.text(f"{RESTORED}/scores.json", MAX_RESULT)
    if found is None:
        return None
    objects = values.objects([found[0]])
    sheet = folder.picture(RESTORED, "pictures.png", MAX_SHEET_SIDE)
    restored = values.restored(objects[0], *sheet) if objects else None
    if restored is None:
        folder.notes.append(f"{RESTORED} has no scores.json that can be read.")
    return restored


def _shown(folder: RunFolder) -> list[Shown]:
    """What objectives have shown at checkpoints, the newest of a checkpoint; some with their picture."""
    found = folder.text("shown.jsonl", MAX_RESULT)
    if found is None:
        return []
    known = {}
    for row in values.objects(found[0].split("\n")):
        if one := values.shown(row):
            known[one.stage, one.step, one.objective] = row
    rows = _spread(list(known.values()), MAX_SHOWN)
    if len(rows) < len(known):
        folder.notes.append(f"Of {len(known)} lines of shown.jsonl {len(rows)} are shown.")
    pictured = _spread(rows, MAX_SHEETS)
    made = []
    for row in rows:
        sheet: tuple[str | None, str] = (None, "")
        if any(row is one for one in pictured):
            sheet = folder.picture("shown", row.get("picture"), MAX_SHEET_SIDE)
        made.append(values.shown(row, *sheet))
    return [one for one in made if one]


def _spread(rows: Sequence[Json], most: int) -> list[Json]:
    """As many at most, evenly, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
