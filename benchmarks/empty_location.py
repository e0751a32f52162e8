"""A code location as large as ours in what Dagster does for it each minute, whose sensors and schedule do nothing.

Dagster's daemon evaluates each sensor, and asks for each job, every minute.
"""

import dagster as dg

SENSORS, JOBS = 5, 16
"""As many as ours; a test compares them."""


@dg.op
def nothing() -> None:
    """Do nothing."""


def _job(number: int) -> dg.JobDefinition:
    @dg.job(name=f"job_{number}")
    def empty_job() -> None:
        nothing()

    return empty_job


_jobs = [_job(number) for number in range(JOBS)]


def _sensor(number: int) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"sensor_{number}",
        job=_jobs[0],
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def sensor() -> dg.SkipReason:
        return dg.SkipReason("Nothing to do.")

    return sensor


@dg.schedule(job=_jobs[0], cron_schedule="* * * * *", default_status=dg.DefaultScheduleStatus.RUNNING)
def every_minute() -> dg.SkipReason:
    """Launch nothing."""
    return dg.SkipReason("Nothing to do.")


defs = dg.Definitions(jobs=_jobs, sensors=[_sensor(n) for n in range(SENSORS)], schedules=[every_minute])
