"""Sends the sensors' notices: in an operator's words, with links, stored in the database while they are open."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import dagster as dg
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from campaign_pipeline.adapters.environment import NotifierSettings
from campaign_pipeline.adapters.findings import Finding, State
from campaign_pipeline.adapters.notice_formats import Notice
from campaign_pipeline.adapters.notices import Notices
from campaign_pipeline.adapters.notify import Notifier
from campaign_pipeline.core.notices import (
    Concern,
    Kind,
    Standing,
    lines_of,
    over_line,
    summary_lines,
    title_of,
    to_tell,
)
from campaign_pipeline.defs.checks import CHECKS
from campaign_pipeline.defs.days import ZONE, at
from campaign_pipeline.defs.reruns import lease_owner

SUMMARY_HOUR = 18
"""Of the business day: late enough to summarise it, early enough to act."""

CHECKED_WITHIN = timedelta(hours=24)
"""The maximum age of a failed check in the day's summary."""


class Desk:
    """Sends notices. `troubles`: what could not be sent, a sentence each; it is retried at the next tick."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._settings = NotifierSettings.from_environment()
        self._notifier = Notifier(self._settings, warn)
        self.troubles: list[str] = []

    def tell(self, title: str, lines: Sequence[str], page: str = "assets/campaign_runs", label: str = "Runs") -> bool:
        """Send one notice, with a link to a page of the UI; return whether every configured recipient got it."""
        url = self._settings.ui_url
        troubles = self._notifier.tell(Notice(title, lines, {label: f"{url}/{page}"} if url else None))
        self.troubles += [trouble for trouble in troubles if trouble not in self.troubles]
        return not troubles


def tell_concerns(
    desk: Desk,
    notices: Notices,
    instance: Callable[[], DagsterInstance],
    concerns: Mapping[str, Concern],
    now: datetime,
) -> tuple[int, int]:
    """Send what is new, persists or is over; return how many concerns began or were repeated, and how many ended.

    `instance` opens Dagster's, which is needed only for notices of failed runs.
    """
    standing = notices.standing()
    begun = sum(_told(desk, notices, kind, concern, standing.get(concern.key), now)
                for kind, concern in to_tell(concerns.values(), standing, now))  # fmt: skip
    for key in standing.keys() & concerns.keys():
        notices.shrink(key, concerns[key].size)
    ended = 0
    for key, notice in standing.items():
        success = _success_since(instance(), notice) if notice.job else None
        if key in concerns or (notice.job and success is None):
            continue
        line = over_line(notice, now, notices.sent_since(notice.run_ids, notice.since), ZONE)
        if success is not None:
            line = f"{line} The run {success.run_id[:8]} of {notice.job} succeeded."
        if desk.tell(f"Over: {notice.title}", [line]):
            notices.end(key)
            ended += 1
    return begun, ended


def _told(desk: Desk, notices: Notices, kind: Kind, concern: Concern, before: Standing | None, now: datetime) -> bool:
    title = title_of(concern, notices.name(concern.scope, concern.scope_id))
    since = before.since if before else concern.since or now
    if not desk.tell(title, lines_of(kind, concern, since, now, ZONE)):
        return False
    notices.keep(concern, title, since)
    return True


def _success_since(instance: DagsterInstance, notice: Standing) -> dg.DagsterRun | None:
    """Return the newest run of the job that succeeded after the notice began: a manual run, or Dagster's own retry."""
    wanted = RunsFilter(job_name=notice.job, statuses=[DagsterRunStatus.SUCCESS], updated_after=notice.since)
    for record in instance.get_run_records(wanted, limit=1):
        if record.end_time is not None and record.end_time > notice.since.timestamp():
            return record.dagster_run
    return None


# Failed runs ----------------------------------------------------------------------------------------------------------


