"""Health checks of the database and this machine, one sentence each.

A finding is `ok`, `look` (a person should look at it; messages are sent) or `stops` (it keeps messages from being
sent).
"""

import shlex
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import psycopg

from campaign_pipeline import sql
from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.crm_check import connection_finding, rights_finding, server_finding
from campaign_pipeline.adapters.environment import BusinessDays
from campaign_pipeline.adapters.findings import Finding, State
from campaign_pipeline.adapters.operator import Operator
from campaign_pipeline.adapters.queue_connection import connect_rows
from campaign_pipeline.core.next_steps import PASSES, REMEDIES, step_of_wait
from campaign_pipeline.core.notices import Concern, listed, messages
from campaign_pipeline.core.ports import StoreUnavailable, Verdict
from campaign_pipeline.core.upkeep import OVERDUE, UNKNOWN, backlog_cutoffs, find_concerns
from campaign_pipeline.core.window import InvalidWindow, SendingWindow

CLOCK_TOLERANCE = timedelta(seconds=5)
"""Difference between this machine's clock and the database's that needs no attention."""

DEAD_SHARE = 0.5
FEWEST_DEAD = 50_000
"""Dead rows of the hot table that are reported: more than half of it, and more than this."""

FEW_BYTES, TOO_FEW_BYTES = 2 * 2**30, 200 * 2**20
"""Free disk space below which a person should look, and below which outputs and logs will soon fail."""

SHOWN = 5

REVIEW = Verdict.AWAITING_REVIEW.value
"""Key of the concern about texts that wait for approval; the run's id follows."""


def database_findings(url: str, max_age: timedelta, overdue: timedelta) -> Iterator[Finding]:
    """Run all checks of the database, the most basic first; if it cannot be used, only report why."""
    try:
        with connect_rows(url, autocommit=True) as connection:
            yield connection_finding(url, connection)
            yield server_finding(connection)
            yield rights_finding(connection)
        schema.check(url)
    except psycopg.Error as error:
        yield Finding(
            "database", State.STOPS, schema.unusable(url, error), "Start it, or correct CAMPAIGN_DATABASE_URL."
        )
        return
    except schema.DatabaseUnusable as error:
        yield Finding("schema", State.STOPS, str(error))
        return
    yield Finding("schema", State.FINE, f"version {sql.HEAD}, which this code works on")
    try:
        with Doctor(url) as doctor:
            yield from doctor.findings(max_age, overdue)
    except StoreUnavailable as error:
        yield Finding("database", State.STOPS, str(error))


