"""Step outputs: what is written is read again, by the step that needs it."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest
from upath import UPath

from campaign_pipeline.defs.io import (
    INSTANT,
    Rows,
    TableIOManager,
    arrow_table,
    column,
    private_tables,
    table_metadata,
)

KINDS = {"name": "string", "due_at": INSTANT, "retry_count": "int64"}


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return arrow_table({name: column(rows, name) for name in KINDS}, KINDS)


class Tables:
    """One table in a file."""

    def __init__(self, folder: Path) -> None:
        self._manager = TableIOManager()
        self._path = UPath(folder / "table.parquet")

    def write(self, table: pa.Table) -> None:
        self._manager.dump_to_path(dg.build_output_context(), table, self._path)

    def read(self, wanted: type) -> Any:
        context = dg.build_input_context(dagster_type=dg.PythonObjectDagsterType(wanted))
        return self._manager.load_from_path(context, self._path)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tables:
    monkeypatch.setenv("CAMPAIGN_OUTPUTS", str(tmp_path))
    return Tables(tmp_path)


def test_a_table_is_read_as_it_was_written(tables: Tables) -> None:
    due = datetime(2026, 11, 28, 9, 30, 0, 123456, timezone(timedelta(hours=-3)))
    rows: list[dict[str, Any]] = [
        {"name": "Ana\n\x00“Souza” \u2028", "due_at": due, "retry_count": 2},
        {"name": None, "due_at": None, "retry_count": None},
        {"name": "2026-11-28T09:30:00Z", "due_at": due.astimezone(UTC) + timedelta(days=90), "retry_count": -1},
    ]
    tables.write(table_of(rows))
    assert tables.read(list) == rows
    assert [row["name"] for row in tables.read(Rows)] == column(tables.read(Rows), "name") == column(rows, "name")
    assert list(tables.read(pd.DataFrame)["retry_count"].dropna()) == [2, -1]


def test_an_empty_table_keeps_its_columns(tables: Tables) -> None:
    table = table_of([])
    tables.write(table)
    assert tables.read(list) == []
    columns = table_metadata(table)["dagster/column_schema"].columns
    assert [column.name for column in columns] == list(KINDS)


def test_a_row_may_be_longer_than_a_megabyte(tables: Tables) -> None:
    rows = [{"name": "x" * 3_000_000, "due_at": None, "retry_count": 0}] * 2
    tables.write(table_of(rows))
    assert tables.read(list) == rows


def test_partitions_of_an_asset_are_loaded_one_by_one_or_as_a_dict(tables: Tables) -> None:
    days = dg.StaticPartitionsDefinition(["2026-11-27", "2026-11-28"])
    seen: dict[str, Any] = {}

    @dg.asset(partitions_def=days, io_manager_key="tables")
    def sent(context: dg.AssetExecutionContext) -> pd.DataFrame:
        return pd.DataFrame({"day": [context.partition_key]})

    @dg.asset(partitions_def=days, ins={"sent": dg.AssetIn(dagster_type=list)})
    def same_day(sent: Any) -> None:
        seen["one"] = sent

    @dg.asset(ins={"sent": dg.AssetIn(dagster_type=dict)})
    def all_days(sent: Any) -> None:
        seen["all"] = sent

    with dg.instance_for_test() as instance:
        common: dict[str, Any] = {"resources": {"tables": private_tables}, "instance": instance}
        for day in days.get_partition_keys():
            assert dg.materialize([sent, same_day], partition_key=day, **common).success
        assert dg.materialize([sent, all_days], selection=[all_days], **common).success
    assert seen["one"] == [{"day": "2026-11-28"}]
    assert seen["all"] == {day: [{"day": day}] for day in days.get_partition_keys()}


def test_a_batch_needs_no_pandas(tmp_path: Path) -> None:
    code = (
        "import sys, campaign_pipeline.defs.preload, dagster as dg\n"
        "from datetime import UTC, datetime\n"
        "from upath import UPath\n"
        "from campaign_pipeline.defs.io import TableIOManager, arrow_table\n"
        "tables, path = TableIOManager(), UPath(sys.argv[1], 'table.parquet')\n"
        "table = arrow_table({'at': [datetime.now(UTC)]}, {'at': 'instant'})\n"
        "tables.dump_to_path(dg.build_output_context(), table, path)\n"
        "context = dg.build_input_context(dagster_type=dg.PythonObjectDagsterType(list))\n"
        "assert tables.load_from_path(context, path)\n"
        "assert tables.get_metadata(dg.build_output_context(), table)\n"
        "sys.exit('pandas' in sys.modules)"
    )
    env = {**os.environ, "CAMPAIGN_OUTPUTS": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, check=False).returncode == 0
