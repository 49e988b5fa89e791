"""What a synthesis will take, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from oculi.data.rowfile import check_pictures
from oculi.data.synth.pictures import IMAGE_TOKENS, Pictures, sent_size, text_tokens
from oculi.data.synth.plan import Entry, Plan, forget_changed, is_open
from oculi.errors import DataError

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Prices:
    """Money for a million tokens, in whatever currency; None: not known."""

    prompt: float | None = None
    completion: float | None = None

    def cost(self, prompt: int, completion: int) -> float | None:
        """Of so many tokens; None where a price is missing."""
        if self.prompt is None or self.completion is None:
            return None
        return (prompt * self.prompt + completion * self.completion) / 1e6


@dataclass
class Estimate:
    """Requests, tokens and money. Tokens are estimates; `cost` is with answers of the usual length,
    `most_cost` with every answer as long as it may be, and asked for as often.

    Attributes:
        pictures: different ones. answered: need no request any more.
        requests: with one for each picture that is left. changed: those whose answer was to other bytes.
        most_answer_tokens, most_cost: None where the request sets no limit.
        bad_rows: of the source. unreadable: pictures that cannot be used. repeated: seen before.
    """

    pictures: int = 0
    answered: int = 0
    requests: int = 0
    changed: int = 0
    image_tokens: int = 0
    text_tokens: int = 0
    answer_tokens: int = 0
    most_answer_tokens: int | None = 0
    bad_rows: int = 0
    unreadable: int = 0
    repeated: int = 0
    cost: float | None = None
    most_cost: float | None = None
    first_problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The estimate as text."""
        yield f"pictures {self.pictures}: {self.answered} answered before, {self.requests} to ask"
        if self.changed:
            yield f"changed since they were asked about: {self.changed} pictures; they are asked anew"
        if self.repeated:
            yield f"shown more than once: {self.repeated} times; asked about once"
        if self.first_problem:
            yield (
                f"left out: {self.bad_rows} bad rows, {self.unreadable} unreadable pictures; the first: "
                f"{self.first_problem}"
            )
        yield (
            f"requests {self.requests}, estimated tokens: {self.image_tokens} of pictures, "
            f"{self.text_tokens} of text, {self.answer_tokens} of answers "
            f"(at most{self._most()})"
        )
        if self.cost is None:
            yield "cost: unknown; give --price-in and --price-out, for a million tokens"
        else:
            most = "unknown" if self.most_cost is None else f"{self.most_cost:.2f}"
            yield f"cost: {self.cost:.2f} estimated, {most} if all goes wrong"

    def _most(self) -> str:
        most = self.most_answer_tokens
        return f" {most}" if most is not None else ": unknown, the request sets no limit"


def estimate(
    pictures: Pictures,
    plan: Plan,
    entries: dict[str, Entry],
    *,
    tries: int,
    image_tokens: str,
    prices: Prices,
    on_progress: Progress | None = None,
) -> Estimate:
    """Look at every picture's header and count what asking takes; nothing is sent or written.

    Pictures that were asked about are read: their bytes may be others now.

    Args:
        entries: what is answered already; answers to other bytes are taken out. tries: as of `Limits`.
        image_tokens: a way of counting out of `IMAGE_TOKENS`.
        on_progress: told how much of the source is looked at, and of how much.
    """
    found, count = Estimate(), IMAGE_TOKENS[image_tokens]
    for item in pictures:
        found.pictures += 1
        if on_progress is not None and found.pictures % 256 == 0:
            on_progress(pictures.done, pictures.size)
        changed = forget_changed(entries, item)
        if not is_open(entries, item.key, tries):
            found.answered += 1
            continue
        try:
            size = item.image.size()
            check_pictures([item.image])
        except DataError as error:
            found.unreadable += 1
            found.first_problem = found.first_problem or f"{item.place}: {error}"
            continue
        found.requests += 1
        found.changed += changed
        found.image_tokens += count(*sent_size(size, plan.max_side))
        found.text_tokens += text_tokens(plan.words(item)[0])
    if on_progress is not None:
        on_progress(pictures.size, pictures.size)
    most, usual = plan.limit(), plan.instruction.tokens.usual
    found.answer_tokens = found.requests * (usual if most is None else min(usual, most))
    found.most_answer_tokens = None if most is None else found.requests * most * tries
    found.bad_rows, found.repeated = len(pictures.bad), pictures.repeated
    if pictures.bad:
        found.first_problem = str(pictures.bad[0])
    sent = found.image_tokens + found.text_tokens
    found.cost = prices.cost(sent, found.answer_tokens)
    if found.most_answer_tokens is not None:
        found.most_cost = prices.cost(sent * tries, found.most_answer_tokens)
    return found
