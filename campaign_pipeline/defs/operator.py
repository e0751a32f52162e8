"""The operator's views and actions in the UI: the same reads and changes as the command line (adapters/operator.py).

Names, numbers and texts of leads are always masked here; authorised people use the command line to see them.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import dagster as dg
import orjson
from pydantic import Field

from campaign_pipeline.adapters.environment import DeliverySettings
from campaign_pipeline.adapters.operator import Done, Named, Operator, OperatorError
from campaign_pipeline.core.overview import InboxOverview
from campaign_pipeline.core.story import Story
from campaign_pipeline.defs.days import ZONE, hourly
from campaign_pipeline.defs.io import markdown_table
from campaign_pipeline.defs.ops import plain_failures
from campaign_pipeline.defs.resources import QueueDatabase
from campaign_pipeline.defs.tags import OWNERS, WORK

FORECAST_HOURS = 48
_TAGS = {WORK: "operator", "dagster/priority": "10"}
"""A pause must not wait behind queued batches."""


@contextlib.contextmanager
def _desk(database: QueueDatabase) -> Iterator[Operator]:
    """Open the queue for one action; an error fails the step with one sentence."""
    with plain_failures():
        try:
            with Operator(database.url()) as desk:
                yield desk
        except OperatorError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from None


# Looking ------------------------------------------------------------------------------------------------------------


@dg.asset(group_name="campaigns", kinds={"postgres"}, io_manager_key="tables")
def inbox_health(context: dg.AssetExecutionContext, database: QueueDatabase) -> dg.MaterializeResult[Any]:
    """Each inbox of the campaigns: connection, pace, today's count and limits, warm-up, pauses."""
    with _desk(database) as desk:
        inboxes = desk.inboxes()
    broken = [row for row in inboxes if row.connection != "connected" or row.pauses]
    for row in broken:
        why = " ".join(row.pauses) or f"it is {row.connection}"
        context.log.warning(f"The inbox {row.name} of {row.workspace} sends nothing: {why}")
    import pandas as pd  # only these tables need it

    table = pd.DataFrame([_inbox(row) for row in inboxes])
    return dg.MaterializeResult(
        value=table,
        metadata={
            "inboxes": dg.MetadataValue.md(markdown_table(table)),
            "dagster/row_count": len(table),
            "not_sending": len(broken),
        },
    )


def _inbox(row: InboxOverview) -> dict[str, Any]:
    return {
        "inbox": row.name,
        "workspace": row.workspace,
        "provider": row.provider,
        "connection": row.connection,
        "seconds between messages": row.gap_seconds or 0.0,
        "sent today": row.sent_today,
        "daily limit": row.daily_limit,
        "warm-up day": row.warm_up_day,
        "failed today": row.failed_today,
        "waiting": row.waiting,
        "paused because": " ".join(row.pauses),
    }


@dg.asset(group_name="campaigns", kinds={"postgres"}, io_manager_key="tables")
def forecast(context: dg.AssetExecutionContext, database: QueueDatabase) -> dg.MaterializeResult[Any]:
    """The messages of the next two days by hour and inbox, with the current windows and limits."""
    with _desk(database) as desk:
        names = {inbox.inbox_id: inbox.name for inbox in desk.inboxes()}
        laid_out = desk.forecast(DeliverySettings.from_environment().max_age, FORECAST_HOURS)
    import pandas as pd  # only these tables need it

    table = pd.DataFrame(
        [
            {
                "hour": f"{slot.hour.astimezone(ZONE):%Y-%m-%d %H:%M}",
                "inbox": names.get(slot.inbox_id),
                "messages": slot.messages,
                "left waiting": slot.waiting,
            }
            for slot in laid_out.slots
            if slot.messages or slot.waiting
        ],
        columns=["hour", "inbox", "messages", "left waiting"],
    )
    late = sum(end is None for end in laid_out.finished_at.values())
    if late:
        context.log.warning(f"{late} runs will not finish within two days, or wait for a person: see campaign_runs.")
    return dg.MaterializeResult(
        value=table,
        metadata={
            "forecast": dg.MetadataValue.md(markdown_table(table)),
            "dagster/row_count": len(table),
            "messages": int(table["messages"].sum()),
            "runs_not_finished": late,
        },
    )


