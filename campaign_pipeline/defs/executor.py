"""How steps run: processes from a preloaded fork server by default, all in one process by run config."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import dagster as dg

from campaign_pipeline.adapters.database import hold
from campaign_pipeline.adapters.environment import Environment

PRELOAD = [
    # What a step's process imports beside our own code. Without it every step pays a second of imports again. Derived
    # by looking (benchmarks.imports); a test notices when a step begins to import again. Names that a release drops
    # are passed over by the fork server.
    "campaign_pipeline.definitions",
    "certifi",
    "dagster._core.definitions.repository_definition.repository_data_builder",
    "dagster._core.execution.api",
    "dagster._core.instance.factory",
    "dagster._core.secrets.env_file",
    "dagster._core.storage.fs_io_manager",
    "dagster._core.storage.local_compute_log_manager",
    "dagster._core.storage.root",
    "dagster._core.storage.sqlite_storage",
    "dagster._core.system_config.composite_descent",
    "dagster._core.utility_ops",
    "dagster._core.workspace.autodiscovery",
    "dagster._utils.test.definitions",
    "dagster_postgres",
    "encodings.idna",
    "fsspec.implementations.local",
    "pandas.core.arrays.arrow.extension_types",
    "phonenumbers",
    "psycopg2.extras",
    "psycopg_binary",
    "pyarrow.pandas_compat",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "alembic.command",
    "alembic.autogenerate",
    "upath.implementations.local",
    "uvloop",
]


_CONFIG = dg.Field(
    dg.Selector(
        {
            "multiprocess": dg.Field(
                dg.Shape(
                    {
                        "max_concurrent": dg.Field(
                            int, default_value=4, description="How many shards are sent at once, a process each."
                        )
                    }
                ),
                description="A process per step, forked from a server that has everything imported.",
            ),
            "in_process": dg.Field(dg.Shape({}), description="All steps in the run's own process, one after another."),
        }
    ),
    default_value={"multiprocess": {}},
)


def _requirements(config: Mapping[str, object]) -> Sequence[dg.ExecutorRequirement]:
    return dg.multiple_process_executor_requirements() if "multiprocess" in config else []


@dg.executor(name="shards", config_schema=_CONFIG, requirements=_requirements)
def shard_executor(context: dg.InitExecutorContext) -> dg.Executor:
    """Shards in parallel processes, forked from a preloaded server, or all steps in the run's own process.

    The executors are Dagster's own. The embedded database is kept up until the run's process ends; without that, it
    would stop and start between steps, each of which is a process that comes and goes.
    """
    hold(Environment.read())
    config: Mapping[str, Any] = context.executor_config
    if "in_process" in config:
        return _create(dg.in_process_executor, context, {})
    preload = [module for module in PRELOAD if find_spec(module.partition(".")[0])]
    start_method = {"forkserver": {"preload_modules": preload}}
    return _create(dg.multiprocess_executor, context, {**config["multiprocess"], "start_method": start_method})


def _create(executor: dg.ExecutorDefinition, context: dg.InitExecutorContext, config: Mapping[str, Any]) -> dg.Executor:
    """One of Dagster's executors, with this config."""
    create = executor.executor_creation_fn
    assert create is not None
    return create(context._replace(executor_config={"retries": {"enabled": {}}, **config}))