def tell_failed_run(desk: Desk, notices: Notices, run: dg.DagsterRun, causes: Sequence[str], at: datetime) -> str:
    """Report a failed run, once while its job fails for the same reason; return what was done."""
    key = f"run_failed:{run.job_name}:{fingerprint(causes)}"
    title = failed_title(run)
    if before := notices.standing().get(key):
        return f"Told already: {before.title}, of the same."
    messages, until = notices.held_by(lease_owner(run.run_id))
    lines = [*causes, *_what_it_means(run, messages, until), f"Run id {run.run_id}."]
    if not desk.tell(title, lines, f"runs/{run.run_id}", "The run"):
        return f"{title}, which nobody but this log was told: {' '.join(desk.troubles)}"
    notices.keep(Concern(key, title, ""), title, at, run.job_name)
    return f"{title}: told."


def failed_title(run: dg.DagsterRun) -> str:
    """Return the headline for a failed run."""
    return f"The run {run.run_id[:8]} of {run.job_name} failed"


def fingerprint(causes: Sequence[str]) -> str:
    """Return a key that is equal for causes that differ only in numbers, ids and the shard."""
    plain = re.sub(r"\[[^\]]*\]|[0-9a-f]{8}(-[0-9a-f-]+)?|\d+", "", " ".join(causes))
    return hashlib.sha256(plain.encode()).hexdigest()[:12]


def _what_it_means(run: dg.DagsterRun, messages: int, until: datetime | None) -> Iterator[str]:
    if messages and until is not None:
        yield (
            f"Nothing is lost: {messages} messages that it held are due again at {at(until)}, "
            "when their leases end; the next batch takes them up where they stood."
        )
    else:
        yield "Nothing is lost: it holds no message any more."
    if run.tags.get("dagster/will_retry") == "true":
        yield "Dagster repeats the run by itself."


def causes_of(instance: DagsterInstance, run_id: str) -> list[str]:
    """Return a sentence per failed step."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    events = (record.event_log_entry.dagster_event for record in records)
    return sorted({sentence for event in events if event is not None for sentence in _sentences(event)})


def _sentences(event: dg.DagsterEvent) -> Iterator[str]:
    data = event.step_failure_data
    told = data.user_failure_data.description if data.user_failure_data else None
    if told:
        yield told
    elif data.error is not None:
        error = data.error.cause or data.error
        if error.cls_name == "ChildProcessCrashException":
            yield (
                f"The process of the step {event.step_key} was killed: from outside, or because the machine ran out "
                "of memory."
            )
        else:
            yield f"{event.step_key}: {error.cls_name or 'error'}; see the run's log."


# The day's summary ----------------------------------------------------------------------------------------------------


def day_to_summarize(now: datetime, summarized: str | None) -> str | None:
    """Return the business day whose summary is due; None if none is due, or it was sent."""
    local = now.astimezone(ZONE)
    day = local.date().isoformat()
    return day if local.hour >= SUMMARY_HOUR and day != summarized else None


def tell_summary(
    desk: Desk, notices: Notices, instance: DagsterInstance, day: str, now: datetime, findings: Sequence[Finding]
) -> bool:
    """Send what the day leaves for a person, if anything; return whether that is done. `findings`: the doctor's."""
    start = datetime.fromisoformat(day).replace(tzinfo=ZONE)
    end = (start + timedelta(days=1)).replace(hour=0)
    amber = [f"{each.what}: {each.found}. {each.todo}".strip() for each in findings if each.state is State.LOOK]
    checks = [*_failed_checks(instance, now), *amber]
    lines = summary_lines(notices.exhausted(start), notices.slow_runs(end), checks, now, end)
    return not lines or desk.tell(
        f"Campaigns on {day}: what is left for you", lines, "assets/campaign_report", "Report"
    )


def _failed_checks(instance: DagsterInstance, now: datetime) -> Iterator[str]:
    """Yield name and sentence of the checks whose last result, within a day, was a failure."""
    oldest = now.timestamp() - CHECKED_WITHIN.total_seconds()
    for check in CHECKS:
        for key in check.check_keys:
            record = instance.get_latest_asset_check_evaluation_record(key)
            if record is None or record.event is None or record.create_timestamp < oldest:
                continue
            event = record.event.dagster_event
            evaluation = event.asset_check_evaluation_data if event else None
            if evaluation is not None and not evaluation.passed:
                yield f"{key.name}: {evaluation.description or 'it failed.'}"
