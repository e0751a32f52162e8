"""The days that reports and back-fills are cut in: those of the business, not of UTC."""

import dagster as dg

from campaign_pipeline.adapters.environment import BusinessDays

_business = BusinessDays.from_environment()

DAY_FORMAT = "%Y-%m-%d"
"""Of a partition key."""

days = dg.DailyPartitionsDefinition(
    start_date=_business.first_day.strftime(DAY_FORMAT),
    timezone=_business.timezone,
    fmt=DAY_FORMAT,
    end_offset=1,  # today too: what failed this morning is sent again this afternoon
)
"""One partition a day, midnight to midnight in CAMPAIGN_TIMEZONE; 23 or 25 hours where the clocks change."""
