"""Step outputs: what is written is read again, by the step that needs it."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from campaign_pipeline.defs.io import (
    INSTANT,
    PrivateFiles,
    Rows,
    TableIOManager,
    arrow_table,
    private_tables,
    table_metadata,
)

KINDS = {"name": "string", "due_at": INSTANT, "retry_count": "int64"}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TableIOManager:
    monkeypatch.setenv("CAMPAIGN_OUTPUTS", str(tmp_path))
    return TableIOManager()


def test_a_table_is_read_as_it_was_written(tables: TableIOManager) -> None:
    due = datetime(2026, 11, 28, 9, 30, 0, 123456, timezone(timedelta(hours=-3)))
    rows: list[dict[str, Any]] = [
        {"name": "Ana\n\x00“Souza” \u2028", "due_at": due, "retry_count": 2},
        {"name": None, "due_at": None, "retry_count": None},
        {"name": "2026-11-28T09:30:00Z", "due_at": due.astimezone(UTC) + timedelta(days=90), "retry_count": -1},
    ]
    content = tables.to_bytes(arrow_table(rows, KINDS))
    assert tables.from_bytes(content, list[Any]) == rows
    assert [row["name"] for row in Rows(content)] == [row["name"] for row in rows]
    assert list(tables.from_bytes(content, pd.DataFrame)["retry_count"].dropna()) == [2, -1]


def test_an_empty_table_keeps_its_columns(tables: TableIOManager) -> None:
    table = arrow_table([], KINDS)
    assert tables.from_bytes(tables.to_bytes(table), list[Any]) == []
    columns = table_metadata(table)["dagster/column_schema"].columns
    assert [column.name for column in columns] == list(KINDS)


def test_a_row_may_be_longer_than_a_megabyte(tables: TableIOManager) -> None:
    rows = [{"name": "x" * 3_000_000, "due_at": None, "retry_count": 0}] * 2
    assert tables.from_bytes(tables.to_bytes(arrow_table(rows, KINDS)), list[Any]) == rows


def test_partitions_of_an_asset_are_loaded_one_by_one_or_as_a_dict(tables: TableIOManager) -> None:
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


def test_a_batch_needs_no_pandas() -> None:
    code = (
        "import sys, campaign_pipeline.defs.preload\n"
        "from campaign_pipeline.defs.io import TableIOManager, arrow_table\n"
        "from datetime import UTC, datetime\n"
        "tables = TableIOManager()\n"
        "table = arrow_table([{'at': datetime.now(UTC)}], {'at': 'instant'})\n"
        "assert tables.from_bytes(tables.to_bytes(table), list)\n"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_path_is_shown_with_its_protocol_unless_it_is_local(tmp_path: Path) -> None:
    for base in (str(tmp_path), "memory:///outputs"):
        files = PrivateFiles(base)
        assert files.address(files.path("run", "step.json")) == f"{base}/run/step.json"
