"""The operator's reads and changes, behind the command line and the jobs in the UI.

Ids may be given as a unique prefix; runs, inboxes and workspaces also by name.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from typing import Any
from uuid import UUID

from campaign_pipeline.adapters.operations import FailedMessages, Operations, requeue
from campaign_pipeline.core.claim_budget import CODES as PACE_CODES
from campaign_pipeline.core.forecast import HORIZON_HOURS, Forecast, RunPlan, forecast
from campaign_pipeline.core.overview import (
    CampaignPace,
    ClaimedShare,
    FoundLead,
    FoundMessage,
    InboxOverview,
    PauseOverview,
    RunOverview,
)
from campaign_pipeline.core.runs import (
    CONNECTING,
    SLOWED_DOWN,
    WINDOW_CLOSED,
    RunState,
    judge_run,
)
from campaign_pipeline.core.story import RuledText, Story, ToldLine, ToldMessage, ToldPart
from campaign_pipeline.core.window import InvalidWindow, SendingWindow

_FEWEST_DIGITS = 4
"""Of a searched phone number."""

_COMPARED_DIGITS = 8
"""Of a phone number, from its end: independent of country code, area code and ninth digit."""

_PASSING_WAITS = {WINDOW_CLOSED, SLOWED_DOWN, CONNECTING, *PACE_CODES}


class OperatorError(ValueError):
    """The object was not found, or the action is impossible; the message is one sentence."""


@dataclass(frozen=True)
class Named:
    """An object that was found by an id, a prefix or a name."""

    id: UUID
    name: str


@dataclass(frozen=True)
class Done:
    """What an action changed, and how to undo it."""

    changed: bool
    text: str
    undo: str = ""

    @property
    def sentences(self) -> str:
        """Return the whole report for a person."""
        return f"{self.text} {self.undo}".strip()


class Operator(Operations):
    """One connection for one command. A context manager; raises StoreUnavailable if the database is unavailable."""

    # Finding --------------------------------------------------------------------------------------------------------

    def find(self, kind: str, text: str) -> Named:
        """Return the matching run, message, inbox or workspace. Raises OperatorError if there is none, or several."""
        low, high = _bounds(text)
        rows = self._all("find_by_prefix", kind=kind, low=low, high=high, called=text)
        if not rows:
            named = "" if kind == "message" else ", or a name"
            raise OperatorError(f"There is no {kind} {text!r}: give an id or the beginning of one{named}.")
        if len(rows) > 1:
            several = ", ".join(f"{row['name'] or 'unnamed'} ({row['id']})" for row in rows)
            raise OperatorError(f"{text!r} matches more than one {kind}: {several}. Give more of the id.")
        return Named(rows[0]["id"], rows[0]["name"] or str(rows[0]["id"])[:8])

    def find_leads(self, text: str, shown: int = 50) -> list[FoundLead]:
        """Find leads by an id, its beginning, or a part of their name or company."""
        low, high = _bounds(text)
        return self._records(FoundLead, "find_leads", low=low, high=high, called=text, shown=shown)

    # Looking --------------------------------------------------------------------------------------------------------

    def states(self, max_age: timedelta) -> dict[UUID, RunState]:
        """Return every running run with its current state."""
        now, pauses = self.now(), self._open_pauses()
        states = (judge_run(run, pauses, max_age) for run in self._running_runs())
        return {state.run_id: state.with_noted_pace_wait(now) for state in states}

    def runs(
        self, max_age: timedelta, statuses: Sequence[str] | None = None, run_id: UUID | None = None, shown: int = 20
    ) -> list[RunOverview]:
        """List campaign runs: progress, pace, why each waits, and when the forecast expects its end."""
        wanted = None if statuses is None else list(statuses)
        runs = self._records(RunOverview, "overview_runs", run_id=run_id, statuses=wanted, shown=shown)
        states = self.states(max_age)
        finished = self.forecast(max_age).finished_at if any(run.run_id in states for run in runs) else {}
        waits = {run_id: state.wait for run_id, state in states.items() if state.wait}
        return [run.at_present(waits.get(run.run_id), finished.get(run.run_id)) for run in runs]

    def progress(self, run_id: UUID) -> RunOverview | None:
        """Return the counts of one run; None if it was deleted."""
        runs = self._records(RunOverview, "overview_runs", run_id=run_id, statuses=None, shown=1)
        return runs[0] if runs else None

    def messages(
        self,
        *,
        run_id: UUID | None = None,
        statuses: Sequence[str] | None = None,
        reason: str | None = None,
        lead_ids: Sequence[UUID] | None = None,
        phone: str | None = None,
        since: datetime | None = None,
        shown: int = 50,
    ) -> list[FoundMessage]:
        """List the messages that match all criteria (`since`: within a day from then), the newest first.

        Raises OperatorError for a number with too few digits.
        """
        digits = None if phone is None else re.sub(r"\D", "", phone)[-_COMPARED_DIGITS:]
        if digits is not None and len(digits) < _FEWEST_DIGITS:
            raise OperatorError(f"The phone number has {len(digits)} digits, but at least its last four are needed.")
        return self._records(
            FoundMessage,
            "find_messages",
            run_id=run_id,
            statuses=list(statuses) if statuses else None,
            reason=reason,
            lead_ids=None if lead_ids is None else list(lead_ids),
            digits=digits,
            since=since,
            until=None if since is None else since + timedelta(days=1),
            shown=shown,
        )

    def story(self, message_id: UUID, max_age: timedelta, zone: tzinfo) -> Story:
        """Return everything about a message, its sentences with times in `zone`. Raises OperatorError if deleted."""
        found = self._records(ToldMessage, "story_of_message", message_id=message_id)
        if not found:
            raise OperatorError(f"There is no message {message_id}.")
        state = self.states(max_age).get(found[0].run_id) if found[0].status == "pending" else None
        return Story(
            message=found[0],
            parts=self._records(ToldPart, "story_of_parts", message_id=message_id),
            log=self._records(ToldLine, "story_of_log", message_id=message_id),
            model_calls=self._records(RuledText, "story_of_model_calls", message_id=message_id),
            wait=state.wait if state else None,
            zone=zone,
        )

    def inboxes(self) -> list[InboxOverview]:
        """List the inboxes of all campaigns: connection, pace, today's counts, warm-up, and why each is paused."""
        pauses = self.pauses()
        return [
            replace(inbox, pauses=[pause.reason for pause in pauses if pause.covers_inbox(inbox.inbox_id)])
            for inbox in self._records(InboxOverview, "overview_inboxes")
        ]

    def pauses(self) -> list[PauseOverview]:
        """List all pauses, automatic and manual."""
        return self._records(PauseOverview, "overview_pauses")

    def forecast(self, max_age: timedelta, hours: int = HORIZON_HOURS) -> Forecast:
        """Forecast what the running runs will send, by inbox and hour."""
        now, pauses = self.now(), self._open_pauses()
        due: dict[UUID, dict[datetime, int]] = {}
        for row in self._all("forecast_due"):
            due.setdefault(row["run_id"], {})[row["hour"]] = row["messages"]
        plans = []
        for run in self._running_runs():
            if run.run_id not in due or run.config_id is None or run.inbox_id is None:
                continue
            state = judge_run(run, pauses, max_age)
            try:
                window = SendingWindow.parse(
                    *(run.start_time, run.end_time, run.timezone),
                    *(run.frequency, run.weekdays, run.holidays),
                )
            except InvalidWindow:
                continue
            plans.append(
                RunPlan(
                    run_id=run.run_id,
                    inbox_id=state.inbox_id or run.inbox_id,
                    config_id=run.config_id,
                    window=window,
                    due=due[run.run_id],
                    held=state.wait is not None and state.wait.code not in _PASSING_WAITS,
                )
            )
        inboxes = {inbox.inbox_id: inbox.limits for inbox in self._records(InboxOverview, "overview_inboxes")}
        paces = self._records(CampaignPace, "forecast_campaigns")
        campaigns = {pace.config_id: limits for pace in paces if (limits := pace.limits)}
        return forecast(now, plans, inboxes, campaigns, hours)

    def describe_claim(self, claimed: Sequence[tuple[UUID, UUID | None]]) -> list[ClaimedShare]:
        """Describe a claim of these messages (with their inboxes) by run and inbox: texts to write, and their cost."""
        ids, inboxes = [message for message, _ in claimed], [inbox for _, inbox in claimed]
        return self._records(ClaimedShare, "describe_claim", ids=ids, inbox_ids=inboxes)

    def due_by_run(self) -> list[tuple[Named, int]]:
        """Return the running runs with due messages, and the number of messages, up to 10,000 each."""
        now = self.now()
        runs = {run.run_id: run.name or "unnamed" for run in self._running_runs()}
        backlog = self.backlog(dict.fromkeys(runs, now))
        return [(Named(run, name), backlog[run].messages) for run, name in runs.items() if run in backlog]

    # Acting ---------------------------------------------------------------------------------------------------------

    def pause_run(self, run: Named, by: str, reason: str | None = None) -> Done:
        """Pause a run: messages in flight are finished, no other begins."""
        why = f": {reason}" if reason else "."
        if self._set_status(run, "pause", "paused", ["running"], by, f"{by} paused the run{why}") is None:
            return self._unchanged(run, "running")
        return Done(
            True,
            f"The run {run.name} is paused. Requests in flight are finished; no further message is started.",
            f"To undo it: campaign-pipeline resume {_short(run)}.",
        )

    def resume_run(self, run: Named, by: str) -> Done:
        """Resume a paused run; messages that became overdue meanwhile are spread over time."""
        if self._set_status(run, "resume", "running", ["paused"], by, f"{by} resumed the run.") is None:
            return self._unchanged(run, "paused")
        return Done(
            True,
            f"The run {run.name} continues with the next batch. Overdue messages are spread over time.",
            f"To undo it: campaign-pipeline pause {_short(run)}.",
        )

    def cancel_run(self, run: Named, by: str, reason: str | None = None) -> Done:
        """Cancel a run for good: waiting messages are skipped; those that may have been sent end as unknown."""
        why = f": {reason}" if reason else "."
        log = f"{by} cancelled the run{why}"
        if self._set_status(run, "cancel", "cancelled", ["running", "paused"], by, log) is None:
            return self._unchanged(run, "running or paused")
        skipped = sum(row["run_id"] == run.id for row in self._all("settle_cancelled_runs"))
        self._all("close_runs")
        return Done(
            True,
            f"The run {run.name} is cancelled. Waiting messages that were skipped: {skipped:,}. Requests in flight "
            "are finished.",
            "It cannot be undone: skipped messages are never sent.",
        )

    def pause(self, scope: str, target: Named | None, by: str, reason: str | None = None) -> Done:
        """Pause an inbox, a workspace, or all (without a target), for claims and for messages in delivery."""
        what, undo, key = _spoken(scope, target)
        sentence = f"{by} paused {what}{f': {reason}' if reason else '.'}"
        (row,) = self._all(
            "pause_by_hand", scope=scope, scope_id=key, reason=_told(sentence, undo), by=by, log=sentence
        )
        if not row["changed"]:
            return Done(False, f"{row['paused_by']} has paused {what} already.", f"To undo it: {undo}.")
        text = f"{what[0].upper()}{what[1:]} is paused. Requests in flight are finished; no further message is started."
        return Done(True, text, f"To undo it: {undo}.")

    def resume(self, scope: str, target: Named | None, by: str) -> Done:
        """End a manual pause."""
        what, _, key = _spoken(scope, target)
        again = f"campaign-pipeline pause {_flag(scope, target)}"
        if not self._all("resume_by_hand", scope=scope, scope_id=key, by=by, log=f"{by} resumed {what}."):
            return Done(False, f"Nobody has paused {what}. To list all pauses: campaign-pipeline pauses.")
        text = f"{what[0].upper()}{what[1:]} continues with the next batch. Overdue messages are spread over time."
        return Done(True, text, f"To undo it: {again}.")

    def lift(self, pause: str, by: str) -> Done:
        """Close the circuit of an automatic pause. Raises OperatorError if there is none, or the pause is manual."""
        found = [each for each in self.pauses() if each.pause.startswith(pause) or each.name == pause]
        if not found:
            raise OperatorError(f"There is no pause {pause!r}; `campaign-pipeline pauses` lists them.")
        if len(found) > 1:
            names = ", ".join(each.pause for each in found)
            raise OperatorError(f"{pause!r} matches more than one pause: {names}. Give more of one.")
        one = found[0]
        if one.paused_by:
            raise OperatorError(f"{one.paused_by} paused this by hand: use `campaign-pipeline resume`.")
        whom = f"{one.scope} {one.name or one.scope_id}"
        self._all("lift_pause", scope=one.scope, scope_id=one.scope_id, by=by, log=f"{by} lifted the pause of {whom}.")
        text = f"The pause of the {whom} ({one.code}) is lifted. The waiting messages continue with the next batch."
        return Done(True, text, "If the cause persists, the next message opens the circuit again.")

    def retry(self, ids: Sequence[UUID], by: str, *, resend_unknown: bool = False) -> Done:
        """Send failed messages again; sent parts stay sent.

        A message of unknown outcome is sent again only with `resend_unknown`. Raises OperatorError if none can be.
        """
        rows = self._all("list_failed_by_id", ids=list(ids))
        left: Counter[str] = Counter()
        wanted = []
        for row in rows:
            if problem := _no_retry(row, resend_unknown=resend_unknown):
                left[problem] += 1
            else:
                wanted.append(row)
        back = requeue(self._all, [row["id"] for row in wanted], resend_unknown=resend_unknown)
        self._log_retry({row["id"]: row["run_id"] for row in wanted if row["id"] in back}, by)
        others = "".join(f" {count:,} not sent again: {why}." for why, count in sorted(left.items()))
        if not back:
            raise OperatorError(f"No message can be sent again.{others}")
        noun = "message is" if len(back) == 1 else "messages are"
        return Done(
            True,
            f"{len(back):,} {noun} due again; parts that were sent stay sent.{others}",
            "To undo it: pause or cancel the run before the next batch.",
        )

    def retry_day(self, wanted: FailedMessages, by: str) -> Done:
        """Send a period's failed messages again, like `retry_failed_messages`."""
        rows = self._all("list_failed_messages", **wanted.parameters())
        back = requeue(self._all, [row["id"] for row in rows], resend_unknown="unknown" in wanted.error_classes)
        self._log_retry({row["id"]: row["run_id"] for row in rows if row["id"] in back}, by)
        classes = ", ".join(wanted.error_classes)
        text = f"Failed then, of class {classes}: {len(rows):,}. Due again: {len(back):,}."
        return Done(bool(back), text, "To undo it: pause or cancel their runs before the next batch." if back else "")

    def _log_retry(self, runs_of: Mapping[UUID, UUID], by: str) -> None:
        counts = Counter(runs_of.values())
        if counts:
            self._run(
                "log_operator",
                run_ids=list(counts),
                counts=list(counts.values()),
                action="retry",
                by=by,
                log=f"{by} had failed messages of this run sent again.",
            )

    def _set_status(
        self, run: Named, action: str, status: str, was: list[str], by: str, log: str
    ) -> dict[str, Any] | None:
        rows = self._all("set_run_status", run_id=run.id, status=status, was=was, action=action, by=by, log=log)
        return rows[0] if rows else None

    def _unchanged(self, run: Named, needed: str) -> Done:
        now = self.progress(run.id)
        status = now.status if now else "gone"
        return Done(False, f"Nothing changed: the run {run.name} is {status}, not {needed}.")


