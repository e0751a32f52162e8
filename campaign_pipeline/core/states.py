"""The states of messages and parts, and what writes them: the tables behind the documents and the tests."""

from collections.abc import Sequence
from dataclasses import dataclass

from campaign_pipeline.core.model import MessageStatus, PartStatus


@dataclass(frozen=True)
class Transition:
    """One allowed change of a status."""

    before: str
    after: str
    writer: str  # the SQL function or statement that makes it
    when: str


def _each(befores: Sequence[str], after: str, writer: str, when: str) -> tuple[Transition, ...]:
    return tuple(Transition(before, after, writer, when) for before in befores)


_M, _P = MessageStatus, PartStatus
LEASED: tuple[MessageStatus, ...] = (_M.QUEUED, _M.GENERATING, _M.SENDING)
"""The statuses of a message that has a lease."""

MESSAGE: tuple[Transition, ...] = (
    Transition(_M.PENDING, _M.QUEUED, "campaign_claim_messages", "claimed by a batch"),
    Transition(_M.PENDING, _M.QUEUED, "campaign_take_over", "taken over by a shard"),
    Transition(_M.QUEUED, _M.GENERATING, "campaign_start_generating", "model request admitted"),
    *_each((_M.QUEUED, _M.GENERATING), _M.SENDING, "campaign_begin_parts", "attempt committed"),
    Transition(_M.GENERATING, _M.QUEUED, "campaign_begin_parts", "text kept, waits for its planned time"),
    Transition(_M.SENDING, _M.SENT, "campaign_settle", "last part accepted"),
    *_each(LEASED, _M.PENDING, "campaign_settle", "given back, or retried later"),
    *_each(LEASED, _M.FAILED, "campaign_settle", "refused, retries exhausted, or outcome unknown"),
    *_each(LEASED, _M.SKIPPED, "campaign_settle", "not to be sent"),
    *_each(LEASED, _M.PENDING, "campaign_recover_leases", "lease expired"),
    *_each((_M.GENERATING, _M.SENDING), _M.FAILED, "campaign_recover_leases", "its workers died"),
    Transition(_M.QUEUED, _M.SKIPPED, "skip_refused_messages", "lead suppressed, or of another workspace"),
    Transition(_M.PENDING, _M.SKIPPED, "expire_old_messages", "too old"),
    Transition(_M.PENDING, _M.SKIPPED, "settle_cancelled_runs", "run cancelled"),
    Transition(_M.PENDING, _M.FAILED, "settle_cancelled_runs", "run cancelled, a part begun"),
    Transition(_M.PENDING, _M.QUEUED, "campaign_keep_texts", "text written ahead"),
    Transition(_M.QUEUED, _M.PENDING, "campaign_keep_texts", "text written ahead"),
    Transition(_M.PENDING, _M.SKIPPED, "campaign_decide_reviews", "text rejected"),
    Transition(_M.FAILED, _M.PENDING, "campaign_requeue_failed", "back-fill"),
    *_each(
        (_M.PENDING, _M.QUEUED, _M.GENERATING, _M.FAILED, _M.SKIPPED),
        _M.SENT,
        "campaign_settle",
        "late answer: sent",
    ),
    Transition(_M.SKIPPED, _M.FAILED, "campaign_settle", "late answer: sent in part"),
    *_each((_M.PENDING, *LEASED), _M.SKIPPED, "campaign_stop_after_reply", "lead replied"),
    Transition(_M.PENDING, _M.FAILED, "campaign_apply_status_events", "receipt reports a refusal"),
    Transition(_M.QUEUED, _M.PENDING, "campaign_hold_contacted", "number was contacted lately"),
    Transition(_M.QUEUED, _M.SKIPPED, "campaign_hold_contacted", "run already wrote to the number"),
    *_each((_M.PENDING, *LEASED), _M.SKIPPED, "campaign_erase_lead", "lead erased"),
    *_each((_M.PENDING, *LEASED), _M.FAILED, "campaign_erase_lead", "lead erased, a part begun"),
    *_each(LEASED, _M.SENT, "campaign_settle_old_processor", "sent by the CRM's processor"),
    *_each(LEASED, _M.PENDING, "campaign_settle_old_processor", "left by the CRM's processor"),
    *_each(LEASED, _M.FAILED, "campaign_settle_old_processor", "left by the CRM's processor, outcome unknown"),
    *_each((_M.QUEUED, _M.GENERATING), _M.PENDING, "give_back_unbegun", "pipeline detached"),
    *_each((_M.PENDING, _M.SKIPPED), _M.FAILED, "campaign_leave_to_crm", "pipeline detached, a part begun"),
    *_each((_M.PENDING, _M.QUEUED), _M.SKIPPED, "the CRM", "run paused by the CRM"),
    Transition(_M.SKIPPED, _M.PENDING, "the CRM", "run resumed by the CRM"),
    Transition(_M.SKIPPED, _M.PENDING, "set_run_status", "run resumed after the CRM's pause"),
    *_each((_M.PENDING, _M.QUEUED, _M.GENERATING), _M.SKIPPED, "the CRM", "run cancelled by the CRM"),
    Transition(_M.SENT, _M.REPLIED, "the CRM", "lead replied"),
    Transition(_M.SENT, _M.REPLIED, "campaign_take_incoming", "lead replied"),
)
"""Every change of campaign_messages.status."""

