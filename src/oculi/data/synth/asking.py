"""Ask about one picture until an answer fits: what is waited for, asked again, and given up."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any, Final

from oculi.data.rowfile import check_pictures, picture_digest
from oculi.data.synth.endpoint import Endpoint, Response, Unreachable
from oculi.data.synth.instructions import Instruction
from oculi.data.synth.pace import Pace
from oculi.data.synth.pictures import IMAGE_TOKENS, Item, data_url, sent_size, text_tokens
from oculi.data.synth.plan import Outcome, Plan, Records, is_open
from oculi.data.synth.replies import BadReply, read_reply
from oculi.errors import DataError, EndpointError

MAX_WAIT: Final = 600.0  # seconds; who is told to come back later than that is told so
_LONGEST_BACKOFF: Final = 60.0
_AGAIN: Final = (408, 409, 425, 429)  # and everything from 500 on
_THIS_ONE: Final = (400, 413, 415, 422)  # says that a request is wrong, perhaps only this one
_SPENT: Final = (  # under whatever status: OpenAI's come with 400, 403 and 429
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated",
)  # fmt: skip
_FILTERS: Final = ("content_filter", "content_policy_violation")
_FIRST: Final = 5  # refused in a row before any answer: it is not the pictures
_MAX_KEPT: Final = 100_000  # characters of a reply that is of no use


class GivenUp(Exception):
    """A picture has no answer after all tries; the message says what the last one met."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer is worth; `pairs` is not kept: it is read from the reply again."""

    outcome: Outcome
    reason: str = ""
    reply: str = ""
    usage: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """How often and how fast.

    Attributes:
        concurrency: requests under way at a time.
        tries: answers asked for where none fits.
        retries: requests more where there is no answer.
        requests, tokens: most a minute. image_tokens: how those of a picture are estimated.
        first_wait: seconds before the first retry; each further one waits twice as long, up to 60.
    """

    concurrency: int = 4
    tries: int = 3
    retries: int = 8
    requests: float | None = None
    tokens: float | None = None
    image_tokens: str = "tiles"
    first_wait: float = 1.0


class Asker:
    """Asks about pictures, from any number of threads, and records every answer first of all."""

    def __init__(
        self,
        plan: Plan,
        endpoint: Endpoint,
        records: Records,
        limits: Limits,
        pace: Pace,
    ) -> None:
        self.plan, self.endpoint, self.records = plan, endpoint, records
        self.limits, self.pace = limits, pace
        self.unreadable: dict[str, str] = {}
        self.unanswered: dict[str, str] = {}
        self.requests = 0
        self.changed = 0  # pictures with answers to other bytes than they have
        self._lock = threading.Lock()
        self._failures = 0  # pictures given up since the last answer
        self._answered = any(each.outcome == "ok" for each in records.entries.values())
        self._waiting: list[tuple[Item, Verdict]] = []
        self._dice = random.Random()

    def __call__(self, item: Item) -> None:
        """Ask about one picture.

        Raises:
            EndpointError: nobody will get an answer. Stopped: the run is over. DiskError.
        """
        try:
            # First: of a picture that is replaced before it is sent, no answer is then taken for its.
            item = replace(item, digest=picture_digest(item.image))
            url = data_url(item.image, self.plan.max_side)
            check_pictures([item.image])
        except DataError as error:
            self.unreadable[item.key] = str(error)
            return
        prompt, question = self.plan.words(item)
        reserved = self._estimate(item, prompt)
        said = prompt
        while is_open(self.records.entries, item.key, self.limits.tries):
            try:
                response = self._response(self.plan.body(said, url), reserved)
            except GivenUp as error:
                self._give_up(item, str(error))
                return
            verdict = judge(response, self.plan.instruction, question, self.endpoint)
            if verdict.usage:
                self.pace.correct(sum(verdict.usage.values()) - reserved)
            if not self._enter(item, verdict):
                return
            said = f"{prompt}\n\nThe last answer could not be used: {verdict.reason}."

    def _estimate(self, item: Item, prompt: str) -> int:
        """Tokens of a request and its answer, for the pace."""
        size = sent_size(item.image.size(), self.plan.max_side)
        picture = IMAGE_TOKENS[self.limits.image_tokens](*size)
        return picture + text_tokens(prompt) + self.plan.instruction.tokens.usual

    def _response(self, body: dict[str, Any], tokens: int) -> Response:
        """A response that is about this request, after as many retries as it takes.

        Raises:
            GivenUp: there was none. EndpointError: there will be none.
        """
        reason = ""
        for number in range(self.limits.retries + 1):
            self.pace.wait(tokens)
            with self._lock:
                self.requests += 1
            wait = self._backoff(number)
            try:
                response = self.endpoint.post(body)
            except Unreachable as error:
                reason = str(error)
            else:
                if response.status == 200:
                    return response
                reason = self._reason(response)
                if _code(response) in _SPENT:
                    raise EndpointError(f"{self.endpoint.url}: {reason}; the account is spent")
                if response.status in _THIS_ONE or _is_filtered(response):
                    return response
                if response.status not in _AGAIN and response.status < 500:
                    raise EndpointError(f"{self.endpoint.url}: {reason}{_remedy(response)}")
                wait = self._told(response, wait, reason)
            if number < self.limits.retries:
                self.pace.sleep(wait)
        raise GivenUp(reason)

    def _backoff(self, number: int) -> float:
        longest = min(_LONGEST_BACKOFF, self.limits.first_wait * 2.0**number)
        return longest * self._dice.uniform(0.5, 1.0)

    def _told(self, response: Response, wait: float, reason: str) -> float:
        """Seconds to wait as the server says, else `wait`; what one is told holds for all."""
        told = response.retry_after(time.time())
        if told is not None and told > MAX_WAIT:
            raise EndpointError(
                f"{self.endpoint.url}: {reason}, and to come back in {told / 60:.0f} minutes: the same "
                "command then goes on"
            )
        wait = wait if told is None else told
        if told is not None or response.status == 429:
            self.pace.hold(wait)
        return wait

    def _reason(self, response: Response) -> str:
        return f"HTTP {response.status}{self.endpoint.clean(_message(response))}"

    def _give_up(self, item: Item, reason: str) -> None:
        with self._lock:
            self.unanswered[item.key] = reason
            self._failures += 1
            if self._failures >= max(3, self.limits.concurrency):
                raise EndpointError(
                    f"{self.endpoint.url}: no answer for {self._failures} pictures in a row, the last "
                    f"time: {reason}; the same command goes on"
                )

    def _enter(self, item: Item, verdict: Verdict) -> bool:
        """Record an answer and return whether to ask again.

        Refusals wait for a first answer, unless there are answers from before: without any they may be
        about the model or the request.
        """
        with self._lock:
            if verdict.outcome == "refused" and not self._answered:
                self._waiting.append((item, verdict))
                self.unanswered[item.key] = verdict.reason
                if len(self._waiting) >= _FIRST:
                    raise EndpointError(
                        f"{self.endpoint.url}: refused the first {_FIRST} pictures: {verdict.reason}"
                    )
                return False
            self._failures, self._answered = 0, True
            waiting, self._waiting = self._waiting, []
        for each, said in [*waiting, (item, verdict)]:
            self.unanswered.pop(each.key, None)
            reply = self.endpoint.without_key(said.reply)
            kept = reply if said.outcome == "ok" else reply[:_MAX_KEPT]
            self.records.add(each, said.outcome, said.reason, kept, **said.usage)
        return verdict.outcome == "invalid"