def _bounds(text: str) -> tuple[UUID | None, UUID | None]:
    """Return the first and the last id with this prefix; None if no id has it."""
    digits = text.replace("-", "").lower()
    if not 1 <= len(digits) <= 32 or not re.fullmatch(r"[0-9a-f]+", digits):
        return None, None
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def _short(named: Named) -> str:
    return str(named.id)[:8]


def _flag(scope: str, target: Named | None) -> str:
    return "--all" if target is None else f"--{scope} {_short(target)}"


def _spoken(scope: str, target: Named | None) -> tuple[str, str, str]:
    """Return the target in words, the command that resumes it, and its key."""
    what = "all sending" if target is None else f"the {scope} {target.name}"
    return what, f"campaign-pipeline resume {_flag(scope, target)}", "all" if target is None else str(target.id)


def _told(sentence: str, undo: str) -> str:
    """Return the reason that a run shows while it waits."""
    return f"{sentence.removesuffix('.')}. To let it go on: {undo}."


def _no_retry(row: Mapping[str, Any], *, resend_unknown: bool) -> str | None:
    """Return why a message cannot be sent again."""
    if row["status"] != "failed":
        return f"the status is {row['status']}, not failed"
    if row["run_status"] in {"cancelled", "failed"}:
        return f"its run is {row['run_status']}"
    if row["error_class"] == "unknown" and not resend_unknown:
        return "it may have been sent; look at the chat, and add --resend-unknown if it did not arrive"
    return None