PART: tuple[Transition, ...] = (
    Transition(_P.PLANNED, _P.ATTEMPTING, "campaign_begin_parts", "attempt committed"),
    Transition(_P.ATTEMPTING, _P.SENT, "campaign_settle", "accepted"),
    Transition(_P.ATTEMPTING, _P.PLANNED, "campaign_settle", "certainly not sent"),
    Transition(_P.ATTEMPTING, _P.FAILED, "campaign_settle", "refused permanently"),
    Transition(_P.ATTEMPTING, _P.UNKNOWN, "campaign_settle", "no answer"),
    Transition(_P.ATTEMPTING, _P.UNKNOWN, "campaign_recover_leases", "worker died"),
    Transition(_P.ATTEMPTING, _P.UNKNOWN, "campaign_end_leases", "worker died"),
    Transition(_P.ATTEMPTING, _P.UNKNOWN, "campaign_settle_deleted", "message deleted"),
    Transition(_P.ATTEMPTING, _P.UNKNOWN, "campaign_erase_lead", "lead erased"),
    Transition(_P.UNKNOWN, _P.SENT, "campaign_settle", "found by look-up"),
    Transition(_P.UNKNOWN, _P.FAILED, "campaign_apply_status_events", "receipt reports a refusal"),
    Transition(_P.UNKNOWN, _P.PLANNED, "campaign_settle", "absence proven, or resend approved"),
    Transition(_P.FAILED, _P.PLANNED, "campaign_requeue_failed", "back-fill"),
    *_each((_P.PLANNED, _P.FAILED), _P.SENT, "campaign_settle", "late answer: sent"),
)
"""Every change of campaign_message_parts.status."""


def diagram(transitions: Sequence[Transition]) -> str:
    """A Mermaid state diagram: one arrow for each pair of states, labelled with all its causes."""
    first, ends = transitions[0].before, {t.after for t in transitions} - {t.before for t in transitions}
    labels: dict[tuple[str, str], list[str]] = {}
    for transition in transitions:
        known = labels.setdefault((str(transition.before), str(transition.after)), [])
        if transition.when not in known:
            known.append(transition.when)
    arrows = [f"    {before} --> {after}: {' / '.join(whens)}" for (before, after), whens in labels.items()]
    return "\n".join(
        ["stateDiagram-v2", f"    [*] --> {first}", *arrows, *(f"    {end} --> [*]" for end in sorted(ends))]
    )


def writers(transitions: Sequence[Transition]) -> str:
    """A Markdown table: each writer with the statuses that it writes, and when."""
    whens: dict[str, dict[str, list[str]]] = {}
    for transition in transitions:
        known = whens.setdefault(transition.writer, {}).setdefault(str(transition.after), [])
        if transition.when not in known:
            known.append(transition.when)
    lines = []
    for writer, statuses in whens.items():
        written = "; ".join(f"**{after}**: {' / '.join(reasons)}" for after, reasons in statuses.items())
        lines.append(f"| `{writer}` | {written} |")
    return "\n".join(["| Writer | Writes |", "|---|---|", *lines])
