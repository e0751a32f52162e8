"""The Celery application of the workers: `celery -A campaign_pipeline.defs.celery_worker worker` on each host.

A run's process sends each step to the broker, and a worker on any host takes it. The settings send the step of a dead
worker to another one; the task below waits there until the dead worker's leases have expired.
"""

import contextlib
import json
import mmap
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from celery import Celery, Task
from celery.exceptions import Ignore, WorkerLostError
from celery.signals import worker_init, worker_shutting_down
from celery.worker.request import Request
from dagster import DagsterInstance, DagsterRunStatus, deserialize_value
from dagster_celery.executor import CeleryExecutor
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_task
from kombu.entity import Queue

from campaign_pipeline.adapters.deployment import CelerySettings, Deployment
from campaign_pipeline.adapters.environment import DeliverySettings, SettingError
from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.adapters.schema import DatabaseUnusable
from campaign_pipeline.core.ports import StoreUnavailable
from campaign_pipeline.defs import stopping
from campaign_pipeline.defs.celery_settings import executor_config
from campaign_pipeline.defs.reruns import step_owner
from campaign_pipeline.defs.resources import QueueDatabase


def worker_app(settings: CelerySettings) -> Celery:
    """Return the application of a worker, with the one task that executes steps."""
    executor = CeleryExecutor.for_cli(**executor_config(settings))
    app = make_app(executor.app_args())
    app.conf.task_queues = [
        Queue(settings.queue, routing_key=f"{settings.queue}.#", queue_arguments={"x-max-priority": 10})
    ]
    create_task(app, base=StepTask)
    return app


class Step(Protocol):
    """What is read here of Dagster's arguments for the execution of a step."""

    instance_ref: Any
    run_id: str
    step_keys_to_execute: Sequence[str] | None


def _step(packed: dict[str, Any]) -> Step:
    """Read the arguments of a step from the form in which dagster-celery sends them."""
    return cast("Step", deserialize_value(json.dumps(packed)))


PUT_OFF_SECONDS = 2.0
"""How long a step that another worker holds occupies a slot before it returns to the end of the queue."""


class StepRequest(Request):  # type: ignore[misc]
    """A step in the worker's main process, which is notified at once if the process of a step dies."""

    def on_failure(self, exc_info: Any, **options: Any) -> Any:
        """Release the leases of a dead process, so that the step's next worker can continue at once. See Request."""
        if isinstance(getattr(exc_info.exception, "exc", exc_info.exception), WorkerLostError | SystemExit):
            end_leases_of_process(_step(self.kwargs["execute_step_args_packed"]), self.worker_pid)
        return super().on_failure(exc_info, **options)


def end_leases_of_process(step: Step, pid: int) -> None:
    """End the leases of a dead process of this host. If the database is unavailable, they expire by themselves."""
    shard = _shard_of(step)
    if shard is None:
        return
    with (
        contextlib.suppress(DatabaseUnusable, SettingError, StoreUnavailable),
        Operations(QueueDatabase().url()) as operations,
    ):
        operations.end_leases(step_owner(step.run_id, shard, pid))


def _shard_of(step: Step) -> str | None:
    """Return the key of the shard that a step sends; None for other steps: they hold no leases and end in a second."""
    (key,) = step.step_keys_to_execute or [""]
    return key.removesuffix("]").partition("[")[2] or None


class StepTask(Task):  # type: ignore[misc]
    """Executes a step unless another worker holds it."""

    abstract = True
    Request = "campaign_pipeline.defs.celery_worker:StepRequest"

    def __call__(self, execute_step_args_packed: dict[str, Any], executable_dict: dict[str, Any]) -> Any:
        """Execute the step, postpone it, or skip it: the broker may deliver a step whose worker is still alive."""
        step = _step(execute_step_args_packed)
        self._leave_what_is_over(step)
        if _is_held(step):
            queue = self.app.conf.task_default_queue
            # Not a task with an ETA: its receiver would wait by its own clock, which may be an hour wrong.
            time.sleep(min(DeliverySettings.from_environment().lease_seconds / 8, PUT_OFF_SECONDS))
            raise self.retry(countdown=0, max_retries=None, queue=queue, routing_key=f"{queue}.execute_plan")
        return super().__call__(execute_step_args_packed, executable_dict)

    def _leave_what_is_over(self, step: Step) -> None:
        """Raise Ignore for a step whose run has ended or is being terminated."""
        with DagsterInstance.from_ref(step.instance_ref) as instance:
            run = instance.get_run_by_id(step.run_id)
        if run is None or run.is_finished:
            raise Ignore
        if run.status == DagsterRunStatus.CANCELING:
            # The run's process waits for this answer, also from a worker that started after the step was revoked.
            self.backend.mark_as_revoked(self.request.id, "The run was terminated.", self.request)
            raise Ignore


def _is_held(step: Step) -> bool:
    """Return whether a worker holds messages of this very step under a live lease."""
    shard = _shard_of(step)
    if shard is None:
        return False
    with Operations(QueueDatabase().url()) as operations:
        return operations.holders().has_shard(step.run_id, shard)


@worker_init.connect  # type: ignore[untyped-decorator]
def _import_once(**_: Any) -> None:
    """Import what steps need before the worker forks; otherwise each child spends seconds and memory on it."""
    import_module("campaign_pipeline.definitions")


_stopping = mmap.mmap(-1, 1)
"""Memory that the worker's main process shares with its later children: 1 once it is told to stop."""


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop_shards(**_: Any) -> None:
    """Stop the running shards in an orderly way. Celery itself would wait until they are done, possibly for hours."""
    _stopping[0] = 1


stopping.host_stops.append(lambda: _stopping[0] == 1)

_settings = Deployment.from_environment().celery
if _settings is None:
    raise SystemExit("CAMPAIGN_EXECUTOR is not celery; set it for workers as for the code location.")
app = worker_app(_settings)
