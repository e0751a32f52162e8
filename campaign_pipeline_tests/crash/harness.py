"""Parts of a crash test: a world, a provider that records, workers that die, and a final verification."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline.sandbox.server import Addresses
from campaign_pipeline_tests.crash import worker
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.guard import ONLY_THIS_MACHINE

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([worker.__name__])

PATIENCE = {
    # Times are short where real time must pass, and long where the moved clock passes them.
    "CAMPAIGN_LEASE_SECONDS": "5",
    "CAMPAIGN_SEND_TIMEOUT_SECONDS": "1",
    "CAMPAIGN_GENERATION_TIMEOUT_SECONDS": "2",
    "CAMPAIGN_LOOK_UP_PATIENCE_SECONDS": "20",
    "CAMPAIGN_MAX_INLINE_WAIT_SECONDS": "1",
    "CAMPAIGN_MAX_AGE_MINUTES": "1000000",
}

STEP = timedelta(minutes=40)
"""By how much recovery moves the clock each round: past every lease, retry delay and pause."""

ROUNDS = 30

CLAIMERS_END = 40.0
"""Seconds until the server has certainly ended the transaction of a suspended claimer, which it does after 30."""

SECONDS_A_MESSAGE = 0.2
"""How long a worker may take for each message that is left, on a machine that others use too."""


def variables(url: str, sandbox: Addresses, **more: str) -> dict[str, str]:
    """The environment of a worker or of a Dagster run in a crash test."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CAMPAIGN_", "DAGSTER_", "CRASH_", "PYTEST_"))}
    return kept | {
        **ONLY_THIS_MACHINE,
        "CAMPAIGN_DATABASE_URL": url,
        "OPENROUTER_API_KEY": "sk-or-test-key-of-no-account",
        "OPENROUTER_BASE_URL": sandbox.openrouter_url,
        "EVOLUTION_API_URL": sandbox.evolution_url,
        "DAGSTER_DISABLE_TELEMETRY": "1",
        **PATIENCE,
        **more,
    }


class Worker:
    """A process that works until the queue is empty.

    It is forked from a server that has imported the pipeline: an interpreter's start and imports take longer than the
    work of a test.
    """

    def __init__(self, environment: dict[str, str], url: str, *sizes: int) -> None:
        self._end, theirs = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(target=worker.run, args=(theirs, environment, url, *sizes), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it lives; negative where a signal ended it."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still lives."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):  # it ended since, and its server has buried it
                os.kill(self.pid, number)

    def wait(self, seconds: float = 120) -> int:
        """Wait for its end; returns its exit code."""
        self._process.join(seconds)
        assert self.exit_code is not None, f"worker {self.pid} still runs after {seconds:.0f} s"
        return self.exit_code

    def finish(self, seconds: float = 90) -> int:
        """Wait for a successful end; return how many messages it claimed."""
        answer = self._end.recv() if self._end.poll(seconds) else f"it still runs after {seconds:.0f} s"
        self.wait()
        assert isinstance(answer, int), answer
        return answer


def start_worker(
    url: str, sandbox: SandboxProcess, *, batch: int = 100, shard: int = 50, concurrency: int = 10, **more: str
) -> Worker:
    """Start a worker; `more` are variables, for example where it dies."""
    return Worker(variables(url, sandbox, **more), url, batch, shard, concurrency)


def open_messages(world: World) -> int:
    """How many messages can still change."""
    count: int = world.value(
        "SELECT count(*) FROM campaign_messages WHERE status IN ('pending', 'queued', 'generating', 'sending')"
    )
    return count


def recover(world: World, sandbox: SandboxProcess, moved: timedelta = timedelta(0), workers: int = 1) -> timedelta:
    """Run clean workers, moving the clock between rounds, until nothing can change; return the clock's offset."""
    for _ in range(ROUNDS):
        moved += STEP
        world.move_clock(moved)
        patience = 90 + open_messages(world) * SECONDS_A_MESSAGE
        helpers = [start_worker(world.url, sandbox, concurrency=30, batch=1000, shard=500) for _ in range(workers)]
        claimed = sum(helper.finish(patience) for helper in helpers)
        if not open_messages(world):
            return moved
        if not claimed:
            _wait_for_suspended_claimers(world)
    left = world.all(
        "SELECT status, error_class, error_code, last_error, count(*) FROM campaign_messages"
        " WHERE status IN ('pending', 'queued', 'generating', 'sending') GROUP BY 1, 2, 3, 4"
    )
    raise AssertionError(f"recovery did not come to an end: {left}")


def _wait_for_suspended_claimers(world: World) -> None:
    """Wait for the end of their transactions, by this machine's time: until then nobody can take their messages."""
    give_up = time.monotonic() + CLAIMERS_END
    while time.monotonic() < give_up and world.value(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
        " AND pid <> pg_backend_pid()"
    ):
        time.sleep(0.2)


