"""How steps run: processes from a preloaded fork server by default, all in one process by run config."""

from collections.abc import Mapping
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


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what makes processes cheap, and keep the embedded database up for all steps of the run."""
    hold(Environment.read())
    if "in_process" in config:
        return {"in_process": config["in_process"]}
    given = dict(config.get("multiprocess") or {})
    preload = [module for module in PRELOAD if find_spec(module.partition(".")[0])]
    given.setdefault("start_method", {"forkserver": {"preload_modules": preload}})
    return {"multiprocess": given}


shard_executor = dg.multi_or_in_process_executor.configured(
    _with_defaults,
    name="shards",
    config_schema=dg.Field(
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
                "in_process": dg.Field(
                    dg.Shape({}), description="All steps in the run's own process, one after another."
                ),
            }
        ),
        default_value={"multiprocess": {}},
    ),
    description="Shards in parallel processes, forked from a preloaded server.",
)
