"""`plan_campaign_runs`: each morning, create the day's run of every campaign from a campaign file."""

from datetime import date, timedelta
from typing import Any

import dagster as dg

from campaign_pipeline.adapters.environment import BusinessDays, OperationsSettings
from campaign_pipeline.campaigns.planning import (
    CannotPlan,
    Planned,
    campaigns_to_plan,
    crm_plans,
    plan_campaign,
)
from campaign_pipeline.core.window import InvalidWindow
from campaign_pipeline.defs.days import DAY_FORMAT, days
from campaign_pipeline.defs.ops import plain_failures
from campaign_pipeline.defs.resources import QueueDatabase
from campaign_pipeline.defs.tags import OWNERS, WORK

_settings = OperationsSettings.from_environment()


@dg.op(out={"plan": dg.Out(io_manager_key="handles", description="How many messages were planned, and were not.")})
def plan_day_of_campaigns(context: dg.OpExecutionContext, database: QueueDatabase) -> dg.Output[dict[str, int]]:
    """Create or extend the day's run of each campaign; an error in one does not stop the others.

    Idempotent: leads that are already planned are not planned again.
    """
    day = date.fromisoformat(context.partition_key)
    rows: list[dict[str, Any]] = []
    planned, left_out = 0, 0
    with plain_failures():
        url = database.url()
        for config_id, name in campaigns_to_plan(url):
            try:
                plan = plan_campaign(url, str(config_id), day)
            except (CannotPlan, InvalidWindow) as error:
                context.log.warning(f"{name}: {error}")
                rows.append({"campaign": name, "messages": 0, "why": str(error)})
                continue
            for sentence in plan.sentences():
                context.log.info(sentence)
            planned += plan.planned
            left_out += sum(plan.left_out.values())
            rows.append({"campaign": name, "messages": plan.planned, "why": _why(plan)})
    if not rows:
        context.log.info("No active campaign was declared by a campaign file (campaign-pipeline apply).")
    figures = {"campaigns": len(rows), "messages": planned, "left_out": left_out}
    table = dg.MetadataValue.table([dg.TableRecord(row) for row in rows], schema=_SCHEMA)
    return dg.Output(figures, metadata={**figures, "plan": table})


_SCHEMA = dg.TableSchema(
    [dg.TableColumn("campaign"), dg.TableColumn("messages", "int"), dg.TableColumn("why", description="Who was left")]
)


def _why(plan: Planned) -> str:
    return " ".join(plan.sentences()[1:])


@dg.job(executor_def=dg.in_process_executor, partitions_def=days, tags={WORK: "plan"}, owners=OWNERS)
def plan_campaign_runs() -> None:
    """Select the leads of each campaign's day, give each message a time, and queue them."""
    plan_day_of_campaigns()


@dg.schedule(
    job=plan_campaign_runs,
    cron_schedule="10 0 * * *",
    owners=OWNERS,
    execution_timezone=BusinessDays.from_environment().timezone,
    default_status=dg.DefaultScheduleStatus.RUNNING if _settings.schedules_on else dg.DefaultScheduleStatus.STOPPED,
    description="Plans the day of each campaign from a campaign file. If a CRM plans in this database, only with "
    "CAMPAIGN_PLANNING=on.",
)
def plan_campaign_runs_daily(
    context: dg.ScheduleEvaluationContext, database: QueueDatabase
) -> dg.RunRequest | dg.SkipReason:
    """Launch the plan of the new day."""
    if not OperationsSettings.from_environment().planning and crm_plans(database.url()):
        return dg.SkipReason("The CRM plans the runs of this database. To plan here too, set CAMPAIGN_PLANNING=on.")
    day = (context.scheduled_execution_time + timedelta(minutes=1)).strftime(DAY_FORMAT)
    return dg.RunRequest(run_key=day, partition_key=day)
