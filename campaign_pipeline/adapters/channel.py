"""A message channel over HTTP: the common part of the adapters.

An adapter adds its table of answers, its requests, and the reading of its bodies. This module makes the requests, and
handles timeouts, lost answers and the classification of responses.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

import httpx

from campaign_pipeline.adapters.answers import NO_CONTENTS, Contents, Row, known, no_answer, unrecognised
from campaign_pipeline.adapters.http import MAX_ANSWER_BYTES, Answer, NoAnswer, at, get, post
from campaign_pipeline.core.ports import (
    Attempt,
    ChannelTraits,
    Envelope,
    Failure,
    LookUpAnswer,
    LookUpFailed,
    NotReady,
    NumberCheck,
    NumberNotChecked,
    Outcome,
    Permanent,
    Sent,
    Systemic,
    Throttled,
    Unknown,
)

STATE_SECONDS, QUESTION_SECONDS = 10.0, 15.0
"""Timeouts of queries: for the state of a connection, and for everything else."""

MOST_PAGES = 20
"""Pages of one search that are read at most."""

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A provider's request for one part."""

    path: str  # after the base URL
    body: Mapping[str, Any]
    delay_seconds: float = 0.0  # that the server waits before it answers; extends the timeout


@dataclass(frozen=True)
class Page:
    """One page of a search."""

    records: list[Any]
    last: bool


class HttpChannel(ABC):
    """One inbox of a provider over HTTP; see `core.ports.MessageChannel`.

    Subclasses define what is above `__init__`.
    """

    provider: ClassVar[str]  # its name, as the subject of a sentence
    traits: ClassVar[ChannelTraits]
    answers: ClassVar[Sequence[Row]]  # to a send
    success: ClassVar[frozenset[int]] = frozenset({200})  # HTTP statuses

    state_field: ClassVar[tuple[str, ...]] = ()  # path to the state in the answer about the connection
    states: ClassVar[Mapping[str, Failure | NotReady]] = {}  # in which nothing can be sent
    state_answers: ClassVar[Sequence[Row]] = ()  # to the state query, if they concern sending too

    @abstractmethod
    def request(self, envelope: Envelope) -> Request | Permanent:
        """Build the request for one part; Permanent if it cannot be put into a request."""

    @classmethod
    @abstractmethod
    def accepted(cls, body: Any) -> Sent | None:
        """Read a success; None if it has no message id."""

    @classmethod
    def contents(cls, answer: Answer, envelope: Envelope | None) -> Contents:
        """Read from a failure what the table needs."""
        return NO_CONTENTS

    @abstractmethod
    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """See `core.ports.MessageChannel`."""

    def __init__(
        self,
        client: httpx.AsyncBaseTransport,
        base_url: str,
        headers: Mapping[str, str],
        send_timeout: float,
        state_path: str = "",
    ) -> None:
        """`headers` contain the key; `send_timeout` is in seconds."""
        self._client = client
        self._base = base_url.rstrip("/")
        self._headers = headers
        self._send_timeout = send_timeout
        self._state_path = state_path

    async def send(self, envelope: Envelope) -> Outcome:
        """Send one part, once."""
        request = self.request(envelope)
        if isinstance(request, Permanent):
            return request
        url, timeout = self._base + request.path, request.delay_seconds + self._send_timeout
        answer = await post(self._client, url, request.body, self._headers, timeout, may_leave=envelope.may_leave)
        return self.read_send(answer, envelope)

    @classmethod
    def read_send(cls, answer: Answer | NoAnswer, envelope: Envelope | None = None) -> Outcome:
        """Classify the answer to a send of `envelope`. The envelope's own texts, if repeated, decide nothing."""
        if isinstance(answer, NoAnswer):
            return no_answer(answer)
        if cls.succeeded(answer):
            # A truncated answer, or an error in a success: it may or may not have been sent.
            reason = f"{cls.provider} reported success without a message id."
            return cls.accepted(answer.body) or Unknown("no_id", reason)
        return cls.refused(answer, envelope) or unrecognised(cls.provider, answer)

    @classmethod
    def succeeded(cls, answer: Answer) -> bool:
        """Return whether an answer reports success."""
        return answer.status in cls.success

    @classmethod
    def refused(cls, answer: Answer, envelope: Envelope | None = None) -> Outcome | None:
        """Return the outcome of a failure by the table; None if no row matches."""
        return known(cls.answers, answer, cls.contents(answer, envelope))

    async def check_connection(self) -> Failure | NotReady | None:
        """Query the state of the inbox. If the answer is unclear, nothing is held back: sending will tell."""
        answer = await get(self._client, self._base + self._state_path, self._headers, STATE_SECONDS)
        if isinstance(answer, NoAnswer):
            return None
        if answer.status in self.success:
            state = at(answer.body, *self.state_field)
            return self.states.get(state) if isinstance(state, str) else None
        refusal = self.state_refused(answer)
        return refusal if isinstance(refusal, Systemic | Throttled) else None

    @classmethod
    def state_refused(cls, answer: Answer) -> Outcome | None:
        """Return what a failed state query means for sending."""
        return known(cls.state_answers, answer)

    async def check_number(self, number: str) -> NumberCheck:
        """Answer NumberNotChecked: the default for providers without number checks."""
        return NumberNotChecked(f"{self.provider} cannot be asked whether a number is on WhatsApp.")

    async def ask(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[Any], T | None],
        question: str,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> T | LookUpFailed:
        """Return what `read` finds in the answer; LookUpFailed if no answer came, or `read` finds nothing in it."""
        answer = await post(self._client, self._base + path, body, self._headers, QUESTION_SECONDS, max_bytes)
        if isinstance(answer, NoAnswer):
            return LookUpFailed(answer.reason)
        found = read(answer.body) if answer.status in self.success else None
        return LookUpFailed(f"{self.provider} answered {answer.status} to {question}.") if found is None else found

    async def search(
        self,
        path: str,
        body: Callable[[int], Mapping[str, Any]],
        read: Callable[[int, Any], Page | None],
        is_it: Callable[[Any], bool],
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Any | LookUpFailed | None:
        """Return the first matching record, page by page; None if there is none.

        `body` and `read` get the number of the page, from 1.
        """
        for number in range(1, MOST_PAGES + 1):
            page = await self.ask(path, body(number), partial(read, number), "a search", max_bytes)
            if isinstance(page, LookUpFailed):
                return page
            found = next(filter(is_it, page.records), None)
            if found is not None or page.last or not page.records:
                return found
        return LookUpFailed(f"A search found more than {MOST_PAGES} pages of messages, too many to look through.")
