"""A code location as large as ours in what Dagster does for it each minute, whose sensors and schedule do nothing."""

import dagster as dg

SENSORS = 5


@dg.op
def nothing() -> None:
    """Do nothing."""


@dg.job
def empty_job() -> None:
    """Do nothing."""
    nothing()


def _sensor(number: int) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"sensor_{number}",
        job=empty_job,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def sensor() -> dg.SkipReason:
        return dg.SkipReason("Nothing to do.")

    return sensor


@dg.schedule(job=empty_job, cron_schedule="* * * * *", default_status=dg.DefaultScheduleStatus.RUNNING)
def every_minute() -> dg.SkipReason:
    """Launch nothing."""
    return dg.SkipReason("Nothing to do.")


defs = dg.Definitions(jobs=[empty_job], sensors=[_sensor(n) for n in range(SENSORS)], schedules=[every_minute])
