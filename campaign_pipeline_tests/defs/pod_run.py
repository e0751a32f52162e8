"""A batch whose shard is sent by a pod. The steps before it run in this process, and so start no pods of their own."""

from dagster import DagsterInstance, ReexecutionOptions, execute_job, reconstructable

from campaign_pipeline_tests.defs.test_job import IN_PROCESS, resolved_job


def main() -> None:
    """Entry point: let the shard fail here, then re-execute what failed as the deployment says."""
    job = reconstructable(resolved_job)
    failing = IN_PROCESS | {"ops": {"send_shard": {"config": {"concurrency": 0}}}}
    with DagsterInstance.get() as instance:
        failed = execute_job(job, instance, run_config=failing, raise_on_error=False)
        options = ReexecutionOptions.from_failure(failed.run_id, instance)
        execute_job(
            job,
            instance,
            run_config={"ops": {"send_shard": {"config": {"concurrency": 2}}}},
            reexecution_options=options,
            raise_on_error=False,
        )


if __name__ == "__main__":
    main()
