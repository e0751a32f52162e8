"""The queue in PostgreSQL: batches, contexts, leases, ledger, runs; all through named statements.

`Queue` serves the steps of a batch, with one connection at a time. `ShardStore` serves one shard's delivery, with a
small pool, and group commit for the frequent writes: a message's intent, and its end with the start of the next one.
"""

import asyncio
import contextlib
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from operator import attrgetter, itemgetter
from typing import Any, TypeAlias, TypeVar
from uuid import UUID, uuid4

import orjson
import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb, set_json_dumps, set_json_loads
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_delay, wait_exponential, wait_random

from campaign_pipeline.adapters.group_commit import GroupCommit, Turns
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.adapters.queue_connection import OPTIONS, connect_async, make_readable
from campaign_pipeline.core.claim_budget import Budget, Pace
from campaign_pipeline.core.claim_budget import Scope as PaceScope
from campaign_pipeline.core.model import ClaimedMessage, LeasedMessage, Shard
from campaign_pipeline.core.numbers import KnownNumber, NumberNote
from campaign_pipeline.core.ports import (
    Attempt,
    BeginPart,
    Begun,
    FailureStreak,
    LogLine,
    Pause,
    Scope,
    Settled,
    Settlement,
    StoreUnavailable,
    Systemic,
    Throttled,
    Turn,
    Verdict,
)
from campaign_pipeline.core.results import Result, finished_as
from campaign_pipeline.core.runs import OpenPause, RunningRun, RunState, RunWait, judge_run
from campaign_pipeline.sql import statement

T = TypeVar("T")
Connection = psycopg.AsyncConnection[DictRow]
ConnectionPool: TypeAlias = AsyncConnectionPool[Connection]

set_json_dumps(lambda value: orjson.dumps(value).decode())
set_json_loads(orjson.loads)

# The connection is lost, the server is starting, stopping or failing over (read-only until the new one is promoted), a
# statement took too long, or there was a deadlock. A repeat is safe: every statement names the state that
# it expects.
_TRANSIENT = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    PoolTimeout,
    psycopg.errors.ReadOnlySqlTransaction,
)
_PATIENCE_SECONDS = 60.0
"""How long to wait for an unavailable database: a restart or a fail-over, not an outage."""


async def _patiently(call: Callable[[], Awaitable[T]], patience_seconds: float) -> T:
    """Repeat a call while the database is unavailable. Raises StoreUnavailable if it stays so."""
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(_TRANSIENT),
            wait=wait_exponential(multiplier=0.05, max=2.0) + wait_random(0, 0.1),
            stop=stop_after_delay(patience_seconds),
        ):
            with attempt:
                return await call()
    except RetryError as error:
        cause = str(error.last_attempt.exception()).strip().partition("\n")[0]
        raise StoreUnavailable(f"The database did not answer for {patience_seconds:g} seconds: {cause}") from None
    raise AssertionError("unreachable: the loop above returns or raises")


@contextlib.asynccontextmanager
async def borrowed(pool: ConnectionPool) -> AsyncIterator[Connection]:
    """Yield a connection of the pool; discard it if its server no longer accepts writes."""
    async with pool.connection() as connection:
        try:
            yield connection
        except psycopg.errors.ReadOnlySqlTransaction:
            await connection.close()
            raise


def _json(items: Iterable[Mapping[str, Any]]) -> Jsonb:
    """Encode items for a set-based statement. Characters that PostgreSQL cannot store are dropped, not their text."""
    rows = [{key: value for key, value in item.items() if value is not None} for item in items]
    try:
        written = orjson.dumps(rows)
        if b"\\u0000" not in written:
            return Jsonb(rows, dumps=lambda _: written)
    except orjson.JSONEncodeError:  # half of a surrogate pair, which a provider's JSON may contain
        pass
    return Jsonb(_storable(rows))


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_storable(key): _storable(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(member) for member in value]
    return value


