"""The process that runs the job, for `benchmarks.ours`.

A step's process imports its parent's main module again, so this one imports nothing at the top that a step does not
need.
"""

import json
import sys
from pathlib import Path
from typing import Any


class RunFailed(RuntimeError):
    """A run failed, so there is nothing to measure."""


def main(run_config: str, result_file: str, started_by: str = "command") -> None:
    """Run the job, and write Dagster's records of the run."""
    config = json.loads(run_config)
    if started_by == "command" and "multiprocess" in config["execution"]["config"]:
        from campaign_pipeline.defs.fork_server import start_fork_server

        start_fork_server()  # as `campaign_pipeline.launch` does
    import dagster as dg
    from dagster._core.definitions.reconstruct import ReconstructableRepository

    # Like `dagster job execute -m`: the job is found by its module, which the fork server preloads.
    repository = ReconstructableRepository.for_module("campaign_pipeline.definitions", "defs", str(Path.cwd()))
    job = repository.get_reconstructable_job("process_campaign_queue")
    with dg.DagsterInstance.get() as instance:
        run = measure(dg.execute_job(job, instance, run_config=config), instance)
    Path(result_file).write_text(json.dumps(run), encoding="utf-8")


def measure(result: Any, instance: Any) -> dict[str, Any]:
    """Return Dagster's records of a run, with the names of `ours.JobRun`. Raises RunFailed."""
    if not result.success:
        raise RunFailed("The run failed; the lines above say why.")
    record = instance.get_run_record_by_id(result.run_id)
    entries = [entry for entry in instance.all_logs(result.run_id) if entry.is_dagster_event]
    events = [entry.dagster_event for entry in entries]
    reports = [
        event.step_output_data.metadata
        for event in events
        if event.is_successful_output and event.step_key.startswith("send_shard[")
    ]
    starts = {entry.step_key: entry.timestamp for entry in entries if entry.dagster_event.is_step_start}
    ends = {entry.step_key: entry.timestamp for entry in entries if entry.dagster_event.is_step_success}
    return {
        "started": record.start_time,
        "ended": record.end_time,
        "events": len(events),
        "sent": sum(int(metadata["sent"].value) for metadata in reports),
        "shard_seconds": [float(metadata["seconds"].value) for metadata in reports],
        "step_seconds": {step: round(ends[step] - starts[step], 3) for step in ends if step in starts},
        "step_pids": {
            event.step_key: int(event.event_specific_data.metadata["pid"].value)
            for event in events
            if event.event_type_value == "STEP_WORKER_STARTED" and "pid" in event.event_specific_data.metadata
        },
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
