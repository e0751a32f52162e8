"""Demo mode of `campaign-pipeline dev`: a few sample messages become due every minute.

In the code location only if CAMPAIGN_DEMO_TRICKLE is on; `dev` sets it if every provider is the sandbox.
"""

import dagster as dg

from campaign_pipeline.adapters.operations import DEMO, Operations
from campaign_pipeline.defs.ops import plain_failures
from campaign_pipeline.defs.resources import QueueDatabase
from campaign_pipeline.defs.tags import OWNERS, WORK

LEADS_A_MINUTE = 12


@dg.op
def add_demo_messages(context: dg.OpExecutionContext, database: QueueDatabase) -> None:
    """Create a new run of a campaign in which a few sample leads become due within the next minute."""
    with plain_failures(), Operations(database.url()) as operations:
        added = operations.trickle(DEMO, LEADS_A_MINUTE)
    if added:
        context.log.info(f"{added} sample messages become due within the next minute.")
    else:
        context.log.warning("There is no demo workspace: stop `dev`, run `make demo`, and start `dev` again.")


@dg.job(executor_def=dg.in_process_executor, tags={WORK: "demo"}, owners=OWNERS)
def trickle_demo_campaign() -> None:
    """Make a few sample messages due."""
    add_demo_messages()


trickle_every_minute = dg.ScheduleDefinition(
    name="trickle_demo_campaign",
    job=trickle_demo_campaign,
    cron_schedule="* * * * *",
    owners=OWNERS,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Demo mode: sample messages become due every minute, for the sandbox.",
)
