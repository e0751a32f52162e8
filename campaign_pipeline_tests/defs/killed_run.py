"""A run of the main job that is killed (SIGKILL) at a given point; see `crash.worker` for the points."""

import os
import sys

from dagster import DagsterInstance, execute_job, reconstructable

from campaign_pipeline_tests.crash.worker import crash_at
from campaign_pipeline_tests.defs.test_job import IN_PROCESS, resolved_job


def main() -> None:
    """Entry point: the folder of Dagster's instance; CRASH_AT says where to die."""
    crash_at(os.environ["CRASH_AT"])
    config = IN_PROCESS | {"ops": {"send_shard": {"config": {"concurrency": 1}}}}
    with DagsterInstance.local_temp(sys.argv[1], overrides={"telemetry": {"enabled": False}}) as instance:
        execute_job(reconstructable(resolved_job), instance, run_config=config)


if __name__ == "__main__":
    main()
