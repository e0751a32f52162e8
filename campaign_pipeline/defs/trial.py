"""Texts before they are sent: previews of waiting messages, test sends, and reviews."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from campaign_pipeline.adapters.environment import DeliverySettings
from campaign_pipeline.adapters.queue import Queue
from campaign_pipeline.adapters.reviews import Decision, NextMessage, Reviews, RunToReview
from campaign_pipeline.core.context import LeadContext
from campaign_pipeline.core.model import BatchSettings, Lead, LeasedMessage, Shard
from campaign_pipeline.core.overview import mask
from campaign_pipeline.core.personal_data import HIDDEN, personal_values, without_values
from campaign_pipeline.core.ports import Scope
from campaign_pipeline.core.shard_worker import ShardWorker
from campaign_pipeline.core.trial import NoHeartbeat, SilentChannel, TrialStore, TrialText, at_any_time
from campaign_pipeline.defs.resources import ProvidersResource, delivery_policy
from campaign_pipeline.defs.shard import ProcessClock, lead_of, run_async

TRIAL_SECONDS = 24 * 3600.0
"""A trial holds nothing that could be lost, so it may take long."""

AT_ONCE = 5
"""Texts that a trial generates at the same time."""

MOST_WRITTEN = 20
"""Texts that a review generates at a time, by default."""

MADE_UP = LeadContext("Maria de Souza", "Padaria Exemplo", custom_fields=(("Cidade/UF", "Santos/SP"),))
"""The default recipient of a test send."""


class TrialFailed(Exception):
    """The trial could not be made; the message is one sentence."""


@dataclass(frozen=True)
class Preview:
    """A message as it would be sent."""

    message_id: str
    lead: str  # its name
    planned_at: datetime | None
    written: TrialText
    kept: bool  # it is stored, and will be sent as it is
    hidden: Mapping[str, Any]  # subject and parts without the lead's data

    def row(self, *, personal: bool) -> dict[str, Any]:
        """Return the row that a command or a table shows."""
        text = self.written
        shown = {"subject": text.subject, "parts": text.parts} if personal else self.hidden
        return {
            "message_id": self.message_id,
            "lead": self.lead if personal else mask({"lead": self.lead})["lead"],
            "planned_at": self.planned_at,
            **shown,
            "model": text.model,
            "tokens": text.tokens,
            "cost_usd": text.cost_usd,
            "kept": self.kept,
            "warnings": [*text.warnings, *([text.why] if text.why and text.status != "sent" else [])],
        }


def preview(url: str, run: str, count: int, *, keep: bool, unwritten: bool = False) -> list[Preview]:
    """Write the texts of a run's next messages with the real prompt and model; nothing is sent.

    `keep` stores the texts, to be sent later. `unwritten`: only messages without a text. Raises TrialFailed.
    """
    return run_async(_preview(url, run, count, keep=keep, unwritten=unwritten))


async def _preview(url: str, name: str, count: int, *, keep: bool, unwritten: bool) -> list[Preview]:
    reviews = Reviews(url)
    run = await _run(reviews, name)
    found = await reviews.next_messages(run.id, count, unwritten=unwritten)
    if not found:
        return []
    texts, leads = await _write(url, [each.message for each in found], found[0].now)
    kept: set[str] = set()
    if keep:
        new = [text.begin for text in texts.values() if text.begin is not None and text.status == "sent"]
        kept = await reviews.keep(new, found[0].message.inbox_id)
    await reviews.note_costs({t.message_id: t.cost_usd for t in texts.values() if t.message_id not in kept})
    return [_shown(each, texts[each.message.id], leads, kept) for each in found]


def _shown(each: NextMessage, text: TrialText, leads: Mapping[str, Lead], kept: set[str]) -> Preview:
    message = each.message
    values = personal_values(message, leads.get(message.lead_id or ""))
    hidden = without_values({"subject": text.subject, "parts": text.parts}, values)
    has_text = message.text is not None
    return Preview(message.id, each.lead or "", each.planned_at, text, message.id in kept or has_text, hidden)


@dataclass(frozen=True)
class TextsToReview:
    """The texts of a run that wait for review."""

    run: str
    rows: list[dict[str, Any]]  # of the statement list_reviews, with `masked_text`


def texts_to_review(url: str, run: str, write: int | None = None, most: int = 100) -> TextsToReview:
    """Return the texts of a run that wait for review, after writing missing ones.

    `write`: how many to write at most; None: as many as the review needs, at most MOST_WRITTEN. Raises TrialFailed.
    """
    return run_async(_texts_to_review(url, run, write, most))


async def _texts_to_review(url: str, name: str, write: int | None, most: int) -> TextsToReview:
    reviews = Reviews(url)
    run = await _run(reviews, name)
    if run.review == "none":
        raise TrialFailed(f"The campaign of {run.name} asks for no review (review: none in its campaign file).")
    waiting = await reviews.waiting(run.id, most)
    if write is None:
        wanted = MOST_WRITTEN if run.review_first is None else run.review_first - await reviews.decided(run.id)
        write = max(0, min(MOST_WRITTEN, wanted - len(waiting)))
    if write:
        await _preview(url, name, write, keep=True, unwritten=True)
        waiting = await reviews.waiting(run.id, most)
    found = await reviews.next_messages(run.id, most)
    leads = await _leads(Queue(url), [each.message for each in found])
    messages = {each.message.id: each.message for each in found}
    for row in waiting:
        row["id"] = str(row["id"])
        row["masked_text"] = _masked(messages.get(row["id"]), leads, row["text"])
    return TextsToReview(run.name, waiting)


def _masked(message: LeasedMessage | None, leads: Mapping[str, Lead], text: str) -> str:
    if message is None:
        return HIDDEN
    values = personal_values(message, leads.get(message.lead_id or ""))
    return str(without_values({"text": text}, values)["text"])


def decide(url: str, run: str, decisions: Sequence[Decision], by: str) -> set[str]:
    """Record a person's decisions on a run's texts; return the messages for which they came in time.

    An edited text is checked first, like every text before it is sent. If a check fails, nothing is recorded. Raises
    TrialFailed with the failed check.
    """
    return run_async(_decide(url, run, decisions, by))


async def _decide(url: str, name: str, decisions: Sequence[Decision], by: str) -> set[str]:
    reviews = Reviews(url)
    run = await _run(reviews, name)
    found = {each.message.id: each for each in await reviews.next_messages(run.id, 100_000)}
    checked = [await _checked(url, each, found.get(each.message_id)) for each in decisions]
    return await reviews.decide([each for each in checked if each.message_id in found], by)


async def _checked(url: str, decision: Decision, found: NextMessage | None) -> Decision:
    """Return the decision with its text as it will be sent. Raises TrialFailed."""
    if decision.text is None or found is None:
        return decision
    edited = replace(found.message, text=decision.text, parts=(), subject=decision.subject or found.message.subject)
    texts, _ = await _write(url, [edited], found.now)
    text = texts[edited.id]
    if text.status != "sent" or text.begin is None:
        raise TrialFailed(f"The text for {decision.message_id} cannot be sent: {text.why}")
    return replace(decision, text=text.begin.text)


async def _run(reviews: Reviews, name: str) -> RunToReview:
    run = await reviews.find_run(name)
    if run is None:
        raise TrialFailed(f"There is no running or paused run of the name or id {name!r}, nor of a campaign named so.")
    return run


def send_test(url: str, campaign: Mapping[str, Any], to: str, lead_id: UUID | None) -> TrialText:
    """Send one text of a campaign to oneself, through the real path but outside queue and counters.

    It is written for a lead of the workspace, or for a sample lead; it does not affect counters, pace or the CRM's
    chats. Raises TrialFailed.
    """
    return run_async(_send_test(url, campaign, to, lead_id))


async def _send_test(url: str, campaign: Mapping[str, Any], to: str, lead_id: UUID | None) -> TrialText:
    message = LeasedMessage(
        id=str(uuid4()),
        run_id=str(uuid4()),
        config_id=str(campaign["id"]),
        workspace_id=str(campaign["workspace_id"]),
        inbox_id=str(campaign["inbox_id"]),
        lead_id=str(lead_id or uuid4()),
        phone_number=to,
        text=None,
        retry_count=0,
        parts=(),
    )
    texts, _ = await _write(url, [message], campaign["now"], to=to, made_up=lead_id is None)
    return texts[message.id]


async def _write(
    url: str, messages: Sequence[LeasedMessage], now: datetime, to: str | None = None, *, made_up: bool = False
) -> tuple[dict[str, TrialText], dict[str, Lead]]:
    """Deliver some messages of one campaign in a trial; with `to`, actually send them to that address."""
    first, queue, clock = messages[0], Queue(url), ProcessClock()
    settings = await queue.get_batch_settings([first.config_id], [first.workspace_id], [first.inbox_id])
    leads = {} if made_up else await _leads(queue, messages)
    if to is not None:
        known = leads.get(first.lead_id or "", Lead(first.lead_id or "", to, MADE_UP))
        if not made_up and not leads:
            raise TrialFailed(f"There is no lead {first.lead_id} in the campaign's workspace.")
        leads = {first.lead_id or "": replace(known, phone=to, email=to, other_phones=())}
    connection = await queue.get_inbox_connection(first.inbox_id)
    pauses = [each for each in await Reviews(url).pauses() if to is not None or each.scope is not Scope.INBOX]
    store = TrialStore(messages, pauses)
    policy = replace(
        delivery_policy(DeliverySettings.from_environment()), lease_seconds=TRIAL_SECONDS, number_check_days=0.0
    )
    async with ProvidersResource().open(connection, AT_ONCE) as outside:
        if (hours := outside.channel.traits.free_text_hours) is not None:
            messages = await Reviews(url).with_last_inbound(messages, hours)
        worker = ShardWorker(
            shard=Shard("trial", first.inbox_id, str(uuid4()), tuple(message.id for message in messages)),
            messages=messages,
            started_at=now,
            settings=at_any_time(BatchSettings.from_json(settings)),
            leads=leads,
            store=store,
            model=outside.model,
            channel=outside.channel if to is not None else SilentChannel(outside.channel),
            channel_kind=outside.channel_kind,
            heartbeat=NoHeartbeat(),
            clock=clock,
            policy=policy,
        )
        await worker.run(AT_ONCE)
    return store.texts, leads


async def _leads(queue: Queue, messages: Sequence[LeasedMessage]) -> dict[str, Lead]:
    wanted = {message.lead_id: message.workspace_id for message in messages if message.lead_id is not None}
    rows = await queue.get_lead_contexts(list(wanted), list(wanted.values()))
    return {str(row["lead_id"]): lead_of({**row, "lead_id": str(row["lead_id"])}) for row in rows}