refresh_overview = dg.define_asset_job(
    "refresh_overview",
    selection=dg.AssetSelection.assets(inbox_health, forecast),
    executor_def=dg.in_process_executor,
    tags={WORK: "report"},
    owners=OWNERS,
    description="Refresh the tables of the inboxes and of the forecast.",
)

# A schedule, not AutomationCondition.on_cron: the sensor of those conditions would evaluate every asset twice a minute.
refresh_overview_hourly = hourly(
    refresh_overview.name, 10, "Every hour: refreshes the tables of the inboxes and of the forecast."
)


class ExplainMessageConfig(dg.Config):
    """The message to explain."""

    message: str = Field(description="Its id, or a unique beginning of it.")


@dg.op(out={"story": dg.Out(io_manager_key="handles", description="The story, personal data masked.")})
def tell_story(context: dg.OpExecutionContext, config: ExplainMessageConfig, database: QueueDatabase) -> dict[str, Any]:
    """Show what happened to a message, why it has its status, and what to do."""
    with _desk(database) as desk:
        message_id = desk.find("message", config.message).id
        story = desk.story(message_id, DeliverySettings.from_environment().max_age, ZONE)
    context.log.info(f"{story.summary} {story.next_step}")
    context.add_output_metadata(_story_metadata(story), output_name="story")
    told: dict[str, Any] = orjson.loads(orjson.dumps(story.to_dict(personal=False), default=str))
    return told


def _story_metadata(story: Story) -> dict[str, Any]:
    told = story.to_dict(personal=False)
    shown = ("message_id", "run", "run_id", "inbox", "status", "error_class", "error_code", "due_at", "sent_at")
    facts = {name: str(told[name]) for name in (*shown, "lease_owner", "cost_usd") if told[name] is not None}
    return {
        "what happened": told["summary"],
        "what to do": told["next_step"],
        "message": dg.MetadataValue.json(facts),
        "parts": _markdown(told["parts"], ("part_no", "status", "text", "inbox", "attempts", "sent_at")),
        "attempts": _markdown(told["attempts"], ("at", "part_no", "what", "inbox", "outcome", "code", "answer")),
        "log": _markdown(told["log"], ("at", "step", "level", "message")),
    }


def _markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dg.MarkdownMetadataValue:

    def shown(value: Any) -> Any:
        return f"{value.astimezone(ZONE):%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else value

    table = [{name: shown(row[name]) for name in columns} for row in rows]
    import pandas as pd

    return dg.MetadataValue.md(markdown_table(pd.DataFrame(table, columns=list(columns))))


@dg.job(executor_def=dg.in_process_executor, tags=_TAGS, owners=OWNERS)
def explain_message() -> None:
    """Show one message's history: text, parts, attempts and answers, why it waits or failed, and what to do."""
    tell_story()


# Acting -------------------------------------------------------------------------------------------------------------


class PauseScope(StrEnum):
    """The scope of a pause."""

    RUN = "run"
    INBOX = "inbox"
    WORKSPACE = "workspace"
    ALL = "all"


class ScopeConfig(dg.Config):
    """The scope of a pause, and who makes it."""

    scope: PauseScope = Field(description="A campaign run, an inbox, a workspace, or all sending.")
    target: str = Field(default="", description="Its id, the beginning of one, or its name; empty for all.")
    by: str = Field(description="Your name, for campaign_logs.")
    reason: str | None = Field(default=None, description="The reason, for campaign_logs.")

    def named(self, desk: Operator) -> Named | None:
        """What `target` names; None for all. Raises OperatorError."""
        if (self.scope is PauseScope.ALL) == bool(self.target):
            needed = "must be empty for all" if self.target else f"is empty, but must name the {self.scope.value}"
            raise OperatorError(f"target {needed}.")
        return desk.find(self.scope.value, self.target) if self.target else None


_ACTION = {"done": dg.Out(io_manager_key="handles", description="Whether it changed anything.")}


def _say(context: dg.OpExecutionContext, done: Done) -> bool:
    (context.log.info if done.changed else context.log.warning)(done.sentences)
    metadata = {"what changed": done.text, **({"how to undo it": done.undo} if done.undo else {})}
    context.add_output_metadata(metadata, output_name="done")
    return done.changed


