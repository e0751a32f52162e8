"""Hourly checks of the invariants, one statement per check. Each description says what to do on failure."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import dagster as dg

from campaign_pipeline.adapters.environment import DeliverySettings
from campaign_pipeline.adapters.reports import RECENT_DAYS, Reports
from campaign_pipeline.defs.assets import COUNTS, campaign_report, campaign_runs, message_batch, next_step
from campaign_pipeline.defs.backfill import RequeueFailedMessagesConfig
from campaign_pipeline.defs.days import at, days, hourly
from campaign_pipeline.defs.ops import plain_failures
from campaign_pipeline.defs.resources import QueueDatabase
from campaign_pipeline.defs.run_checks import RUN_CHECKS
from campaign_pipeline.defs.shard import run_async
from campaign_pipeline.defs.tags import OWNERS, WORK

WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR
SENT_AGAIN = frozenset(RequeueFailedMessagesConfig().error_classes)
"""The classes that a back-fill selects by default."""


@dg.asset_check(
    asset=campaign_runs.key,
    description="The counters of each run equal a recount of its messages. On failure, something outside the pipeline "
    "changed the counters: find out what, then set them to the recount shown with `UPDATE campaign_runs`.",
)
def counters_equal_recount(database: QueueDatabase) -> dg.AssetCheckResult:
    """Recount the runs that are open or ended within the last month (I6)."""
    with plain_failures():
        rows = run_async(Reports(database.url()).wrong_counters())
    table = [
        {
            "run": str(row.run_id),
            "says": _counts(row.leads_success, row.leads_failed, row.leads_skipped),
            "recount": _counts(row.success, row.failed, row.skipped),
        }
        for row in rows
    ]
    return _result(table, len(rows), ERROR, "runs have counters that differ from a recount of their messages.")


def _counts(sent: int, failed: int, skipped: int) -> str:
    return f"{sent} sent, {failed} failed, {skipped} skipped"


@dg.asset_check(
    asset=message_batch.key,
    description="No lease expired longer ago than one lease period: every batch recovers expired leases. On failure, "
    "no batch has run since: switch on the schedule process_campaign_queue_every_minute, or launch "
    "process_campaign_queue.",
)
def leases_are_taken_back(database: QueueDatabase) -> dg.AssetCheckResult:
    """Find messages whose lease expired and was not recovered."""
    with plain_failures():
        lease = DeliverySettings.from_environment().lease_seconds
        rows = run_async(Reports(database.url()).forgotten_leases(lease))
    table = [
        {
            "message": str(row.message_id),
            "run": str(row.run_id),
            "status": row.status,
            "held by": row.lease_owner or "",
            "until": at(row.lease_expires_at),
        }
        for row in rows
    ]
    return _result(table, _of_all(rows), ERROR, f"messages are held past their lease by more than {lease:g} seconds.")


@dg.asset_check(
    asset=campaign_runs.key,
    description="No two parts of an inbox have the same provider id. On failure, one part may never have been sent: "
    "compare the chats with the two messages, and report the provider's answers (campaign_message_parts).",
)
def provider_ids_are_unique(database: QueueDatabase) -> dg.AssetCheckResult:
    """Find provider ids that two parts share."""
    with plain_failures():
        rows = run_async(Reports(database.url()).doubled_provider_ids())
    # The id itself may contain a number (`…@s.whatsapp.net`); the message ids are enough to look it up.
    table = [{"inbox": str(row.inbox_id), "messages": _ids(row.message_ids)} for row in rows]
    return _result(table, _of_all(rows), ERROR, "provider ids stand on more than one part of an inbox.")


@dg.asset_check(
    asset=message_batch.key,
    description="No campaign, inbox or waiting message refers to a row of another workspace. Such messages are skipped "
    "(foreign_workspace), never sent. On failure, correct the rows shown in the CRM, and make new messages.",
)
def rows_stay_in_their_workspace(database: QueueDatabase) -> dg.AssetCheckResult:
    """Find references between workspaces."""
    with plain_failures():
        rows = run_async(Reports(database.url()).foreign_rows())
    table = [{"what": row.kind, "id": str(row.id), "why": row.sentence} for row in rows]
    return _result(table, _of_all(rows), ERROR, "rows are connected with rows of another workspace.")


@dg.asset_check(
    asset=campaign_runs.key,
    description="No message has an unknown outcome. On failure, look at the chats of the messages shown; to resend "
    'some, launch retry_failed_messages for their day with error_classes ["unknown"].',
)
def outcomes_are_known(database: QueueDatabase) -> dg.AssetCheckResult:
    """Find messages of class unknown, which only a person may resend (I5)."""
    with plain_failures():
        rows = run_async(Reports(database.url()).unknown_outcomes())
    table = [
        {
            "message": str(row.message_id),
            "run": str(row.run_id),
            "code": row.error_code or "",
            "ended": at(row.finished_at) if row.finished_at else "",
        }
        for row in rows
    ]
    return _result(table, _of_all(rows), WARN, "messages have an unknown delivery status.")


LARGEST_UNDELIVERED_SHARE = 0.2
"""Share of an inbox's accepted messages. Some phones are off for days; a larger share means a restricted number."""


