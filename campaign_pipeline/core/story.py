"""A message's history for the operator: what happened, why, and what to do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID

from campaign_pipeline.core.next_steps import next_step, step_of_wait
from campaign_pipeline.core.overview import mask
from campaign_pipeline.core.ports import Verdict
from campaign_pipeline.core.runs import RunWait
from campaign_pipeline.core.states import LEASED


@dataclass(frozen=True)
class ToldMessage:
    """A message with everything that decides its status: a row of `story_of_message`."""

    message_id: UUID
    status: str
    run_id: UUID
    run: str
    run_status: str
    workspace: str | None
    inbox_id: UUID | None
    inbox: str | None
    lead_id: UUID | None
    lead: str | None
    address: str | None
    subject: str | None
    text: str | None
    model: str | None
    tokens: int | None
    cost_usd: Decimal | None
    created_at: datetime | None
    queued_at: datetime | None
    sent_at: datetime | None
    replied_at: datetime | None
    finished_at: datetime | None
    due_at: datetime | None  # None: never
    retry_count: int
    requeued_at: datetime | None
    error_class: str | None
    error_code: str | None
    reason: str | None
    lease_owner: str | None  # also the last one of a message that is not leased
    lease_expires_at: datetime | None  # None: not leased
    worker_deaths: int
    suppressed: bool
    now: datetime


@dataclass(frozen=True)
class ToldPart:
    """A part with its last attempt: a row of `story_of_parts`."""

    part_no: int
    status: str
    text: str
    attempts: int
    attempted_at: datetime | None
    sent_at: datetime | None
    duration_ms: int | None
    address: str | None
    inbox: str | None
    provider_message_id: str | None
    error_class: str | None
    error_code: str | None
    answer: str | None
    provider_response: Any  # verbatim
    looked_up_at: datetime | None
    resend_approved_at: datetime | None
    delivery_status: str | None  # by the provider's receipts
    delivery_code: str | None
    delivery_at: datetime | None
    history: Sequence[Mapping[str, Any]] | None  # earlier attempts that did not end as sent, and look-ups


@dataclass(frozen=True)
class ToldLine:
    """A line of the campaign's log about the message: a row of `story_of_log`."""

    at: datetime
    step: str | None
    level: str | None
    message: str | None


@dataclass(frozen=True)
class RuledText:
    """A text that a rule refused or changed: a row of `story_of_model_calls`."""

    at: datetime
    purpose: str
    model: str | None
    rule: str | None  # that refused it
    changed: Sequence[str]  # rules that changed it
    cost_usd: Decimal | None
    answer: str | None


