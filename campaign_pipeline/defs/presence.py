"""Reports the presence of a run's process in the queue's database, so that a lost process can be detected.

It also checks whether its run still stands: Dagster can mark a run failed or cancelled without reaching its process
(`max_runtime_seconds`, a forced cancellation, a host that was cut off for a while).
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster import DagsterEvent, DagsterInstance

from campaign_pipeline.adapters.environment import SettingError
from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.adapters.schema import DatabaseUnusable
from campaign_pipeline.core.ports import StoreUnavailable
from campaign_pipeline.defs.resources import QueueDatabase

if TYPE_CHECKING:
    # The types in the signatures of dagster.Executor: Dagster exports the class, but none of these.
    from dagster._core.execution.context.system import PlanOrchestrationContext
    from dagster._core.execution.plan.plan import ExecutionPlan
    from dagster._core.execution.retries import RetryMode
    from dagster._core.execution.step_dependency_config import StepDependencyConfig

BEAT_SECONDS = 15.0


class Presence:
    """Reports presence from a thread, from entering to leaving. Failures of the database or broker end no run."""

    def __init__(self, instance: DagsterInstance, run: dg.DagsterRun, check: Callable[[], str | None]) -> None:
        self._instance = instance
        self._run = run
        self._check = check  # returns a reason to end the run that Dagster cannot know
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run presence", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()

    def _beat(self) -> None:
        while True:
            self._tell(Operations.note_presence, socket.gethostname())
            if not self._stands():
                os.kill(os.getpid(), signal.SIGINT)  # like Dagster's own termination: steps end in an orderly way
                break
            if self._left.wait(BEAT_SECONDS):
                break
        self._tell(Operations.forget_presence)

    def _stands(self) -> bool:
        """Return whether the run goes on; if not, its events say why."""
        lost = self._check()
        try:
            run = self._instance.get_run_by_id(self._run.run_id)
            if run is None or run.is_finished:
                return run is None
            if lost is not None:
                text = f"{lost} What its workers hold is sent or given back; the next batch takes up the rest."
                self._instance.report_run_failed(run, text)
        except Exception:  # noqa: BLE001 (whatever Dagster's storage raises while it is away: the next beat asks again)
            return True
        return lost is None

    def _tell(self, what: Callable[..., None], *details: Any) -> None:
        try:
            with Operations(QueueDatabase().url()) as operations:
                what(operations, self._run.run_id, *details)
        except (DatabaseUnusable, SettingError, StoreUnavailable):
            pass  # the steps report what is wrong with it; the next beat tries again


class PresentExecutor(dg.Executor):
    """Wraps one of Dagster's executors, and reports presence while it executes."""

    def __init__(self, executor: dg.Executor, check: Callable[[], str | None]) -> None:
        self._executor = executor
        self._check = check

    def execute(
        self, plan_context: "PlanOrchestrationContext", execution_plan: "ExecutionPlan"
    ) -> Iterator[DagsterEvent]:
        """See dagster.Executor."""
        with Presence(plan_context.instance, plan_context.dagster_run, self._check):
            yield from self._executor.execute(plan_context, execution_plan)

    @property
    def retries(self) -> "RetryMode":
        """See dagster.Executor."""
        return self._executor.retries

    @property
    def step_dependency_config(self) -> "StepDependencyConfig":
        """See dagster.Executor."""
        return self._executor.step_dependency_config

    def __getattr__(self, name: str) -> Any:
        """Delegate the other attributes that an executor's own loop needs."""
        return getattr(self._executor, name)