@dg.asset_check(
    asset=campaign_runs.key,
    description="Accepted messages of the last week were delivered, according to the receipts. On failure, WhatsApp "
    "restricts the inbox's number, or its leads have no account: check the number's quality, and send less.",
)
def accepted_messages_arrive(database: QueueDatabase) -> dg.AssetCheckResult:
    """Compare accepted messages with delivery receipts."""
    with plain_failures():
        rows = run_async(Reports(database.url()).undelivered())
    table = [
        {
            "inbox": str(row.inbox_id),
            "accepted": row.accepted,
            "delivered": row.delivered,
            "failed after acceptance": row.failed_later,
            "never delivered": row.never_delivered if row.receipts else "not known: no receipts come in",
        }
        for row in rows
    ]
    bad = [
        row for row in rows if row.receipts and row.accepted - row.delivered > LARGEST_UNDELIVERED_SHARE * row.accepted
    ]
    what = "inboxes have many messages that were accepted and never delivered."
    return _result(table, len(bad), WARN, what)


@dg.asset_check(
    asset=campaign_report,
    description=f"No day of the last {RECENT_DAYS} has messages that failed for a temporary reason. On failure, launch "
    "retry_failed_messages for the days shown: as a back-fill of its partitions, or one by one.",
)
def no_day_to_back_fill(database: QueueDatabase) -> dg.AssetCheckResult:
    """List the days with failed messages, by class."""
    with plain_failures():
        rows = run_async(Reports(database.url()).failed_by_day(str(days.timezone)))
    by_day: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        by_day[row.day][row.error_class] = row.messages
    again = {day: sum(n for name, n in classes.items() if name in SENT_AGAIN) for day, classes in by_day.items()}
    table = [
        {
            "day": day,
            "to send again": again[day],
            "by class": ", ".join(f"{count} {name}" for name, count in classes.items()),
            "next step": f"retry_failed_messages, partition {day}" if again[day] else "none: see error_message of each",
        }
        for day, classes in by_day.items()
    ]
    count = sum(again.values())
    bad_days = sum(1 for messages in again.values() if messages)
    what = f"messages of {bad_days} days failed for a temporary reason: launch retry_failed_messages for those days."
    return _result(table, count, WARN, what)


with warnings.catch_warnings():
    # Checks by partition are a preview in 1.13, the version that pyproject.toml pins. They mark a day in the UI.
    warnings.simplefilter("ignore", dg.PreviewWarning)

    @dg.asset_check(
        asset=campaign_report,
        partitions_def=days,
        description="No message of this day failed for a temporary reason (class exhausted). On failure, launch "
        "retry_failed_messages for this day; parts that were sent are not sent again.",
    )
    def nothing_to_send_again(
        context: dg.AssetCheckExecutionContext, campaign_report: list[Any]
    ) -> dg.AssetCheckResult:
        """Report the messages of one day that can be sent again."""
        failed = {name: sum(int(row[name]) for row in campaign_report) for name in COUNTS if name.startswith("failed")}
        return dg.AssetCheckResult(
            passed=not failed["failed_exhausted"],
            severity=WARN,
            description=next_step(
                context.partition_key,
                exhausted=failed["failed_exhausted"],
                unknown=failed["failed_unknown"],
                refused=failed["failed_permanent"] + failed["failed_other"],
            ),
            metadata=failed,
        )


@dg.asset_check(
    asset=message_batch.key,
    description="While attached to a CRM, only the pipeline claims and finishes messages. On failure, find the other "
    "program (`campaign-pipeline crm check`) and stop it: it could send a message a second time.",
)
def nobody_else_sends(database: QueueDatabase) -> dg.AssetCheckResult:
    """Find messages that another program claimed or finished in the last days."""
    with plain_failures():
        rows = run_async(Reports(database.url()).foreign_changes())
    table = [
        {
            "became": row.became,
            "messages": row.messages,
            "by role": row.by_role or "",
            "application": row.application or "",
            "last": at(row.last_at),
            "for example": _ids(row.examples),
        }
        for row in rows
    ]
    count = sum(row.messages for row in rows)
    return _result(table, count, WARN, "messages were taken or finished by somebody else.")


def _ids(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


class _Counted(Protocol):
    """A row of a statement that shows some rows and counts all."""

    @property
    def of_all(self) -> int: ...


def _of_all(rows: Sequence[_Counted]) -> int:
    return rows[0].of_all if rows else 0


def _result(
    table: Sequence[Mapping[str, Any]], count: int, severity: dg.AssetCheckSeverity, what: str
) -> dg.AssetCheckResult:
    """Build the result. `what` completes the sentence that begins with the count."""
    records = [dg.TableRecord(dict(row)) for row in table]
    return dg.AssetCheckResult(
        passed=count == 0,
        severity=severity,
        description=f"{count} {what}" if count else "Nothing found.",
        metadata={"count": count, **({"found": dg.MetadataValue.table(records)} if records else {})},
    )


CHECKS = [
    counters_equal_recount,
    leases_are_taken_back,
    provider_ids_are_unique,
    outcomes_are_known,
    accepted_messages_arrive,
    nobody_else_sends,
    rows_stay_in_their_workspace,
    no_day_to_back_fill,
    nothing_to_send_again,
    *RUN_CHECKS,
]

check_campaign_queue = dg.define_asset_job(
    "check_campaign_queue",
    # The report's checks run with it, and those of a batch with its run.
    selection=dg.AssetSelection.checks_for_assets(message_batch.key, campaign_runs.key)
    - dg.AssetSelection.checks(*RUN_CHECKS),
    executor_def=dg.in_process_executor,
    tags={WORK: "checks"},
    owners=OWNERS,
    description="Verify the invariants: counters, leases, provider ids, known outcomes.",
)

check_campaign_queue_hourly = hourly(
    check_campaign_queue.name, 35, "Every hour, between two reports: verifies the invariants."
)
