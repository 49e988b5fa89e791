"""`oculi data synthesize`: ask about every picture, and write what was answered as samples.

    plan.json         what the answers depend on; another plan is refused
    records.jsonl     every answer as it came, fsynced before it is looked at; only added to
    samples.jsonl     the answers that fit, as rows that training reads
    quarantine.jsonl  pictures without one, with the reason

The last two are made of the first two and the pictures, again at the end of every run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from oculi.data.container import Row
from oculi.data.images import ImageError
from oculi.data.rowfile import root_hint, to_row, write_rows
from oculi.data.sample import ImageSlot, Message, Sample
from oculi.data.synth.asking import Asker, Limits
from oculi.data.synth.endpoint import Endpoint
from oculi.data.synth.estimate import Prices
from oculi.data.synth.pace import Pace, Stopped
from oculi.data.synth.pictures import Item, Pictures
from oculi.data.synth.plan import Plan, Records, forget_changed, is_open, opened
from oculi.data.synth.replies import BadReply, Pairs, read_reply
from oculi.errors import EndpointError

SAMPLES: Final = "samples.jsonl"
QUARANTINE: Final = "quarantine.jsonl"

Progress = Callable[[int, int], None]


@dataclass
class Summary:
    """What a folder holds after a run, and what the run took.

    Attributes:
        samples, quarantined, unanswered: pictures. changed: had answers to other bytes than they have.
        requests: of this run, those without an answer too.
        prompt_tokens, completion_tokens: of all runs, as the server counted; cost: theirs.
    """

    out: str
    samples: int = 0
    quarantined: int = 0
    unanswered: int = 0
    changed: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    hint: str = ""
    last_problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The summary as text."""
        yield (
            f"{self.out}: {self.samples} samples, {self.quarantined} quarantined "
            f"({QUARANTINE}), {self.unanswered} without an answer"
        )
        if self.changed:
            yield (
                f"changed since they were asked about: {self.changed} pictures; the answers of then "
                "are not theirs"
            )
        cost = "" if self.cost is None else f"; cost {self.cost:.2f}"
        yield (
            f"requests of this run: {self.requests}; tokens in all: {self.prompt_tokens} sent, "
            f"{self.completion_tokens} answered{cost}"
        )
        if self.hint:
            yield self.hint


def synthesize(
    pictures: Pictures,
    plan: Plan,
    endpoint: Endpoint,
    out: Path,
    limits: Limits,
    *,
    prices: Prices | None = None,
    total: int = 0,
    on_progress: Progress | None = None,
) -> Summary:
    """Ask about every picture that has no recorded answer, then write samples and quarantine.

    On Ctrl-C nothing new is sent; answers under way are waited for, recorded, and written.

    Args:
        total: pictures, for `on_progress`, which is told how many are done.

    Raises:
        EndpointError: the endpoint refuses or fails, with all that was answered written; or some
            pictures have no answer. DataError: `out` is taken. DiskError: it cannot be written.
    """
    pace = Pace(limits.requests, limits.tokens)
    with opened(out, plan) as records:
        asker = Asker(plan, endpoint, records, limits, pace)
        try:
            _ask_all(pictures, asker, limits, total, on_progress)
        finally:
            summary = _write(pictures, plan, records, asker, out, limits.tries)
    summary.cost = (prices or Prices()).cost(summary.prompt_tokens, summary.completion_tokens)
    return summary


def _ask_all(
    pictures: Pictures, asker: Asker, limits: Limits, total: int, on_progress: Progress | None
) -> None:
    """Keep `concurrency` requests under way until all pictures are done."""
    waiting: set[Future[None]] = set()
    done = 0

    def harvest(some: set[Future[None]]) -> None:
        nonlocal done
        for future in some:
            future.result()  # raises what a thread has met
            done += 1
            if on_progress is not None:
                on_progress(done, max(total, done))

    with ThreadPoolExecutor(limits.concurrency) as pool:
        try:
            for item in pictures:
                asker.changed += forget_changed(asker.records.entries, item)
                if not is_open(asker.records.entries, item.key, limits.tries):
                    continue
                if len(waiting) >= 2 * limits.concurrency:
                    finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    harvest(finished)
                waiting.add(pool.submit(_one, asker, item))
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                harvest(finished)
        except BaseException as error:
            asker.pace.stop()  # leaving the block waits for the answers under way: they are paid
            if isinstance(error, KeyboardInterrupt):
                print("oculi: waiting for the answers under way", file=sys.stderr, flush=True)
            raise


