"""The executor of steps: one of Dagster's own, selected by CAMPAIGN_EXECUTOR.

Run config may request `multiprocess` or `in_process` on any deployment, with the same meaning everywhere. Omitted
fields come from the deployment: its engine, the broker, the namespace.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from campaign_pipeline.adapters.database import hold
from campaign_pipeline.adapters.deployment import Deployment, KubernetesSettings
from campaign_pipeline.adapters.environment import Environment
from campaign_pipeline.defs.fork_server import PRELOAD, start_fork_server
from campaign_pipeline.defs.presence import PresentExecutor

DEPLOYMENT = Deployment.from_environment()
"""Read when the code location loads: an invalid value keeps it from loading, with its sentence."""

IN_PROCESS: dict[str, Any] = {"config": {"in_process": {}}}
"""The `execution` of a run that needs only its own process."""

_AT_ONCE = dg.Field(int, default_value=4, description="How many shards are sent at once, a process each.")

_ENGINES = {
    "multiprocess": dg.Field(
        dg.Shape({"max_concurrent": _AT_ONCE}),
        description="A process per step on the run's host, forked from a server that has everything imported.",
    ),
    "in_process": dg.Field(dg.Shape({}), description="All steps in the run's own process, one after another."),
}

_DEPLOYED_ENGINES = {
    # Settings that only a deployment has: its broker or its cluster.
    "celery": dg.Field(dg.Shape({}), description="Steps on Celery workers, of any host; these say how many at once."),
    "k8s": dg.Field(
        dg.Shape({"max_concurrent": dg.Field(int, default_value=4, description="How many pods at once.")}),
        description="A pod per step. It takes seconds to start: worth it for large shards only.",
    ),
}

ENGINE_METADATA = {"executor": DEPLOYMENT.describe()}
"""Shown on the page of each job that sends."""

_DEFAULT = "multiprocess" if DEPLOYMENT.engine == "processes" else DEPLOYMENT.engine


def _config(engine: str) -> dg.Field:
    """Return the engines that a run may request if `engine` is deployed."""
    deployed = {name: field for name, field in _DEPLOYED_ENGINES.items() if name == engine}
    description = f"Where nothing is said: as this deployment says ({DEPLOYMENT.describe()})."
    return dg.Field(dg.Selector(_ENGINES | deployed), default_value={engine: {}}, description=description)


def _requirements(config: Mapping[str, object]) -> Sequence[dg.ExecutorRequirement]:
    return [] if "in_process" in config else dg.multiple_process_executor_requirements()


@dg.executor(name="shards", config_schema=_config(_DEFAULT), requirements=_requirements)
def shard_executor(context: dg.InitExecutorContext) -> dg.Executor:
    """Return the engine that the run requests, else the deployment's.

    The executors are Dagster's own. The embedded database runs until the run's process ends; otherwise it would stop
    and start between steps, because each step is a process of its own.
    """
    hold(Environment.read())
    config: Mapping[str, Any] = context.executor_config
    ((engine, options),) = config.items()
    return _create(context, engine, options)


def _create(context: dg.InitExecutorContext, engine: str, options: Mapping[str, Any]) -> dg.Executor:
    """Create one of Dagster's executors. Celery's and Kubernetes' are imported only if used."""
    if engine == "in_process":
        return _with(dg.in_process_executor, context, {})
    if engine == "celery":
        from dagster_celery import celery_executor

        from campaign_pipeline.defs.celery_settings import BrokerMemory, executor_config

        assert DEPLOYMENT.celery is not None
        memory = BrokerMemory(DEPLOYMENT.celery)
        return _with(celery_executor, context, executor_config(DEPLOYMENT.celery), memory.why_lost)
    if engine == "k8s":
        from dagster_k8s import k8s_job_executor

        assert DEPLOYMENT.k8s is not None
        return _with(k8s_job_executor, context, {**_pods(DEPLOYMENT.k8s), **options})
    start_fork_server()
    return _with(
        dg.multiprocess_executor, context, {**options, "start_method": {"forkserver": {"preload_modules": PRELOAD}}}
    )


def _pods(settings: KubernetesSettings) -> dict[str, Any]:
    """Return the options of Kubernetes' executor; the others come from the run launcher."""
    amounts = {name: value for name, value in (("cpu", settings.cpu), ("memory", settings.memory)) if value}
    config = {
        "job_namespace": settings.namespace,
        "job_image": settings.image,
        # No CPU limit: throttling would delay a worker exactly while it must renew its leases.
        "resources": {"requests": amounts, "limits": {k: v for k, v in amounts.items() if k == "memory"}}
        if amounts
        else None,
    }
    return {name: value for name, value in config.items() if value is not None}


def _with(
    executor: dg.ExecutorDefinition,
    context: dg.InitExecutorContext,
    config: Mapping[str, Any],
    check: Callable[[], str | None] = lambda: None,
) -> dg.Executor:
    """Return the executor with this config; `check` detects ends of a run that its process cannot see."""
    create = executor.executor_creation_fn
    assert create is not None
    return PresentExecutor(create(context._replace(executor_config={"retries": {"enabled": {}}, **config})), check)
