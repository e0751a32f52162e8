"""The code location: everything that Dagster loads, listed explicitly."""

import dagster as dg

from campaign_pipeline.adapters.environment import OperationsSettings
from campaign_pipeline.defs.assets import (
    campaign_report,
    campaign_runs,
    lead_contexts,
    message_batch,
    refresh_campaign_report,
    refresh_campaign_report_hourly,
)
from campaign_pipeline.defs.checks import CHECKS, check_campaign_queue, check_campaign_queue_hourly
from campaign_pipeline.defs.demo import trickle_demo_campaign, trickle_every_minute
from campaign_pipeline.defs.due import next_batch_when_due
from campaign_pipeline.defs.io import private_handles, private_tables
from campaign_pipeline.defs.jobs import clean_up_old_data, process_campaign_queue, retry_failed_messages
from campaign_pipeline.defs.lost_runs import lost_run_cleanup
from campaign_pipeline.defs.operator import JOBS as OPERATOR_JOBS
from campaign_pipeline.defs.operator import forecast, inbox_health, refresh_overview_hourly
from campaign_pipeline.defs.planning import plan_campaign_runs, plan_campaign_runs_daily
from campaign_pipeline.defs.resources import LanguageModelResource, ProvidersResource, QueueDatabase, from_variable
from campaign_pipeline.defs.review import approve_messages, preview_messages
from campaign_pipeline.defs.schedules import (
    clean_up_every_night,
    next_batch_after_run,
    process_campaign_queue_every_minute,
)
from campaign_pipeline.defs.sensors import backlog_notifications, run_failure_notifications
from campaign_pipeline.defs.tags import OWNERS

_demo = OperationsSettings.from_environment().demo_trickle

# Code references: the UI links to file and line, in a local editor or in the repository.
_assets = dg.with_source_code_references(
    dg.map_asset_specs(
        lambda spec: spec.replace_attributes(owners=OWNERS),
        [message_batch, lead_contexts, campaign_runs, campaign_report, inbox_health, forecast],
    )
)

defs = dg.Definitions(
    assets=_assets,
    asset_checks=CHECKS,
    jobs=[
        process_campaign_queue,
        retry_failed_messages,
        plan_campaign_runs,
        preview_messages,
        approve_messages,
        clean_up_old_data,
        refresh_campaign_report,
        check_campaign_queue,
        *OPERATOR_JOBS,
        *([trickle_demo_campaign] if _demo else []),
    ],
    schedules=[
        process_campaign_queue_every_minute,
        plan_campaign_runs_daily,
        clean_up_every_night,
        refresh_campaign_report_hourly,
        check_campaign_queue_hourly,
        refresh_overview_hourly,
        *([trickle_every_minute] if _demo else []),
    ],
    sensors=[
        next_batch_when_due,
        next_batch_after_run,
        lost_run_cleanup,
        run_failure_notifications,
        backlog_notifications,
    ],
    resources={
        "database": QueueDatabase(address=from_variable("CAMPAIGN_DATABASE_URL")),
        "language_model": LanguageModelResource(api_key=from_variable("OPENROUTER_API_KEY")),
        "providers": ProvidersResource(),
        "tables": private_tables,
        "handles": private_handles,
    },
)


def main_job() -> dg.JobDefinition:
    """Return the main job with its resources, for callers that execute it in their own processes."""
    return defs.resolve_job_def(process_campaign_queue.name)
