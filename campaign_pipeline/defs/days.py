"""The daily partitions of reports and back-fills, and hourly schedules, in the business's time zone, not UTC."""

from datetime import datetime

import dagster as dg

from campaign_pipeline.adapters.environment import BusinessDays
from campaign_pipeline.defs.tags import OWNERS

_business = BusinessDays.from_environment()

ZONE = _business.zone
"""Of the business day, and of all times that operators read."""

DAY_FORMAT = "%Y-%m-%d"
"""Of a partition key."""

days = dg.DailyPartitionsDefinition(
    start_date=_business.first_day.strftime(DAY_FORMAT),
    timezone=_business.timezone,
    fmt=DAY_FORMAT,
    end_offset=1,  # today too: messages that failed this morning can be retried this afternoon
)
"""One partition per day, midnight to midnight in CAMPAIGN_TIMEZONE; 23 or 25 hours at clock changes."""


def at(instant: datetime) -> str:
    """Write a time for an operator, to the minute, with its zone."""
    return f"{instant.astimezone(ZONE):%Y-%m-%d %H:%M} ({ZONE})"


def hourly(job_name: str, minute: int, description: str) -> dg.ScheduleDefinition:
    """Return a schedule that launches a job each hour, on by default: for jobs that only read the queue."""
    return dg.ScheduleDefinition(
        name=f"{job_name}_hourly",
        job_name=job_name,
        cron_schedule=f"{minute} * * * *",
        owners=OWNERS,
        execution_timezone=_business.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=description,
    )