@dataclass(frozen=True)
class BatchOptions:
    """How a batch is claimed."""

    batch_size: int
    owner: str  # the claimer, for people
    lease_seconds: float = 120.0
    max_age: timedelta = timedelta(hours=1)
    max_wait_seconds: float = 60.0  # how long a shard waits inline for one message's turn
    ahead: timedelta = timedelta(0)  # messages planned within this time are claimed too


@dataclass
class Batch:
    """A claim's messages, and what else it did."""

    rows: list[ClaimedMessage] = field(default_factory=list)
    token: str | None = None
    recovered: int = 0  # expired leases that were recovered
    expired: int = 0  # messages that were too old
    cancelled: int = 0  # settled messages of cancelled runs
    suppressed: int = 0  # skipped messages of suppressed leads or numbers
    foreign: int = 0  # skipped messages that reference a row of another workspace
    contacted: int = 0  # skipped or postponed messages whose number was contacted recently
    spread: int = 0  # overdue messages of resumed runs
    waits: list[RunWait] = field(default_factory=list)  # running runs that wait, and why
    fallback_inboxes: dict[UUID, UUID] = field(default_factory=dict)  # runs that use a fallback inbox, and which


_GIVE_WAY = "SET LOCAL lock_timeout = '800ms'"
"""Below the server's deadlock_timeout of one second: in a deadlock between a transaction of ours and one of the CRM,
ours is aborted, and repeated."""

_REFUSED_BATCHES = 20
"""How many batches of refused messages one claim skips, so that its transaction stays short."""


