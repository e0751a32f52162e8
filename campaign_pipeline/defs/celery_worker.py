"""The Celery application of workers: `celery -A campaign_pipeline.defs.celery_worker worker` on each host.

A run's process hands each step to the broker, and a worker of any host takes it. The settings see to it that the step
of a dead worker goes to another one, and the task below that it waits there until the dead one's leases are over.
"""

import contextlib
import mmap
import time
from importlib import import_module
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore, WorkerLostError
from celery.signals import worker_init, worker_shutting_down
from celery.worker.request import Request
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.execution.retries import RetryMode
from dagster._grpc.types import ExecuteStepArgs
from dagster._serdes import unpack_value
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
    """The application that a worker runs, with the one task that steps are."""
    executor = CeleryExecutor(RetryMode.DISABLED, **executor_config(settings))
    app = make_app(executor.app_args())
    app.conf.task_queues = [
        Queue(settings.queue, routing_key=f"{settings.queue}.#", queue_arguments={"x-max-priority": 10})
    ]
    create_task(app, base=StepTask)
    return app


PUT_OFF_SECONDS = 2.0
"""How long a step that somebody else has takes up a slot before it goes back to the end of the queue."""


class StepRequest(Request):  # type: ignore[misc]
    """A step as the worker's main process sees it, which learns at once that the process of one has died."""

    def on_failure(self, exc_info: Any, **options: Any) -> Any:
        """Free what a process held that died, so that whoever gets the step next goes on at once. See Request."""
        if isinstance(getattr(exc_info.exception, "exc", exc_info.exception), WorkerLostError | SystemExit):
            step = unpack_value(self.kwargs["execute_step_args_packed"], as_type=ExecuteStepArgs)
            end_leases_of_process(step, self.worker_pid)
        return super().on_failure(exc_info, **options)


def end_leases_of_process(step: ExecuteStepArgs, pid: int) -> None:
    """End the leases of a process of this host that is gone. Where the database is away they run out by themselves."""
    shard = _shard_of(step)
    if shard is None:
        return
    with (
        contextlib.suppress(DatabaseUnusable, SettingError, StoreUnavailable),
        Operations(QueueDatabase().url()) as operations,
    ):
        operations.end_leases(step_owner(step.run_id, shard, pid))


def _shard_of(step: ExecuteStepArgs) -> str | None:
    """The key of the shard that a step sends; None for a step that holds nothing, and takes no longer than a second."""
    (key,) = step.step_keys_to_execute or [""]
    return key.removesuffix("]").partition("[")[2] or None


class StepTask(Task):  # type: ignore[misc]
    """A step, executed where it is nobody else's."""

    abstract = True
    Request = "campaign_pipeline.defs.celery_worker:StepRequest"

    def __call__(self, execute_step_args_packed: dict[str, Any], executable_dict: dict[str, Any]) -> Any:
        """Execute the step, or put it off, or leave it: the broker may hand out a step whose worker still lives."""
        step = unpack_value(execute_step_args_packed, as_type=ExecuteStepArgs)
        self._leave_what_is_over(step)
        if _is_held(step):
            queue = self.app.conf.task_default_queue
            # Not as a task with a time: whoever gets it would wait for that by a clock that may be an hour wrong.
            time.sleep(min(DeliverySettings.from_environment().lease_seconds / 8, PUT_OFF_SECONDS))
            raise self.retry(countdown=0, max_retries=None, queue=queue, routing_key=f"{queue}.execute_plan")
        return super().__call__(execute_step_args_packed, executable_dict)

    def _leave_what_is_over(self, step: ExecuteStepArgs) -> None:
        """Raise Ignore for a step of a run that has ended or is being terminated."""
        assert step.instance_ref is not None
        with DagsterInstance.from_ref(step.instance_ref) as instance:
            run = instance.get_run_by_id(step.run_id)
        if run is None or run.is_finished:
            raise Ignore
        if run.status == DagsterRunStatus.CANCELING:
            # Its process waits for this answer: a worker that was not there when the step was revoked gives it, too.
            self.backend.mark_as_revoked(self.request.id, "The run was terminated.", self.request)
            raise Ignore


def _is_held(step: ExecuteStepArgs) -> bool:
    """Whether a worker holds messages of this very step under a live lease."""
    shard = _shard_of(step)
    if shard is None:
        return False
    with Operations(QueueDatabase().url()) as operations:
        return operations.holders().has_shard(step.run_id, shard)


@worker_init.connect  # type: ignore[untyped-decorator]
def _import_once(**_: Any) -> None:
    """Import what steps need before the worker forks: else each child does it by itself, in seconds and memory."""
    import_module("campaign_pipeline.definitions")


_stopping = mmap.mmap(-1, 1)
"""Memory that the worker's main process shares with its children, forked later: 1 once it is told to stop."""


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop_shards(**_: Any) -> None:
    """Let the shards at work end in an orderly way: Celery itself would wait until they are done, for hours maybe."""
    _stopping[0] = 1


stopping.host_stops.append(lambda: _stopping[0] == 1)

_settings = Deployment.from_environment().celery
if _settings is None:
    raise SystemExit("CAMPAIGN_EXECUTOR is not celery; set it for workers as for the code location.")
app = worker_app(_settings)