@dataclass(frozen=True)
class Story:
    """One message: its fields, its history, the reason for its status, and the next step."""

    message: ToldMessage
    parts: Sequence[ToldPart]
    log: Sequence[ToldLine]
    model_calls: Sequence[RuledText]
    wait: RunWait | None  # why its run waits
    zone: tzinfo  # of the operator's times

    @property
    def summary(self) -> str:
        """Say what happened to it, in one or two sentences."""
        m = self.message
        match m.status:
            case "sent":
                through = m.inbox or "an inbox that is gone"
                return f"Sent at {self._at(m.sent_at)} through {through}.{self._delivery()}"
            case "replied":
                return f"Sent at {self._at(m.sent_at)}, and the lead replied at {self._at(m.replied_at)}."
            case "failed" if m.error_class == "unknown":
                return f"Failed at {self._at(m.finished_at)}; it may have been sent. {_sentence(m.reason)}"
            case "failed" | "skipped" as status:
                out = sum(part.status == "sent" for part in self.parts)
                begun = f" {out} of its {len(self.parts)} parts had been sent before." if out else ""
                return f"{status.capitalize()} at {self._at(m.finished_at)}. {_sentence(m.reason)}{begun}"
            case status if status in LEASED:
                return (
                    f"In progress ({status}): leased by {m.lease_owner or 'an unknown worker'} "
                    f"until {self._at(m.lease_expires_at)}, unless the lease is renewed."
                )
        return self._waiting()

    def _waiting(self) -> str:
        m = self.message
        if m.run_status != "running":
            return f"Waits: its run {m.run} is {m.run_status}."
        if self.wait is not None:
            coming = self.wait.until is not None and self.wait.until > m.now
            until = f" (until {self._at(self.wait.until)})" if coming else ""
            return f"Waits with its whole run: {_sentence(self.wait.reason)}{until}"
        if m.due_at is None:
            return "Waits without a due time."
        if m.error_code == Verdict.AWAITING_REVIEW:
            return "Waits for a person to approve its text, or the first texts of its run."
        if m.due_at > m.now:
            why = f" {_sentence(m.reason)}" if m.reason else ""
            return f"Waits until it is due at {self._at(m.due_at)}.{why}"
        return f"Due since {self._at(m.due_at)}: the next batch claims it."

    def _delivery(self) -> str:
        failed = next((part for part in self.parts if part.delivery_status == "failed"), None)
        if failed:
            return f" The provider later reported that part {failed.part_no} was not delivered."
        stages = {part.delivery_status for part in self.parts}
        if stages == {"read"}:
            return " It was read."
        return " It was delivered." if stages and stages <= {"read", "delivered"} else ""

    @property
    def next_step(self) -> str:
        """Say what to do."""
        m = self.message
        command = f"campaign-pipeline retry {m.message_id}"
        if m.suppressed and m.status not in {"sent", "replied"}:
            return "Nothing: the lead or its address is suppressed. See `campaign-pipeline consent list`."
        match m.status:
            case "sent" | "replied":
                return "Nothing to do."
            case "failed" if m.error_class == "unknown":
                return (
                    "Look at the chat. If nothing arrived, "
                    f"`{command} --resend-unknown` sends it again; a part that did arrive would arrive twice."
                )
            case "failed":
                step = next_step("failed", m.error_class or "", m.error_code or "")
                return _sentence(step) + ("" if step.startswith("nothing") else f" To send it again: `{command}`.")
            case "skipped":
                return _sentence(next_step("skipped", m.error_class or "", m.error_code or ""))
        if m.run_status == "paused":
            return f"`campaign-pipeline resume {m.run_id}` resumes its run."
        if self.wait is not None:
            return _sentence(step_of_wait(self.wait.code))
        if m.due_at is not None and m.due_at > m.now and m.error_code:
            return _sentence(next_step("returned", m.error_class or "", m.error_code))
        return "Nothing to do: it continues automatically."

    def _at(self, instant: datetime | None) -> str:
        return f"{instant.astimezone(self.zone):%Y-%m-%d %H:%M:%S}" if instant else "an unknown time"

    def attempts(self) -> list[dict[str, Any]]:
        """Return all attempts to send a part, and all look-ups, by time."""
        return sorted((attempt for part in self.parts for attempt in _attempts(part)), key=lambda each: each["at"])

    def to_dict(self, *, personal: bool) -> dict[str, Any]:
        """Return everything, for `--json` and for an output."""

        def shown(row: dict[str, Any]) -> dict[str, Any]:
            return row if personal else mask(row)

        calls = [
            {("answer_of_model" if name == "answer" else name): value for name, value in asdict(call).items()}
            for call in self.model_calls
        ]
        parts = [{name: value for name, value in asdict(part).items() if name != "history"} for part in self.parts]
        return {
            **shown(asdict(self.message)),
            "summary": self.summary,
            "next_step": self.next_step,
            "waits_because": None if self.wait is None else self.wait.reason,
            "parts": [shown(part) for part in parts],
            "attempts": self.attempts(),
            "model_calls": [shown(call) for call in calls],
            "log": [asdict(line) for line in self.log],
        }


def _attempts(part: ToldPart) -> Iterator[dict[str, Any]]:
    history = part.history or []
    for entry in history:
        at = entry["at"] if entry["looked_up"] else entry["started"] or entry["at"]
        yield {
            "at": datetime.fromisoformat(at),
            "part_no": part.part_no,
            "what": "looked up" if entry["looked_up"] else "sent",
            "inbox": part.inbox,
            "outcome": _OUTCOMES.get(entry["outcome"], entry["outcome"]),
            "code": entry["code"],
            "answer": entry["reason"],
        }
    in_flight = part.status == "attempting"
    if in_flight or (part.status == "sent" and all(entry["outcome"] != "sent" for entry in history)):
        yield {
            "at": part.attempted_at or part.sent_at,
            "part_no": part.part_no,
            "what": "sent",
            "inbox": part.inbox,
            "outcome": "no answer yet" if in_flight else "accepted",
            "code": None,
            "answer": None if in_flight else part.provider_message_id,
        }


_OUTCOMES = {"planned": "not sent", "sent": "accepted", "failed": "refused"}
"""The outcome of an attempt, by the part's state."""


def _sentence(text: str | None) -> str:
    text = (text or "").strip()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
