"""The queue for the steps of a batch: claims, contexts, settings, closing; one connection at a time."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.adapters.statements import Connection, Statements, id_array, patiently
from campaign_pipeline.core.claim_budget import Budget, Pace
from campaign_pipeline.core.claim_budget import Scope as PaceScope
from campaign_pipeline.core.model import ClaimedMessage
from campaign_pipeline.core.ports import Verdict
from campaign_pipeline.core.runs import OpenPause, RunningRun, RunState, RunWait, judge_run
from campaign_pipeline.sql import statement


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


_OWN_SETTINGS = "SELECT set_config('lock_timeout', '800ms', true), set_config('jit', 'off', true)"
"""Of a transaction that changes many messages. One statement: binary results, which some sessions need, allow no more.

The time-out is below the server's deadlock_timeout of one second: in a deadlock between a transaction of ours and one
of the CRM, ours is aborted, and repeated. Compiling a plan takes longer than executing it: none of these statements
computes much, however high its cost is estimated.
"""

_REFUSED_BATCHES = 20
"""How many batches of refused messages one claim skips, so that its transaction stays short."""


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
                await connection.execute(
                    f"{_OWN_SETTINGS}, set_config('idle_in_transaction_session_timeout', '30s', true)"
                )
                return await _ClaimBatch(connection, options).run()

        return await patiently(call, self._patience)

    async def get_lead_contexts(self, lead_ids: Sequence[str], workspace_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return everything that the CRM knows of these leads, in one statement.

        Each lead is paired with its requesting workspace, in the same order; another workspace's lead is omitted.
        """
        return await self._all("get_lead_contexts", lead_ids=id_array(lead_ids), workspace_ids=id_array(workspace_ids))

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
                await connection.execute(_OWN_SETTINGS)
                await connection.execute(statement("settle_cancelled_runs"))
                return await (await connection.execute(statement("close_runs"))).fetchall()

        return await patiently(call, self._patience)


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
        runs = [RunningRun.from_row(row) for row in await self._all("list_running_runs", run_id=None)]
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
            rows = await self._without_refused([ClaimedMessage(**row) for row in claimed])
            if rows or not claimed:
                return rows
        return []

    async def _without_refused(self, claimed: list[ClaimedMessage]) -> list[ClaimedMessage]:
        """End claimed messages that may never be sent, and postpone those that may not be sent now."""
        rows = await self._all("skip_refused_messages", message_ids=id_array(row.message_id for row in claimed))
        skipped = {row["id"]: row["code"] for row in rows}
        foreign = sum(code == Verdict.FOREIGN_WORKSPACE for code in skipped.values())
        self._batch.foreign += foreign
        self._batch.suppressed += len(skipped) - foreign
        left = [row for row in claimed if row.message_id not in skipped]
        held = await self._all("hold_contacted_messages", message_ids=id_array(row.message_id for row in left))
        self._batch.contacted += len(held)
        put_off = {row["id"] for row in held}
        return [row for row in left if row.message_id not in put_off]
