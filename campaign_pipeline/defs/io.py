"""Storage of step outputs: private files that other processes, re-runs and authorised people can read.

Tables (of pyarrow or pandas) become Parquet, handles become JSON. Both may contain personal data, so
local files are 0600 in folders of 0700; remote stores (`s3://…`) have their own rules.
"""

import contextlib
import io
import os
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import dagster as dg
import fsspec
import orjson
from upath import UPath

from campaign_pipeline.adapters.environment import Environment

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

PREVIEW_COLUMNS = ("message_id", "run_id", "lead_id", "inbox_id", "workspace_id", "due_at", "retry_count")
"""Columns that may be shown in the UI: ids and times, no personal data."""

PREVIEW_ROWS = 5

CELL_CHARS = 80

ROWS_PER_GROUP = 250
"""Rows that `Rows` reads at once."""

INSTANT = "instant"
"""The kind of a column with instants, of UTC and to the microsecond; see `arrow_table`."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

DRAFT = ".part"
"""Suffix of a file until it is complete."""

SHOWN_TROUBLES = 5

DRAFT_SECONDS = 5.0
"""After which no process is writing a draft any more: a file takes far less than a second."""


class UnreachableFilesError(OSError):
    """Some files could not be read or written; the message is one sentence with the first of them."""


class PrivateFiles:
    """A folder on any file system that fsspec supports, with private modes and atomic writes."""

    def __init__(self, base: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(base)
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))

    def path(self, *parts: str) -> str:
        """Return a path below the folder."""
        return "/".join((self._root.rstrip("/"), *parts))

    def write(self, path: str, content: bytes) -> None:
        """Write a whole file; on a local disk nobody sees a partial file, and other users cannot read it."""
        parent = path.rpartition("/")[0]
        if not self._local:
            self._fs.makedirs(parent, exist_ok=True)
            self._fs.pipe_file(path, content)
            return
        # One by one: with `parents=True` the mode would apply to the last folder only.
        for folder in reversed([Path(parent), *Path(parent).parents]):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
        draft = f"{path}.{os.getpid()}{DRAFT}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(draft).replace(path)

    def read(self, path: str) -> bytes:
        """Read a whole file."""
        content: bytes = self._fs.cat_file(path)
        return content

    def forget_lead(self, lead_id: str) -> int:
        """Remove a lead's rows from every table, and delete the drafts of dead processes.

        Returns how many files were rewritten or deleted. Handles and reports contain only ids and counts. A run that
        is executed again finds the lead deleted. Raises UnreachableFilesError after visiting every file, for those that
        could not be read or written.
        """
        changed = 0
        troubles: list[str] = []
        # Drafts first: a draft that becomes a file meanwhile is visited as a file.
        steps: dict[str, Callable[[str], bool]] = {
            DRAFT: self._drop_draft,
            ".parquet": partial(self._forget_in_table, lead_id),
        }
        for ending, step in steps.items():
            for path in self._fs.find(self._root) if self._fs.isdir(self._root) else []:
                if path.endswith(ending):
                    with _noting(path, troubles):
                        changed += step(path)
        if troubles:
            shown = "; ".join(troubles[:SHOWN_TROUBLES])
            raise UnreachableFilesError(
                f"{len(troubles)} output files may still hold lead {lead_id}; make them readable or delete them, and "
                f"erase it again: {shown}"
            )
        return changed

    def _forget_in_table(self, lead_id: str, path: str) -> bool:
        """Rewrite one table without a lead's rows; return False if it has none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.ParquetFile(pa.BufferReader(self.read(path))).read()
        if "lead_id" not in table.column_names:
            return False
        others = [str(lead) != lead_id for lead in table.column("lead_id").to_pylist()]
        if all(others):
            return False
        buffer = io.BytesIO()
        # By a mask: it keeps the columns' types if no row remains.
        pq.write_table(table.filter(pa.array(others, pa.bool_())), buffer, row_group_size=ROWS_PER_GROUP)
        self.write(path, buffer.getvalue())
        return True

    def _drop_draft(self, path: str) -> bool:
        """Delete a draft that no process is writing any more; return False if it became the file meanwhile."""
        age = time.time() - _instant(self._fs.modified(path)).timestamp()
        if age < DRAFT_SECONDS:
            time.sleep(DRAFT_SECONDS - max(0.0, age))
        try:
            self._fs.rm_file(path)
        except FileNotFoundError:
            return False
        return True

    def delete_older_than(self, before: datetime) -> tuple[int, int]:
        """Delete the outputs of runs that have written nothing since; returns how many runs and files.

        Only folders named by a run id, as Dagster names them: the base may contain other things. An empty folder's own
        time counts: its run may be about to write its first file.
        """
        runs = files = 0
        for folder in self._fs.ls(self._root, detail=False) if self._fs.isdir(self._root) else []:
            if not _RUN_ID.fullmatch(folder.rstrip("/").rpartition("/")[2]):
                continue
            paths = self._fs.find(folder)
            if all(_instant(self._fs.modified(path)) < before for path in paths or [folder]):
                self._fs.rm(folder, recursive=True)
                runs, files = runs + 1, files + len(paths)
        return runs, files


