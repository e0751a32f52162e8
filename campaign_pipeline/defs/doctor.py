"""Health checks of Dagster, the keys and the inboxes; `python -m campaign_pipeline.defs.doctor`.

Runs in its own process for `campaign-pipeline doctor`: it loads Dagster, and prints its findings as one JSON array. It
asks the providers whether keys and connections work; nothing is generated or sent.
"""

import asyncio
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg
import httpx
import orjson
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from campaign_pipeline.adapters.connection import model_url
from campaign_pipeline.adapters.database import queue_url
from campaign_pipeline.adapters.environment import Environment, OperationsSettings, SettingError
from campaign_pipeline.adapters.findings import Finding, State
from campaign_pipeline.adapters.http import http_client
from campaign_pipeline.adapters.openrouter import OWN_KEY, SHARED_KEY, check_key
from campaign_pipeline.adapters.operator import Operator
from campaign_pipeline.adapters.queue import Queue
from campaign_pipeline.adapters.schema import DatabaseUnusable
from campaign_pipeline.core.overview import InboxOverview
from campaign_pipeline.core.ports import NotReady, StoreUnavailable
from campaign_pipeline.defs.days import at
from campaign_pipeline.defs.resources import channel_of
from campaign_pipeline.defs.tags import WORK

SCHEDULE = "process_campaign_queue_every_minute"
AT_ONCE = 10
"""Inboxes that are checked at the same time."""

PATIENCE = 15.0
"""Seconds for one provider's answer."""


def dagster_findings(instance: DagsterInstance) -> Iterator[Finding]:
    """Check storage, daemons, the sending schedule, and the queue of runs."""
    yield Finding("Dagster", State.FINE, f"{dg.__version__}, storage {type(instance.run_storage).__name__}")
    sends = _is_on(instance)
    by_schedule = f"{SCHEDULE} is {'on' if sends else 'off'}"
    statuses = instance.get_daemon_statuses()
    dead = sorted(kind for kind, status in statuses.items() if status.required and not status.healthy)
    if dead:
        beats = [status.last_heartbeat.timestamp for status in statuses.values() if status.last_heartbeat]
        newest = datetime.fromtimestamp(max(beats), UTC) if beats else None
        last = f"; the last heartbeat was at {at(newest)}" if newest else ""
        state = State.STOPS if sends else State.LOOK
        todo = "Start dagster-daemon (`campaign-pipeline dev` has one): schedules and queued runs need it."
        yield Finding("daemon", state, f"not running{last}", todo)
    else:
        yield Finding("daemon", State.FINE, "all daemons have a heartbeat")
    todo = "" if sends else "Switch it on in the UI, or set CAMPAIGN_SCHEDULES=on; until then only people send."
    yield Finding("schedule", State.FINE if sends else State.LOOK, by_schedule, todo)
    queued = instance.get_runs_count(RunsFilter(statuses=[DagsterRunStatus.QUEUED]))
    working = instance.get_runs_count(RunsFilter(statuses=[DagsterRunStatus.STARTED]))
    limits = instance.get_concurrency_config().run_queue_config
    told = "no run queue"
    if limits is not None:
        by_tag = [f"{each['value']} {each['limit']}" for each in limits.tag_concurrency_limits if each["key"] == WORK]
        told = f"at most {limits.max_concurrent_runs} runs at once" + (f" ({', '.join(by_tag)})" if by_tag else "")
    text = f"{working} runs at work, {queued} queued; {told}"
    stuck = bool(queued) and bool(dead)
    yield Finding("runs", State.STOPS if stuck else State.FINE, text, "Start dagster-daemon." if stuck else "")


def _is_on(instance: DagsterInstance) -> bool:
    """Return whether the sending schedule is on: by its switch in the UI, else by the environment."""
    states = [state for state in instance.all_instigator_state() if state.instigator_name == SCHEDULE]
    told = [state.is_running for state in states if state.status.value != "DECLARED_IN_CODE"]
    return told[-1] if told else OperationsSettings.from_environment().schedules_on


async def provider_findings(environment: Environment) -> list[Finding]:
    """Check each key and each inbox at its provider."""
    try:
        url = queue_url(environment)
        with Operator(url) as desk:
            inboxes = desk.inboxes()
    except (DatabaseUnusable, StoreUnavailable):
        inboxes = []  # other checks report what is wrong with the database
    else:
        queue = Queue(url)
    slots = asyncio.Semaphore(AT_ONCE)
    async with http_client(connections=2 * AT_ONCE) as client:
        base = model_url(environment)
        own: dict[str, str] = {}

        async def inbox(row: InboxOverview) -> Finding:
            async with slots:
                connection = await queue.get_inbox_connection(str(row.inbox_id))
                if connection and connection.openrouter_api_key:
                    own[str(row.workspace)] = connection.openrouter_api_key
                channel = channel_of(client, connection, environment, PATIENCE)
                try:
                    failure = await asyncio.wait_for(channel.check_connection(), PATIENCE)
                except TimeoutError:
                    text = f"the provider did not answer within {PATIENCE:g} seconds"
                    return Finding(f"inbox {row.name}", State.STOPS, text, "See whether its server is up.")
            if failure is None:
                return Finding(f"inbox {row.name}", State.FINE, "can send")
            # A connecting inbox can send shortly; a sample inbox is for the sandbox.
            passing = isinstance(failure, NotReady) or failure.code == "made_up"
            return Finding(f"inbox {row.name}", State.LOOK if passing else State.STOPS, failure.reason)

        found = list(await asyncio.gather(*(inbox(row) for row in inboxes)))
        keys = [await _key(client, base, environment.openrouter_api_key, SHARED_KEY, needed=not own)]
        keys += [await _key(client, base, key, f"{OWN_KEY} of {name}", needed=True) for name, key in own.items()]
    return keys + found


async def _key(client: httpx.AsyncBaseTransport, base: str, key: str | None, named: str, *, needed: bool) -> Finding:
    if key is None:
        state = State.STOPS if needed else State.LOOK
        return Finding("model key", state, f"{named} is not set", "Set it in the environment of the Dagster processes.")
    answer = await check_key(client, base, key, named, PATIENCE)
    if isinstance(answer, float | None):
        left = "no limit of its own" if answer is None else f"US$ {answer:.2f} left of its limit"
        return Finding("model key", State.FINE if answer is None or answer > 0 else State.STOPS, f"{named}: {left}")
    return Finding("model key", State.STOPS, f"{named}: {answer.reason}")


def main() -> None:
    """Print all findings."""
    try:
        with DagsterInstance.get() as instance:
            found = list(dagster_findings(instance))
    except Exception as error:  # noqa: BLE001 - a storage of any kind may be unavailable
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        text = f"its instance cannot be used: {first}"
        found = [Finding("Dagster", State.STOPS, text, "See DAGSTER_HOME and its storage.")]
    try:
        found += asyncio.run(provider_findings(Environment.read()))
    except SettingError as error:
        found.append(Finding("settings", State.STOPS, str(error)))
    sys.stdout.buffer.write(orjson.dumps([finding.to_dict() for finding in found]))


if __name__ == "__main__":
    main()
