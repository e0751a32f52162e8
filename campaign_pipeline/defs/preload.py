"""Imports what a step's process needs; the fork server of a run's steps imports this module before it forks.

No garbage is collected meanwhile: almost nothing that an import creates is garbage, and looking for it among a million
objects takes a fifth of the time. Then all of it is frozen, so that no step's process looks at it, and copies its
memory, again (see the documentation of `gc.freeze`).
"""

import contextlib
import gc
from importlib import import_module

MODULES = [
    # Modules that a step's process imports besides our own code. Without them every step spends a second on imports.
    # Found with benchmarks.imports; a test fails if a step imports more. Names that a Dagster release removed are
    # ignored.
    "campaign_pipeline.definitions",
    "campaign_pipeline.adapters.smtp",
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
    "dagster._core.storage.migration.utils",
    "encodings.idna",
    "fsspec.implementations.chained",
    "fsspec.implementations.local",
    "pandas.core.arrays.arrow.extension_types",
    "phonenumbers",
    "psycopg2.extras",
    "psycopg_binary",
    "pyarrow.pandas_compat",
    "pyarrow.parquet",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "alembic.command",
    "alembic.autogenerate",
    "upath.implementations.local",
    "uvloop",
]

gc.disable()
for _module in MODULES:
    with contextlib.suppress(ImportError):
        import_module(_module)
gc.freeze()
gc.enable()
