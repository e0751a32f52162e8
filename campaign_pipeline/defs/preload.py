"""Imports and prepares what a step's process needs; the fork server of a run's steps imports it before it forks.

No garbage is collected meanwhile: almost nothing that an import creates is garbage, and looking for it among a million
objects takes a fifth of the time. Then all of it is frozen, so that no step's process looks at it, and copies its
memory, again (see the documentation of `gc.freeze`).
"""

import contextlib
import gc
from importlib import import_module

from campaign_pipeline.sql import statements

MODULES = [
    # Modules that a step's process imports besides our own code. Without them every step spends a second on imports.
    # Found with benchmarks.imports; a test fails if a step imports more. Names that a Dagster release removed are
    # ignored.
    "campaign_pipeline.definitions",
    "campaign_pipeline.adapters.smtp",
    "campaign_pipeline.defs.dagster_storage",
    "certifi",
    "dagster._core.definitions.repository_definition.repository_data_builder",
    "dagster._core.execution.api",
    "dagster._core.instance.factory",
    "dagster._core.secrets.env_file",
    "dagster._core.storage.fs_io_manager",
    "dagster._core.storage.local_compute_log_manager",
    "dagster._core.storage.noop_compute_log_manager",
    "dagster._core.storage.root",
    "dagster._core.storage.sqlite_storage",
    "dagster._core.system_config.composite_descent",
    "dagster._core.utility_ops",
    "dagster._core.workspace.autodiscovery",
    "dagster._utils.test.definitions",
    "dagster_postgres",
    "dagster._core.storage.migration.utils",
    "encodings.idna",
    "fsspec.implementations.chained",
    "fsspec.implementations.local",
    "phonenumbers",
    "psycopg2.extras",
    "psycopg_binary",
    "importlib.readers",
    "importlib.resources.readers",
    "multiprocessing.popen_forkserver",
    "multiprocessing.queues",
    "multiprocessing.synchronize",
    "pyarrow.json",
    "pyarrow.parquet",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "alembic.command",
    "alembic.autogenerate",
    "upath.implementations.local",
    "uvloop",
]


def _prepare() -> None:
    """Do once what every step's process would do first: resolve the job, and read the SQL statements."""
    import_module("campaign_pipeline.definitions").main_job()  # by name: no other module of defs depends on it
    statements()


gc.disable()
for _module in MODULES:
    with contextlib.suppress(ImportError):
        import_module(_module)

_prepare()
gc.freeze()
gc.enable()