@dg.op(out=_ACTION)
def pause(context: dg.OpExecutionContext, config: ScopeConfig, database: QueueDatabase) -> bool:
    """Pause a run, an inbox, a workspace or all: requests in flight are finished, no further request is made."""
    with _desk(database) as desk:
        target = config.named(desk)
        if target is not None and config.scope is PauseScope.RUN:
            done = desk.pause_run(target, config.by, config.reason)
        else:
            done = desk.pause(config.scope.value, target, config.by, config.reason)
    return _say(context, done)


@dg.op(out=_ACTION)
def resume(context: dg.OpExecutionContext, config: ScopeConfig, database: QueueDatabase) -> bool:
    """End a pause that a person made; overdue messages are spread over time."""
    with _desk(database) as desk:
        target = config.named(desk)
        if target is not None and config.scope is PauseScope.RUN:
            done = desk.resume_run(target, config.by)
        else:
            done = desk.resume(config.scope.value, target, config.by)
    return _say(context, done)


class CancelConfig(dg.Config):
    """The run to cancel, and who cancels it."""

    run: str = Field(description="Its id, the beginning of one, or its name.")
    by: str = Field(description="Who does it; it is kept in campaign_logs.")
    reason: str | None = Field(default=None, description="Why, for whoever asks later.")


@dg.op(out=_ACTION)
def cancel(context: dg.OpExecutionContext, config: CancelConfig, database: QueueDatabase) -> bool:
    """Cancel a run for good: its waiting messages are skipped."""
    with _desk(database) as desk:
        done = desk.cancel_run(desk.find("run", config.run), config.by, config.reason)
    return _say(context, done)


class ResendConfig(dg.Config):
    """The failed messages to send again."""

    messages: list[str] = Field(description="Their ids, or unique beginnings of them.")
    by: str = Field(description="Who does it; it is kept in campaign_logs.")
    resend_unknown: bool = Field(
        default=False,
        description="Also what may have gone out: looked up once more, and sent again where it is not found. A person "
        "may get it twice.",
    )


@dg.op(out=_ACTION)
def resend(context: dg.OpExecutionContext, config: ResendConfig, database: QueueDatabase) -> bool:
    """Put failed messages back in the queue; parts that were sent stay sent."""
    with _desk(database) as desk:
        ids: list[UUID] = [desk.find("message", each).id for each in config.messages]
        done = desk.retry(ids, config.by, resend_unknown=config.resend_unknown)
    return _say(context, done)


class LiftConfig(dg.Config):
    """The pause to end."""

    pause: str = Field(description="`scope:id` as `campaign-pipeline pauses` shows it, or the name of the scope.")
    by: str = Field(description="Who does it; it is kept in campaign_logs.")


@dg.op(out=_ACTION)
def lift(context: dg.OpExecutionContext, config: LiftConfig, database: QueueDatabase) -> bool:
    """End a pause that the pipeline made."""
    with _desk(database) as desk:
        done = desk.lift(config.pause, config.by)
    return _say(context, done)


@dg.job(executor_def=dg.in_process_executor, tags=_TAGS, owners=OWNERS)
def pause_sending() -> None:
    """Pause a campaign run, an inbox, a workspace, or all sending, within seconds."""
    pause()


@dg.job(executor_def=dg.in_process_executor, tags=_TAGS, owners=OWNERS)
def resume_sending() -> None:
    """Resume a campaign run, an inbox, a workspace, or all sending."""
    resume()


@dg.job(executor_def=dg.in_process_executor, tags=_TAGS, owners=OWNERS)
def cancel_campaign_run() -> None:
    """Cancel a campaign run for good: its waiting messages are skipped."""
    cancel()


@dg.job(executor_def=dg.in_process_executor, tags=_TAGS, owners=OWNERS)
def resend_messages() -> None:
    """Send failed messages again, by id. For a whole day, launch retry_failed_messages."""
    resend()


@dg.job(executor_def=dg.in_process_executor, tags=_TAGS, owners=OWNERS)
def lift_pause() -> None:
    """End a pause that the pipeline made, if its cause is gone."""
    lift()


JOBS = (
    *(refresh_overview, explain_message),
    *(pause_sending, resume_sending, cancel_campaign_run, resend_messages, lift_pause),
)