def _one(asker: Asker, item: Item) -> None:
    try:
        if not asker.pace.stopped:
            asker(item)
    except Stopped:
        pass
    except BaseException:
        asker.pace.stop()  # here, not where it is read: nothing more is sent in the meantime
        raise


def _write(
    pictures: Pictures, plan: Plan, records: Records, asker: Asker, out: Path, tries: int
) -> Summary:
    """Write the two files that follow from the records."""
    quarantined: list[Row] = []
    summary = Summary(str(out), requests=asker.requests)
    rows = _rows(pictures, plan, records, asker, tries, quarantined, summary)
    summary.samples = write_rows(out / SAMPLES, rows)
    summary.quarantined = write_rows(out / QUARANTINE, quarantined)
    summary.changed = asker.changed
    summary.prompt_tokens = records.tokens.prompt
    summary.completion_tokens = records.tokens.completion
    summary.hint = root_hint(out / SAMPLES, pictures.root)
    summary.last_problem = next(reversed(asker.unanswered.values()), "")
    return summary


def _rows(
    pictures: Pictures,
    plan: Plan,
    records: Records,
    asker: Asker,
    tries: int,
    quarantined: list[Row],
    summary: Summary,
) -> Iterator[Row]:
    """The rows of samples, in the order of the pictures; others are told apart on the way."""
    made_by = {
        "model": plan.model, "strategy": plan.strategy, "instructions": plan.instructions,
    }  # fmt: skip
    for item in pictures:
        asker.changed += forget_changed(records.entries, item)  # an early end has not come to it
        entry = records.entries.get(item.key)
        if entry is not None and entry.outcome == "ok":
            said = records.read(item.key)
            try:
                pairs = read_reply(said["reply"], plan.instruction, plan.words(item)[1])
                row = to_row(_sample(item, pairs), {"synthesis": made_by})
            except BadReply as error:  # somebody has changed the records
                quarantined.append(_bad(item, f"its record has changed: {error}", said["reply"]))
                continue
            except ImageError as error:  # answered before that was looked at
                quarantined.append(_bad(item, str(error), said["reply"]))
                continue
            yield row
        elif item.key in asker.unreadable:
            quarantined.append(_bad(item, asker.unreadable[item.key]))
        elif is_open(records.entries, item.key, tries):
            summary.unanswered += 1
        else:
            said = records.read(item.key)
            quarantined.append(_bad(item, said["reason"], said["reply"]))


def _bad(item: Item, reason: str, reply: str = "") -> Row:
    return {"id": item.id, "place": item.place, "reason": reason, "reply": reply}


def _sample(item: Item, pairs: Pairs) -> Sample:
    """The conversation of a picture; a question that is empty is the picture alone."""
    messages: list[Message] = []
    for number, (question, answer) in enumerate(pairs):
        asked = ("\n" + question,) if question else ()
        shown: tuple[str | ImageSlot, ...] = (ImageSlot(0), *asked)
        messages.append(Message("user", (question,) if number else shown))
        messages.append(Message("assistant", (answer,)))
    return Sample(item.id, tuple(messages), (item.image,), item.place, modality=item.modality)


def check_answered(summary: Summary) -> None:
    """Raise EndpointError when some pictures have no answer."""
    if summary.unanswered:
        reason = f", the last time: {summary.last_problem}" if summary.last_problem else ""
        raise EndpointError(
            f"{summary.unanswered} pictures have no answer{reason}; the same command asks for them"
        )