class Statements:
    """Named statements on one database, one connection at a time; waits while the database is unavailable."""

    def __init__(self, url: str, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._url = url
        self._patience = patience_seconds

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        async with await connect_async(self._url) as connection:
            yield connection

    async def _all(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        async def call() -> list[dict[str, Any]]:
            async with self._connection() as connection:
                return await (await connection.execute(statement(name), parameters)).fetchall()

        return await _patiently(call, self._patience)


class Queue(Statements):
    """The queue for the steps of a batch."""

    async def claim_batch(self, options: BatchOptions) -> Batch:
        """Recover expired leases, expire, spread, and lease up to `batch_size` due messages, all in one transaction."""
        return await self._claim(options, keep=True)

    async def try_claim(self, options: BatchOptions) -> Batch:
        """Return what `claim_batch` would do now; everything is rolled back."""
        return await self._claim(options, keep=False)

    async def _claim(self, options: BatchOptions, *, keep: bool) -> Batch:
        async def call() -> Batch:
            async with self._connection() as connection, connection.transaction(force_rollback=not keep):
                # A claimer that hangs or vanishes must not keep its rows locked.
                # One statement: binary results, which some sessions need, allow no more.
                await connection.execute(
                    "SELECT set_config('idle_in_transaction_session_timeout', '30s', true), "
                    "set_config('lock_timeout', '800ms', true)"
                )
                return await _ClaimBatch(connection, options).run()

        return await _patiently(call, self._patience)

    async def get_lead_contexts(self, lead_ids: Sequence[str], workspace_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return everything that the CRM knows of these leads, in one statement.

        Each lead is paired with its requesting workspace, in the same order; another workspace's lead is omitted.
        """
        return await self._all("get_lead_contexts", lead_ids=list(lead_ids), workspace_ids=list(workspace_ids))

    async def get_batch_settings(
        self, config_ids: Sequence[str], workspace_ids: Sequence[str], inbox_ids: Sequence[str]
    ) -> dict[str, Any]:
        """Return what the messages of a batch share."""
        rows = await self._all(
            "get_batch_settings",
            config_ids=list(config_ids),
            workspace_ids=list(workspace_ids),
            inbox_ids=list(inbox_ids),
        )
        settings: dict[str, Any] = rows[0]["settings"]
        return settings

    async def get_inbox_connection(self, inbox_id: str) -> InboxConnection | None:
        """Return how to reach an inbox, with its keys; None if it has no instance."""
        rows = await self._all("get_inbox_connection", inbox_id=inbox_id)
        return InboxConnection.from_row(rows[0]) if rows else None

    async def close_runs(self) -> list[dict[str, Any]]:
        """Close every run that can change no more, after settling cancelled ones; return those closed here."""

        async def call() -> list[dict[str, Any]]:
            async with self._connection() as connection, connection.transaction():
                await connection.execute(_GIVE_WAY)
                await connection.execute(statement("settle_cancelled_runs"))
                return await (await connection.execute(statement("close_runs"))).fetchall()

        return await _patiently(call, self._patience)


class _ClaimBatch:
    """One transaction of `claim_batch`."""

    def __init__(self, connection: Connection, options: BatchOptions) -> None:
        self._connection = connection
        self._options = options
        self._batch = Batch()
        self._budget = Budget({}, {})
        self._paced: list[UUID] = []  # runs that a pace holds back, or did recently

    async def _all(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        return await (await self._connection.execute(statement(name), parameters)).fetchall()

    async def run(self) -> Batch:
        options, batch = self._options, self._batch
        batch.recovered = len(await self._all("recover_leases"))
        batch.cancelled = len(await self._all("settle_cancelled_runs"))
        await self._connection.execute(statement("drop_spent_throttles"))
        await self._connection.execute(statement("drop_old_failure_streaks"))
        await self._connection.execute(statement("release_spending_limits"))
        await self._connection.execute(statement("drop_recovered_paces"))
        pauses = [OpenPause.from_row(row) for row in await self._all("list_pauses")]
        runs = [RunningRun.from_row(row) for row in await self._all("list_running_runs")]
        states = [judge_run(run, pauses, options.max_age, options.ahead) for run in runs]
        await self._spread([state for state in states if state.resumed])
        open_states = [state for state in states if state.wait is None]
        if open_states:
            expired = await self._all(
                "expire_old_messages",
                run_ids=[state.run_id for state in open_states],
                cutoffs=[state.too_old_before for state in open_states],
                max_age_minutes=round(options.max_age.total_seconds() / 60),
            )
            batch.expired = len(expired)
        states = await self._pace(states)
        await self._note_waits(states)
        await self._claim(states, pauses)
        return batch

    async def _spread(self, resumed: list[RunState]) -> None:
        if not resumed:
            return
        # If they were spread while the window is closed, all would be overdue again when it opens.
        open_states = [state for state in resumed if state.wait is None]
        put_off: set[UUID] = set()
        if open_states:
            spread = await self._all(
                "spread_overdue_messages",
                run_ids=[state.run_id for state in open_states],
                intervals=[state.interval_seconds for state in open_states],
                caps=[state.spread_within_seconds for state in open_states],
                closings=[state.closes_at for state in open_states],
            )
            self._batch.spread = len(spread)
            put_off = {row["run_id"] for row in spread if row["put_off"]}
        again_at = [
            (state.closes_at if state.run_id in put_off else None) if state.wait is None else state.resumed_at
            for state in resumed
        ]
        await self._connection.execute(
            statement("mark_runs_resumed"), {"run_ids": [state.run_id for state in resumed], "again_at": again_at}
        )

    async def _note_waits(self, states: list[RunState]) -> None:
        self._batch.waits = [state.wait for state in states if state.wait and state.has_due]
        changed = [state for state in states if state.note_changed]
        if changed:
            await self._connection.execute(
                statement("note_run_waits"),
                {
                    "run_ids": [state.run_id for state in changed],
                    "codes": [state.wait.code if state.wait else None for state in changed],
                    "reasons": [state.wait.reason if state.wait else None for state in changed],
                    "untils": [state.wait.until if state.wait else None for state in changed],
                },
            )

    async def _pace(self, states: list[RunState]) -> list[RunState]:
        """Ask how much the paces of inboxes and campaigns allow; runs without any allowance wait for it."""
        working = [state for state in states if state.wait is None and state.has_due]
        scopes: dict[UUID, list[PaceScope]] = {
            state.run_id: [("inbox", state.inbox_id), ("campaign", state.config_id)]
            for state in working
            if state.inbox_id is not None and state.config_id is not None
        }
        self._paced = [state.run_id for state in states if state.pace_held]
        if not scopes:
            return states
        rows = await self._all(
            "list_paces",
            run_ids=list(scopes),
            inbox_ids=[inbox for (_, inbox), _ in scopes.values()],
            config_ids=[config for _, (_, config) in scopes.values()],
        )
        paces = {pace.scope: pace for pace in map(Pace.from_row, rows)}
        options = self._options
        limits = (options.lease_seconds, options.max_wait_seconds, options.batch_size)
        waits: dict[UUID, RunWait] = {}
        for run_id, members in scopes.items():
            held = [paces[scope] for scope in members if scope in paces and not paces[scope].slots_within(*limits)]
            if held:
                last = max(held, key=lambda pace: pace.free_at)
                waits[run_id] = RunWait(run_id, last.code, last.explain(), last.free_at)
        going = {run_id: members for run_id, members in scopes.items() if run_id not in waits}
        self._budget = Budget.of(paces.values(), going, *limits)
        # In the order of their ids, so that two claimers that update the same runs cannot deadlock.
        self._paced = sorted({*self._paced, *waits, *self._budget.paced})
        return [state.waiting(waits[state.run_id]) if state.run_id in waits else state for state in states]

    async def _claim(self, states: list[RunState], pauses: list[OpenPause]) -> None:
        self._batch.fallback_inboxes = {
            s.run_id: s.active_inbox_id for s in states if s.wait is None and s.active_inbox_id
        }
        token = uuid4()
        await self._claim_probes(states, pauses, token)
        moved = [state for state in states if state.active_inbox_id != state.noted_inbox_id or state.own_inbox_pauses]
        if moved:
            await self._set_active_inboxes({state.run_id: state.active_inbox_id for state in moved})
        left = self._options.batch_size - len(self._batch.rows)
        while left > 0 and (quotas := self._budget.quotas(left, random.random)):
            rows = await self._claim_rows(quotas, left, token)
            self._budget.take(quotas, Counter(row.run_id for row in rows))
            self._batch.rows += rows
            left -= len(rows)
        if self._paced:
            await self._connection.execute(statement("note_pace_holds"), {"run_ids": self._paced})

    async def _set_active_inboxes(self, inboxes: Mapping[UUID, UUID | None]) -> None:
        """Set the fallback inbox of some runs (None: their own) for the messages claimed from here on."""
        await self._connection.execute(
            statement("note_active_inboxes"), {"run_ids": list(inboxes), "inbox_ids": list(inboxes.values())}
        )

    async def _claim_probes(self, states: list[RunState], pauses: list[OpenPause], token: UUID) -> None:
        """Let one message of one run probe each paused scope; the others wait for its result."""
        probe_due = {(pause.scope, pause.scope_id) for pause in pauses if pause.probe_due}
        probes: dict[UUID, tuple[tuple[str, str], ...]] = {}
        back: dict[UUID, UUID | None] = {}  # runs whose probe uses the inbox that they had to leave
        for state in states:
            if not state.has_due:
                continue
            if state.may_probe(probe_due):
                probes[state.run_id] = state.pauses
            elif state.may_probe_own_inbox(probe_due):
                probes[state.run_id] = state.own_inbox_pauses
                back[state.run_id] = None
            probe_due -= set(probes.get(state.run_id, ()))
        if not probes:
            return
        if back:
            await self._set_active_inboxes(back)
        tried = [message for pause in pauses if pause.probe_due for message in pause.tried_message_ids]
        rows = await self._claim_rows(dict.fromkeys(probes, 1), self._options.batch_size, token, tried)
        for row in rows:
            for scope, scope_id in probes.get(row.run_id, ()):
                await self._connection.execute(
                    statement("begin_probe"),
                    {"scope": scope, "scope_id": scope_id, "message_id": row.message_id},
                )
        self._batch.rows += rows

    async def _claim_rows(
        self, quotas: Mapping[UUID, int], most: int, token: UUID, tried: list[UUID] | None = None
    ) -> list[ClaimedMessage]:
        """Lease due messages up to each run's quota; with `tried`, one probe per scope, not these messages."""
        options = self._options
        if self._batch.token is None:
            self._batch.token = str(token)
            await self._connection.execute(statement("drop_past_lead_days"))
        # Repeat if all of a batch was refused: an empty batch means that nothing is due.
        for _ in range(_REFUSED_BATCHES):
            claimed = await self._all(
                "claim_messages",
                run_ids=list(quotas),
                quotas=list(quotas.values()),
                batch_size=most,
                token=token,
                owner=options.owner,
                lease_seconds=options.lease_seconds,
                tried_ids=tried,
                ahead_seconds=options.ahead.total_seconds(),
            )
            rows = await self._without_refused([ClaimedMessage.from_row(row) for row in claimed])
            if rows or not claimed:
                return rows
        return []

    async def _without_refused(self, claimed: list[ClaimedMessage]) -> list[ClaimedMessage]:
        """End claimed messages that may never be sent, and postpone those that may not be sent now."""
        rows = await self._all("skip_refused_messages", message_ids=[row.message_id for row in claimed])
        skipped = {row["id"]: row["code"] for row in rows}
        foreign = sum(code == Verdict.FOREIGN_WORKSPACE for code in skipped.values())
        self._batch.foreign += foreign
        self._batch.suppressed += len(skipped) - foreign
        left = [row for row in claimed if row.message_id not in skipped]
        held = await self._all("hold_contacted_messages", message_ids=[row.message_id for row in left])
        self._batch.contacted += len(held)
        put_off = {row["id"] for row in held}
        return [row for row in left if row.message_id not in put_off]


@dataclass(frozen=True)
class _Start:
    """A message that wants to ask the model."""

    id: str


@dataclass(frozen=True)
class _End:
    """The result of a message, or of a part of it."""

    id: str
    settlement: Settlement


class LeaseRenewals(Statements):
    """Renews the leases of one holder; see `core.ports.LeaseStore`. Connects for each renewal: they are rare."""

    def __init__(self, url: str, token: UUID, lease_seconds: float, patience_seconds: float) -> None:
        super().__init__(url, patience_seconds)
        self._token = token
        self._lease_seconds = lease_seconds

    async def renew(self, message_ids: Sequence[str]) -> set[str]:
        """See LeaseStore."""
        ids = [UUID(message_id) for message_id in message_ids]
        rows = await self._all("renew_leases", ids=ids, token=self._token, lease_seconds=self._lease_seconds)
        return {str(row["id"]) for row in rows}


class ShardStore:
    """The queue for one shard: `core.ports.DeliveryStore` under the shard's own lease token."""

    def __init__(
        self,
        pool: AsyncConnectionPool[Connection],
        url: str,
        shard: Shard,
        owner: str,
        lease_seconds: float,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._pool = pool
        self._url = url
        self._patience = patience_seconds
        self._shard = shard
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._token = uuid4()
        self._lines: list[LogLine] = []
        self._notes: dict[str, list[NumberNote]] = {}  # by provider
        self._pauses: tuple[float, list[Pause]] = (float("-inf"), [])
        turns = Turns()
        # At most one item per message in a group: a set-based statement would apply only one of two.
        self._beginning = GroupCommit[dict[str, Any], Begun](self._begin_group, key=itemgetter("id"), turns=turns)
        # Together, because one message ends when another one starts: one round trip and one commit for both.
        self._turning = GroupCommit[_Start | _End, Verdict | Settled](
            self._turn_group, key=attrgetter("id"), turns=turns
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        url: str,
        shard: Shard,
        owner: str,
        lease_seconds: float,
        patience_seconds: float = _PATIENCE_SECONDS,
        pool: ConnectionPool | None = None,
    ) -> AsyncIterator["ShardStore"]:
        """Serve one shard, over its own or a shared pool; write the rest of its log at the end.

        `patience_seconds` is how long each call waits for an unavailable database.
        """
        async with contextlib.AsyncExitStack() as stack:
            if pool is None:
                pool = await stack.enter_async_context(cls.pool(url, patience_seconds))
            store = cls(pool, url, shard, owner, lease_seconds, patience_seconds)
            try:
                yield store
            finally:
                with contextlib.suppress(StoreUnavailable):
                    await store.flush()

    @staticmethod
    def pool(url: str, patience_seconds: float = _PATIENCE_SECONDS) -> ConnectionPool:
        """Create a small pool, not yet opened."""
        return AsyncConnectionPool(
            url,
            min_size=1,
            max_size=4,
            open=False,
            timeout=min(10.0, patience_seconds),
            kwargs={**OPTIONS, "autocommit": True, "row_factory": dict_row},
            connection_class=psycopg.AsyncConnection[DictRow],
            configure=make_readable,
        )

    def renewals(self) -> LeaseRenewals:
        """Return the renewer of this shard's leases, for any thread and event loop."""
        # A renewal that waited longer than until the next one would come too late.
        patience = min(self._patience, self._lease_seconds / 3)
        return LeaseRenewals(self._url, self._token, self._lease_seconds, patience)

    async def _all(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        async def call() -> list[dict[str, Any]]:
            async with borrowed(self._pool) as connection:
                return await (await connection.execute(statement(name), parameters)).fetchall()

        return await _patiently(call, self._patience)

    async def take_over(self) -> tuple[list[LeasedMessage], dict[str, str], datetime | None]:
        """Put the shard's messages under our own token.

        Returns the messages that are now ours, why others were left (message -> verdict), and the database's time.
        """
        ids = [UUID(message_id) for message_id in self._shard.message_ids]
        verdicts = await self._all(
            "take_over_messages",
            ids=ids,
            batch_token=UUID(self._shard.batch_token),
            token=self._token,
            owner=self._owner,
            lease_seconds=self._lease_seconds,
        )
        verdict_of = {row["message_id"]: row["verdict"] for row in verdicts}
        # In the shard's order, which is by due time.
        taken = [message_id for message_id in ids if verdict_of[message_id] == "taken"]
        left = {str(message_id): verdict for message_id, verdict in verdict_of.items() if verdict != "taken"}
        messages: list[LeasedMessage] = []
        now: datetime | None = None
        # In thousands: all rows of a large shard at once would be its largest use of memory.
        for first in range(0, len(taken), 1000):
            rows = await self._all("read_leased_messages", ids=taken[first : first + 1000], token=self._token)
            now = now or (rows[0]["now"] if rows else None)
            messages += [LeasedMessage.from_row(row) for row in rows]
        return messages, left, now

    async def finished(self, message_ids: Sequence[str]) -> list[tuple[str, Result]]:
        """Return which of these messages are finished, with their results from the ledger, whoever delivered them."""
        rows = await self._all("read_finished_messages", ids=[UUID(message_id) for message_id in message_ids])
        return [(str(row["id"]), finished_as(row)) for row in rows]

    async def with_last_inbound(self, messages: Sequence[LeasedMessage], hours: float) -> list[LeasedMessage]:
        """Return the messages with the time when their leads last wrote to this inbox, if within some hours."""
        ids = [UUID(message.id) for message in messages]
        inbox_id = UUID(self._shard.inbox_id)
        rows = await self._all("read_last_inbound", ids=ids, inbox_id=inbox_id, hours=math.ceil(hours))
        last = {str(row["message_id"]): float(row["last_inbound_at"]) for row in rows}
        return [replace(message, last_inbound_at=last.get(message.id)) for message in messages]

    async def start_generating(self, message_id: str) -> Verdict:
        """See DeliveryStore."""
        verdict = await self._turning.submit(_Start(message_id))
        assert isinstance(verdict, Verdict)
        return verdict

    async def begin_part(self, begin: BeginPart) -> Begun:
        """See DeliveryStore."""
        item = dict(vars(begin))
        item |= {"id": item.pop("message_id"), "token": str(self._token), "inbox_id": self._shard.inbox_id}
        item["template"] = None if begin.template is None else asdict(begin.template)
        item["calls"] = [asdict(call) for call in begin.calls]
        return await self._beginning.submit(item)

    async def keep_text(self, begin: BeginPart) -> None:
        """See DeliveryStore."""
        await self.begin_part(replace(begin, part_no=0))

    async def _begin_group(self, items: Sequence[dict[str, Any]]) -> list[Begun]:
        rows = await self._all("begin_parts", items=_json(items))
        begun = {
            str(row["message_id"]): Begun(
                Verdict(row["verdict"]),
                str(row["conversation_id"]) if row["conversation_id"] else None,
                Turn(row["wait_seconds"], row["wait_code"]) if row["wait_seconds"] is not None else None,
                row["grace_seconds"],
            )
            for row in rows
        }
        return [begun[item["id"]] for item in items]

    async def settle(self, settlement: Settlement) -> Settled:
        """See DeliveryStore."""
        settled = await self._turning.submit(_End(settlement.message_id, settlement))
        assert isinstance(settled, Settled)
        return settled

    async def _turn_group(self, items: Sequence[_Start | _End]) -> list[Verdict | Settled]:
        token = str(self._token)
        ends, starts = [], []
        for item in items:
            if isinstance(item, _End):
                fields = dict(vars(item.settlement))
                ends.append(fields | {"id": fields.pop("message_id"), "token": token})
            else:
                starts.append({"id": item.id, "token": token})
        if not starts:
            rows = await self._all("settle", ends=_json(ends))
        elif not ends:
            rows = await self._all("start_generating", starts=_json(starts))
        else:
            rows = await self._all("settle_and_start", ends=_json(ends), starts=_json(starts))
        answers: dict[str, Verdict | Settled] = {
            str(row["message_id"]): Verdict(row["verdict"])
            if row.get("verdict")
            else Settled(row["applied"], row["moved"], row["final"])
            for row in rows
        }
        return [answers[item.id] for item in items]

    async def pauses(self) -> Sequence[Pause]:
        """See DeliveryStore."""
        now = asyncio.get_running_loop().time()
        if now - self._pauses[0] > 1.0:
            rows = await self._all("read_pauses")
            found = [
                Pause(
                    Scope(r["scope"]), r["scope_id"], r["kind"], r["code"], r["reason"], max(0.0, float(r["seconds"]))
                )
                for r in rows
            ]
            self._pauses = (now, found)
        return self._pauses[1]

    async def open_pause(
        self, scope: Scope, scope_id: str, failure: Throttled | Systemic, message_id: str | None = None
    ) -> float:
        """See DeliveryStore."""
        rows = await self._all(
            "open_pause",
            scope=scope.value,
            scope_id=scope_id,
            kind="systemic" if isinstance(failure, Systemic) else "throttled",
            code=failure.code,
            reason=failure.reason,
            seconds=failure.retry_after,
            message_id=UUID(message_id) if message_id else None,
        )
        self._pauses = (float("-inf"), [])
        return max(0.0, float(rows[0]["seconds"])) if rows else 0.0

    async def note_failure(self, scope: Scope, scope_id: str, code: str, recipient: str) -> FailureStreak:
        """See DeliveryStore."""
        rows = await self._all(
            "note_failure", scope=scope.value, scope_id=scope_id, code=code, recipient=UUID(recipient)
        )
        return FailureStreak(rows[0]["failures"], rows[0]["recipients"])

    async def forget_failures(self, scope: Scope, scope_id: str) -> None:
        """See DeliveryStore."""
        await self._all("forget_failures", scope=scope.value, scope_id=scope_id)

    async def next_turn(self, message_id: str) -> Turn:
        """See DeliveryStore."""
        rows = await self._all("peek_turn", message_id=UUID(message_id), inbox_id=UUID(self._shard.inbox_id))
        return Turn(float(rows[0]["wait_seconds"]), rows[0]["wait_code"] or "paced")

    async def slow_down(self, inbox_id: str) -> float:
        """See DeliveryStore."""
        rows = await self._all("slow_inbox_down", inbox_id=UUID(inbox_id))
        return float(rows[0]["factor"])

    async def known_sends(self, inbox_id: str, attempt: Attempt) -> Attempt:
        """See DeliveryStore."""
        rows = await self._all(
            "find_control_part",
            inbox_id=UUID(inbox_id),
            address=attempt.envelope.address,
            started_at=attempt.started_at,
            message_id=UUID(attempt.envelope.message_id),
            text=attempt.envelope.text,
        )
        return replace(
            attempt,
            control_provider_id=rows[0]["control_provider_id"],
            taken_provider_ids=frozenset(rows[0]["taken_provider_ids"]),
            conversation_ids=tuple(rows[0]["conversation_ids"]),
        )

    def log(self, line: LogLine) -> None:
        """See DeliveryStore. Kept in memory until the next flush."""
        self._lines.append(line)

    async def known_numbers(
        self, provider: str, numbers: Sequence[str], days: float, missing_days: float
    ) -> Sequence[KnownNumber]:
        """See DeliveryStore."""
        rows = await self._all(
            "read_number_checks", provider=provider, numbers=list(numbers), days=days, missing_days=missing_days
        )
        return [KnownNumber.from_row(row) for row in rows]

    def note_number(self, provider: str, note: NumberNote) -> None:
        """See DeliveryStore. Kept in memory until the next flush; if lost with us, the number is checked again."""
        self._notes.setdefault(provider, []).append(note)

    async def _flush_numbers(self) -> None:
        pending, self._notes = self._notes, {}
        for provider, notes in pending.items():
            leads = {note.lead_id: note for note in notes if note.lead_id and note.reachable is not None}
            parameters = {
                "provider": provider,
                "inbox_id": UUID(self._shard.inbox_id),
                "checks": _json(vars(known) for known in {note.known.number: note.known for note in notes}.values()),
                "leads": _json(
                    {"lead_id": lead_id, "reachable": note.reachable, "jid": note.known.jid}
                    for lead_id, note in leads.items()
                ),
            }
            # If the CRM refuses this (by its own constraint), the heartbeat must survive; a check can be repeated.
            with contextlib.suppress(psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError):
                await self._do("keep_number_checks", parameters)

    async def flush(self) -> None:
        """See DeliveryStore."""
        await self._flush_numbers()
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            await self._write(lines)
        except StoreUnavailable:
            self._lines = lines + self._lines  # with the next flush
            raise
        except psycopg.Error:
            # A line that the CRM's table refuses (by its own constraint, or for an invalid id) must not affect other
            # lines or the heartbeat that writes them.
            for line in lines:
                with contextlib.suppress(psycopg.Error):
                    await self._write([line])

    async def _write(self, lines: Sequence[LogLine]) -> None:
        await self._do("write_logs", {"lines": _json(lines)})

    async def _do(self, name: str, parameters: Mapping[str, Any]) -> None:
        async def call() -> None:
            async with borrowed(self._pool) as connection:
                await connection.execute(statement(name), parameters)

        await _patiently(call, self._patience)