@contextlib.contextmanager
def _noting(path: str, troubles: list[str]) -> Iterator[None]:
    """Record why a file is unreachable; a file that was cleaned up meanwhile is no trouble."""
    try:
        yield
    except FileNotFoundError:
        pass
    except Exception as error:
        import pyarrow as pa

        if not isinstance(error, OSError | pa.ArrowException):
            raise
        troubles.append(f"{path} ({type(error).__name__})")


_RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _instant(modified: datetime) -> datetime:
    """Return an aware instant; a store without a time zone means UTC."""
    return modified if modified.tzinfo else modified.replace(tzinfo=UTC)


class Rows(Sequence[dict[str, Any]]):
    """The rows of a table, read in groups on demand and soon dropped.

    For sequential passes over large tables: as dicts, the contexts of ten thousand leads take 50 MB. Who needs only
    some columns reads these with `column`, without making a row of each.
    """

    def __init__(self, content: bytes) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(pa.BufferReader(content))
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts: list[int] = [0, *accumulate(sizes)]
        self._group: Callable[[int], list[dict[str, Any]]] = lru_cache(maxsize=8)(self._read_group)

    def _read_group(self, group: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._file.read_row_group(group, use_threads=False).to_pylist()
        return rows

    def column(self, name: str) -> list[Any]:
        """Return all values of one column."""
        values: list[Any] = self._file.read([name], use_threads=False).column(name).to_pylist()
        return values

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, place: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        group = bisect_right(self._starts, place) - 1
        return self._group(group)[place - self._starts[group]]


def column(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """Return one column of some rows."""
    return rows.column(name) if isinstance(rows, Rows) else [row[name] for row in rows]


def arrow_table(columns: Mapping[str, Iterable[Any]], kinds: Mapping[str, str]) -> "pa.Table":
    """Return a table of these columns; `kinds` are pyarrow's names of types, or `instant`. Ids become strings.

    By way of JSON: pyarrow's own conversion of Python objects imports pandas, which takes a fifth of a second and which
    no step of a batch needs. It is one object with a list per column: an object per row takes three times as long.
    """
    import pyarrow as pa
    import pyarrow.json as pa_json

    types = (pa.timestamp("us", "UTC") if kind == INSTANT else pa.type_for_alias(kind) for kind in kinds.values())
    schema = pa.schema([(name, pa.list_(kind)) for name, kind in zip(kinds, types, strict=True)])
    written = orjson.dumps({name: [_in_utc(value) for value in columns[name]] for name in kinds})
    lists = pa_json.read_json(
        pa.BufferReader(written),
        # In one block: an object must not be longer than a block.
        read_options=pa_json.ReadOptions(use_threads=False, block_size=len(written)),
        parse_options=pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
    )
    return pa.table({name: lists.column(name).chunk(0).values for name in kinds})


def _in_utc(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _rows(table: "pa.Table") -> list[dict[str, Any]]:
    """Return a table's rows as dicts; pyarrow's own conversion of instants imports pandas."""
    import pyarrow as pa

    columns = [
        _instants(column) if column.type == pa.timestamp("us", "UTC") else column.to_pylist()
        for column in table.itercolumns()
    ]
    names = table.column_names  # asked once: pyarrow makes the list anew each time
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _instants(column: "pa.ChunkedArray") -> list[datetime | None]:
    import pyarrow as pa

    counts = (count for chunk in column.chunks for count in chunk.view(pa.int64()).to_pylist())
    return [None if count is None else _EPOCH + timedelta(microseconds=count) for count in counts]


class _PrivateIOManager(dg.UPathIOManager):
    """Stores outputs under CAMPAIGN_OUTPUTS, at Dagster's paths: by run and step, or by asset key."""

    def __init__(self) -> None:
        base = Environment.read().outputs_path
        self._files = PrivateFiles(base)
        super().__init__(base_path=UPath(base))

    def make_directory(self, path: UPath) -> None:
        """Do nothing: PrivateFiles creates each folder with its mode."""


class TableIOManager(_PrivateIOManager):
    """Writes tables as private Parquet files.

    An input may request `list` (rows as dicts) or `Rows`; these do not need pandas.
    """

    extension = ".parquet"

    def dump_to_path(self, context: dg.OutputContext, obj: "pa.Table | pd.DataFrame", path: UPath) -> None:
        """Write one table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = obj if isinstance(obj, pa.Table) else pa.Table.from_pandas(obj, preserve_index=False)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=ROWS_PER_GROUP)
        self._files.write(path.path, buffer.getvalue())

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Any:
        """Read one table, as rows or as a DataFrame."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        content, wanted = self._files.read(path.path), context.dagster_type.typing_type
        if wanted is Rows:
            return Rows(content)
        table = pq.ParquetFile(pa.BufferReader(content)).read()  # not read_table, which imports much for one file
        return table.to_pandas() if getattr(wanted, "__name__", "") == "DataFrame" else _rows(table)

    def get_metadata(self, context: dg.OutputContext, obj: "pa.Table | pd.DataFrame") -> dict[str, Any]:
        """Return rows and columns for Dagster's catalogue."""
        return table_metadata(obj)


class HandleIOManager(_PrivateIOManager):
    """Writes small JSON handles (ids, settings, counts) as private, readable files."""

    extension = ".json"

    def dump_to_path(self, context: dg.OutputContext, obj: Mapping[str, Any] | None, path: UPath) -> None:
        """Write one handle."""
        self._files.write(path.path, orjson.dumps(obj, default=str))

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Any:
        """Read one handle."""
        return orjson.loads(self._files.read(path.path))


@dg.io_manager(description="Tables of steps: private Parquet files under CAMPAIGN_OUTPUTS.")
def private_tables() -> TableIOManager:
    """Return the IO manager for tables under CAMPAIGN_OUTPUTS."""
    return TableIOManager()


@dg.io_manager(description="Ids, settings and counts of steps: private JSON files under CAMPAIGN_OUTPUTS.")
def private_handles() -> HandleIOManager:
    """Return the IO manager for handles under CAMPAIGN_OUTPUTS."""
    return HandleIOManager()


def table_metadata(table: "pa.Table | pd.DataFrame") -> dict[str, Any]:
    """Return the size and columns of a table, under the names of Dagster's catalogue, without values of rows."""
    # A DataFrame has names and types in one series, a table of pyarrow in its schema.
    kinds = table.dtypes.items() if hasattr(table, "dtypes") else ((field.name, field.type) for field in table.schema)
    columns = [dg.TableColumn(str(name), str(kind)) for name, kind in kinds]
    return {"dagster/row_count": len(table), "dagster/column_schema": dg.TableSchema(columns)}


def preview(rows: Sequence[Mapping[str, Any]]) -> dg.MarkdownMetadataValue:
    """Return the first rows of a batch: ids and times only, no personal data."""
    shown = [[row[column] for column in PREVIEW_COLUMNS] for row in rows[:PREVIEW_ROWS]]
    return dg.MetadataValue.md(_markdown(PREVIEW_COLUMNS, shown))


def markdown_table(frame: "pd.DataFrame") -> str:
    """Format a small table; pandas' own method needs another package."""
    return _markdown(list(frame.columns), frame.to_numpy())


def _markdown(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [[_cell(value) for value in row] for row in rows]
    if not lines:
        return "no rows"
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *lines])


def _cell(value: Any) -> str:
    """Escape a value so that it stays in its cell as text: a typed name may look like an image link."""
    missing = value is None or value != value
    text = "" if missing else " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]<>()#!|&~])", r"\\\1", text if len(text) <= CELL_CHARS else f"{text[:CELL_CHARS]}…")