def judge(response: Response, asked: Instruction, question: str, endpoint: Endpoint) -> Verdict:
    """What a response of status 200 or of those about a single request is worth."""
    if response.status != 200:
        outcome: Outcome = "filtered" if _is_filtered(response) else "refused"
        return Verdict(
            outcome, f"HTTP {response.status}{endpoint.clean(_message(response))}", _said(response)
        )
    if not response.whole:
        return Verdict("invalid", "the answer is longer than is read", _said(response))
    value = response.json()
    usage = _usage(value)
    choice = _first(value.get("choices")) if isinstance(value, dict) else None
    if choice is None:
        reason = "no choices in the answer" if isinstance(value, dict) else "the answer is no JSON"
        return Verdict("invalid", reason, _said(response), usage)
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    reply = message.get("content")
    if choice.get("finish_reason") == "content_filter" or isinstance(message.get("refusal"), str):
        return Verdict("filtered", "the provider's content filter", _said(response), usage)
    if not isinstance(reply, str) or not reply.strip():
        return Verdict("invalid", "no text in the answer", _said(response), usage)
    try:
        read_reply(reply, asked, question)
    except BadReply as error:
        cut = choice.get("finish_reason") == "length"
        reason = "cut off at the limit of tokens" if cut else str(error)
        return Verdict("invalid", reason, reply, usage)
    return Verdict("ok", "", reply, usage)


def _first(value: Any) -> dict[str, Any] | None:
    return value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else None


def _usage(value: Any) -> dict[str, int]:
    given = value.get("usage") if isinstance(value, dict) else None
    names = ("prompt_tokens", "completion_tokens")
    counts = {name: given.get(name) for name in names} if isinstance(given, dict) else {}
    return {
        name: count for name, count in counts.items() if type(count) is int and 0 <= count < 2**53
    }


def _said(response: Response) -> str:
    return response.body.decode("utf-8", "replace")


def _error(response: Response) -> Any:
    value = response.json()
    return value.get("error") if isinstance(value, dict) else None


def _code(response: Response) -> str:
    error = _error(response)
    return str(error.get("code")) if isinstance(error, dict) else ""


def _is_filtered(response: Response) -> bool:
    """Whether a content filter speaks, which some have with 403, as others a key that is revoked."""
    error = _error(response)
    about = error.get("metadata") if isinstance(error, dict) else None  # OpenRouter's has no code
    flagged = isinstance(about, dict) and "flagged_input" in about
    return flagged or _code(response) in _FILTERS


def _message(response: Response) -> str:
    """What the server says about its status, with a colon in front; or nothing."""
    if 300 <= response.status < 400:
        return f", a redirect to {response.headers.get('location', 'nowhere')}"
    error = _error(response)
    said = error.get("message") if isinstance(error, dict) else error
    return f": {said}" if isinstance(said, str) and said else ""


def _remedy(response: Response) -> str:
    if response.status in (401, 402, 403):
        return "; look at the key (--key-env) and the account"
    if response.status == 404:
        return "; look at --endpoint (it mostly ends in /v1) and --model"
    return "; redirects are not followed: give the address itself" if response.status < 400 else ""
