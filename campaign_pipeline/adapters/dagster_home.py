"""DAGSTER_HOME on one person's machine: its settings, and its storage on the embedded server."""

import json
import os
import shutil
from pathlib import Path

import psycopg

from campaign_pipeline.adapters.queue_connection import connect

CODE_LOCATION = "campaign_pipeline"
"""The code location's name, as in the workspace.yaml of the checkout; runs are listed under it."""

_DAGSTER_YAML = """\
# Written by campaign-pipeline at every start. For settings of your own, make another folder and set DAGSTER_HOME.
storage:
  custom:
    module: campaign_pipeline.defs.dagster_storage
    class: KeptConnections
    config:
      postgres_url: {storage_url}
      should_autocreate_tables: {create_tables}
compute_logs:
  module: dagster._core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
python_logs:
  python_log_level: INFO
concurrency:
  runs:
    max_concurrent_runs: 4
    tag_concurrency_limits:
      - key: campaign/work
        value: queue
        limit: 3
      - key: campaign/work
        value: back_fill
        limit: 1
run_queue:
  dequeue_interval_seconds: 1
  max_user_code_failure_retries: 40
  user_code_failure_retry_delay: 15
run_monitoring:
  enabled: true
  max_runtime_seconds: 7200
  poll_interval_seconds: 60
run_retries:
  enabled: true
  max_retries: 1
  retry_on_asset_or_op_failure: false
retention:
  schedule:
    purge_after_days: 2
  sensor:
    purge_after_days: 2
schedules:
  use_threads: true
  num_workers: 2
sensors:
  use_threads: true
  num_workers: 3
telemetry:
  enabled: false
nux:
  enabled: false
"""
"""Like deploy/dagster.yaml, for one person's machine; a test checks both against Dagster's schema."""

_WORKSPACE_YAML = """\
# Written by campaign-pipeline at every start: found from whatever folder `campaign-pipeline dev` is started in.
load_from:
  - python_module:
      module_name: campaign_pipeline.definitions
      location_name: {location}
"""


def write_dagster_home(home: Path, storage_url: str) -> Path:
    """Write dagster.yaml and workspace.yaml into `home`/dagster, private to this user; return that folder.

    `storage_url` must name the driver (`postgresql+psycopg2://`), and be reachable for as long as Dagster runs. If it
    has Dagster's tables, Dagster is told not to look for them: it would whenever it opens its instance, so in each
    process of a run and at each evaluation of a sensor, with three connections and 11 ms of processor time.
    Raises OSError if the folder cannot be written.
    """
    folder = home / "dagster"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A JSON string is a YAML string, whatever a path may contain.
    text = _DAGSTER_YAML.format(
        storage_url=json.dumps(storage_url), create_tables=json.dumps(not _has_tables(storage_url))
    )
    _write(folder / "dagster.yaml", text)
    _write(folder / "workspace.yaml", _WORKSPACE_YAML.format(location=CODE_LOCATION))
    _delete_old_step_logs(folder)
    return folder


def _delete_old_step_logs(folder: Path) -> None:
    """Delete what steps printed under earlier settings: personal data, which no clean-up reaches any more."""
    for logs in folder.glob("storage/*/compute_logs"):
        shutil.rmtree(logs, ignore_errors=True)


def _has_tables(storage_url: str) -> bool:
    """Return whether Dagster's three storages have their tables; each storage creates its own at once."""
    try:
        with connect(storage_url.replace("+psycopg2", "", 1), autocommit=True) as connection:
            row = connection.execute(
                "SELECT bool_and(to_regclass(name) IS NOT NULL)"
                " FROM unnest(ARRAY['runs', 'instance_info', 'event_logs', 'jobs', 'job_ticks']) AS name"
            ).fetchone()
    except psycopg.Error:
        return False
    return row is not None and bool(row[0])


def _write(path: Path, text: str) -> None:
    """Write atomically: a Dagster process that starts now reads the old file or the new one."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.chmod(0o600)
    draft.replace(path)