def violations(world: World, record: Iterable[dict[str, Any]]) -> list[str]:
    """Verify every invariant from the database and the provider's record; return the violations in words."""
    accepted = [entry for entry in record if entry["accepted"] and entry["kind"] == "send"]
    parts = world.all(
        "SELECT p.*, m.status AS message_status, m.error_class AS message_class,"
        " m.address AS number FROM campaign_message_parts p"
        " JOIN campaign_messages m ON m.id = p.message_id"
    )
    return [
        *_doubles(accepted),
        *_ledger_against_provider(parts, accepted),
        *_messages(world),
        *_runs(world),
    ]


def _doubles(accepted: list[dict[str, Any]]) -> list[str]:
    """I4: no number gets the same text twice (every lead here has one message)."""
    counts = Counter((entry["instance"], entry["number"], entry["text"]) for entry in accepted)
    return [f"accepted {n} times: {key}" for key, n in counts.items() if n > 1]


def _ledger_against_provider(parts: list[dict[str, Any]], accepted: list[dict[str, Any]]) -> list[str]:
    """I2, I5: parts sent in the ledger were accepted; accepted parts are sent, or reported as unknown."""
    wrong = []
    ids = {entry["provider_message_id"] for entry in accepted}
    went_out = {(entry["number"], entry["text"]) for entry in accepted}
    for part in parts:
        name = f"part {part['message_id']}:{part['part_no']} ({part['status']}, {part['error_code']})"
        if part["status"] == "sent" and part["provider_message_id"] not in ids:
            wrong.append(f"{name} is called sent, but the provider never accepted it")
        if part["status"] in {"planned", "failed"} and (part["number"], part["text"]) in went_out:
            wrong.append(f"{name} is called unsent, but the provider accepted it")
        if part["status"] == "attempting":
            wrong.append(f"{name} is left in the middle of an attempt")
        if part["status"] == "unknown" and (part["message_status"], part["message_class"]) != ("failed", "unknown"):
            wrong.append(f"{name} is unknown, but its message is {part['message_status']}/{part['message_class']}")
    known = {(part["number"], part["text"]) for part in parts}
    return wrong + [f"sent without a row in the ledger: {sent}" for sent in went_out - known]


def _messages(world: World) -> list[str]:
    """Every message shows its state and reason; none is sent with an unsent part."""
    wrong = world.all(
        "SELECT id, status, error_code FROM campaign_messages m WHERE"
        " status IN ('queued', 'generating', 'sending')"
        " OR (status IN ('failed', 'skipped') AND (error_message IS NULL OR error_code IS NULL))"
        " OR (status = 'failed' AND error_class IS NULL)"
        " OR (status = 'sent' AND (sent_at IS NULL OR provider_message_id IS NULL OR EXISTS"
        "     (SELECT 1 FROM campaign_message_parts p WHERE p.message_id = m.id AND p.status <> 'sent')))"
        " OR (status <> 'sent' AND EXISTS (SELECT 1 FROM campaign_message_parts p WHERE p.message_id = m.id)"
        "     AND NOT EXISTS (SELECT 1 FROM campaign_message_parts p WHERE p.message_id = m.id AND p.status <> 'sent'))"
    )
    return [f"message {row['id']} is {row['status']} ({row['error_code']}) without what that takes" for row in wrong]


def _runs(world: World) -> list[str]:
    """I6, I7."""
    wrong = [f"counters differ from a recount: {row}" for row in world.wrong_counters()]
    still = world.all(
        "SELECT id, status FROM campaign_runs r WHERE status = 'running' AND NOT EXISTS"
        " (SELECT 1 FROM campaign_messages m WHERE m.run_id = r.id"
        " AND m.status IN ('pending', 'queued', 'generating', 'sending'))"
    )
    return wrong + [f"run {row['id']} has nothing left to do, but is {row['status']}" for row in still]


def many_messages(world: World, count: int, *, runs: int = 4, inboxes: int = 2, split: bool = True) -> list[UUID]:
    """Due messages spread over runs of some tenants, one inbox each; inserted at once."""
    # Suspects of a death go out one at a time: half a second of "typing" a part would be most of a test.
    world.insert("ai_message_splitter_config", delay_between_messages=1)
    tenants = [world.workspace() for _ in range(inboxes)]
    places = [(workspace, world.inbox(workspace)) for workspace in tenants]
    made = []
    for number in range(runs):
        workspace, inbox = places[number % inboxes]
        config = world.campaign(workspace, inbox, split_messages=split and number % 2 == 1, max_split_parts=3)
        made.append(world.run(config, leads_total=count // runs))
    world.do(
        "WITH l AS (INSERT INTO leads (workspace_id, client_name, phone)"
        " SELECT c.workspace_id, 'Ana ' || n, '+55 11 9' || lpad((40000000 + n)::text, 8, '0')"
        " FROM generate_series(1, %s) n JOIN campaign_runs r ON r.id = (%s::uuid[])[1 + n %% %s]"
        " JOIN campaign_configs c ON c.id = r.config_id RETURNING id, substr(client_name, 5)::int AS n)"
        " INSERT INTO campaign_messages (run_id, lead_id, scheduled_at)"
        " SELECT (%s::uuid[])[1 + n %% %s], id, campaign_now() - interval '1 minute' FROM l",
        count, made, runs, made, runs,
    )  # fmt: skip
    return made