class Doctor(Operator):
    """The checks that need the schema."""

    @property
    def zone(self) -> ZoneInfo:
        """The zone of the times in findings."""
        return BusinessDays.from_environment().zone

    def findings(self, max_age: timedelta, overdue: timedelta) -> Iterator[Finding]:
        """Run all checks."""
        yield from self.surroundings()
        yield self.pauses_by_hand()
        yield from self.waits(max_age)
        concerns = {concern.key: concern for concern in self.concerns(overdue)}
        yield self.overdue(concerns.get(OVERDUE))
        yield self.unknown(concerns.get(UNKNOWN))
        yield self.reviews([concern for concern in concerns.values() if concern.key.startswith(REVIEW)])

    def surroundings(self) -> Iterator[Finding]:
        """Check what no message or run shows: server, leases, windows."""
        yield from self.server()
        yield self.leases()
        yield from self.windows()

    def concerns(self, overdue: timedelta, missing_key: str | None = None) -> list[Concern]:
        """Return what needs a person now, one concern per cause. `missing_key`: what the shared account lacks."""
        look = self.look()
        missing = look.blocked_by(missing_key)
        cutoffs = {run.run_id: look.now for run in look.runs} if missing else backlog_cutoffs(look, overdue)
        backlog = self.backlog(cutoffs)
        found = [*find_concerns(look, backlog, self.unknown_messages(), overdue), *self.awaited_reviews()]
        if not missing:
            return found
        names = {run.run_id: run.name or "unnamed" for run in look.runs if run.run_id in backlog}
        waiting = sum(each.messages for each in backlog.values())
        key = Concern("missing_key", f"Nothing can be sent: {missing}", "", messages=waiting, runs=names)
        # Messages that are late because the key is missing are reported with it.
        return [key, *(concern for concern in found if concern.key != OVERDUE)]

    def awaited_reviews(self) -> Iterator[Concern]:
        """Yield a concern per run whose texts wait for approval: each one needs its own review."""
        for row in self._all("list_awaited_reviews"):
            yield Concern(
                f"{REVIEW}:{row['run_id']}",
                "Its texts wait for a person's approval.",
                f"`campaign-pipeline review {shlex.quote(row['name'])}`; or the jobs preview_messages (keep: true) and "
                "approve_messages",
                *("run", str(row["run_id"])),
                since=row["since"],
                messages=row["messages"],
                runs={row["run_id"]: row["name"]},
            )

    def server(self) -> Iterator[Finding]:
        """Check clock, long transactions, dead rows."""
        row = self._all("diagnose_server")[0]
        off = abs(datetime.now(UTC) - row["clock"])
        if row["clock_offset"]:
            text = f"the pipeline's clock is moved by {row['clock_offset']} (campaign.clock_offset)"
            yield Finding(
                "clock", State.LOOK, text, "Messages are due by the moved clock: reset it outside rehearsals."
            )
        elif off > CLOCK_TOLERANCE:
            text = f"the database's clock and this machine's differ by {off.total_seconds():.0f} s"
            yield Finding("clock", State.LOOK, text, "Leases go by the database's: set both by NTP.")
        else:
            yield Finding("clock", State.FINE, "the database's and this machine's agree")
        if row["long_transactions"]:
            since = row["oldest_transaction"].astimezone(self.zone)
            text = f"{row['long_transactions']} open for more than 10 minutes, the oldest since {since:%H:%M}"
            yield Finding("transactions", State.LOOK, text, "End them (pg_stat_activity): dead rows pile up meanwhile.")
        else:
            yield Finding("transactions", State.FINE, "none is open for long")
        dead, live = row["dead_rows"], row["live_rows"]
        text = f"campaign_messages has {live:,} live rows and {dead:,} dead ones, {row['bytes'] / 2**20:,.0f} MB"
        bloated = dead > FEWEST_DEAD and dead > DEAD_SHARE * live
        todo = "VACUUM (ANALYZE) public.campaign_messages, and see why autovacuum does not." if bloated else ""
        yield Finding("dead rows", State.LOOK if bloated else State.FINE, text, todo)

    def leases(self) -> Finding:
        """Check for messages whose worker is gone."""
        row = self._all("diagnose_leases")[0]
        if row["stale"]:
            since = row["since"].astimezone(self.zone)
            text = f"{row['stale']:,} messages are held by workers that are gone, since {since:%H:%M}"
            return Finding("leases", State.LOOK, text, "Nothing: the next batch takes them back, if one is launched.")
        return Finding("leases", State.FINE, f"{row['live']:,} messages are at work" if row["live"] else "none is held")

    def windows(self) -> Iterator[Finding]:
        """Check windows and time zones of active campaigns."""
        wrong = []
        zones = set()
        for row in self._all("diagnose_campaigns"):
            try:
                window = SendingWindow.parse(
                    *(row["start_time"], row["end_time"], row["timezone"]),
                    *(row["frequency"], row["weekdays"], row["holidays"]),
                )
                zones.add(window.zone.key)
            except InvalidWindow as error:
                wrong.append(
                    Finding("window", State.STOPS, f"campaign {row['config_id']}: {error}", "Correct the row.")
                )
        yield from wrong[:SHOWN]
        told = ", ".join(sorted(zones)[:SHOWN]) or "no campaign is active"
        shown = f"; times are shown in {self.zone}" if zones - {self.zone.key} else ""
        yield Finding("time zones", State.FINE, told + shown)

    def pauses_by_hand(self) -> Finding:
        """Report what a person paused."""
        paused = [pause for pause in self.pauses() if pause.paused_by]
        if not paused:
            return Finding("pauses by hand", State.FINE, "nobody paused anything")
        text = " ".join(pause.reason for pause in paused[:SHOWN])
        return Finding("pauses by hand", State.STOPS, text, "Resume what may go on.")

    def waits(self, max_age: timedelta) -> Iterator[Finding]:
        """Report waiting runs: one finding per cause."""
        runs: dict[tuple[str, str], list[str]] = {}
        names = {run.run_id: run.name for run in self._running_runs()}
        held = False  # by a person, as pauses_by_hand reports
        for state in self.states(max_age).values():
            if state.wait is not None and state.wait.code == "paused_by_person":
                held = True
            elif state.wait is not None:
                key = (state.wait.code, state.wait.reason)
                runs.setdefault(key, []).append(names[state.run_id] or "unnamed")
        for (code, reason), waiting in list(runs.items())[: 2 * SHOWN]:
            passes = REMEDIES.get(code, PASSES) == PASSES
            who = ", ".join(waiting[:SHOWN]) + (f" and {len(waiting) - SHOWN} more" if len(waiting) > SHOWN else "")
            found = f"{who}: {reason}"
            yield Finding("waiting runs", State.FINE if passes else State.STOPS, found, _sentence(step_of_wait(code)))
        if not runs:
            yield Finding(
                "waiting runs",
                State.FINE,
                f"{len(names)} running, none waits" + (" for anything else" if held else ""),
            )

    @staticmethod
    def overdue(concern: Concern | None) -> Finding:
        """Report messages that nothing holds and nothing takes."""
        if concern is None:
            return Finding("overdue", State.FINE, "no message that may go out is late")
        todo = "Switch process_campaign_queue_every_minute on, or run `campaign-pipeline process`."
        text = f"{messages(concern.messages)} {concern.what.removeprefix('Messages are ').removesuffix('.')}"
        return Finding("overdue", State.STOPS, text, todo)

    @staticmethod
    def unknown(concern: Concern | None) -> Finding:
        """Report unknown outcomes."""
        if concern is None:
            return Finding("unknown outcomes", State.FINE, "none")
        todo = "Look at their chats: `campaign-pipeline messages --reason unknown`."
        return Finding("unknown outcomes", State.LOOK, concern.what.removesuffix("."), todo)

    @staticmethod
    def reviews(concerns: Sequence[Concern]) -> Finding:
        """Report texts that wait for a person's approval."""
        if not concerns:
            return Finding("reviews", State.FINE, "no text waits for approval")
        runs = [name for concern in concerns for name in concern.names]
        count = sum(each.messages for each in concerns)
        text = f"{messages(count)} of {listed(runs)} {'waits' if count == 1 else 'wait'} for approval"
        return Finding("reviews", State.STOPS, text, f"`campaign-pipeline review {shlex.quote(runs[0])}`")


def disk_finding(folder: Path) -> Finding:
    """Check the space for step outputs, logs and the embedded database."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / 2**30:,.1f} GB are free at {there}"
    if free < TOO_FEW_BYTES:
        return Finding("disk", State.STOPS, text, "Make room: outputs and logs soon cannot be written.")
    return Finding(
        "disk", State.LOOK if free < FEW_BYTES else State.FINE, text, "Make room." if free < FEW_BYTES else ""
    )


def _sentence(step: str) -> str:
    return "" if step.startswith("nothing") else f"{step[0].upper()}{step[1:]}."
