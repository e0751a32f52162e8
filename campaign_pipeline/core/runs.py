"""May a run be worked now, and if not, why. A run's `status` is what people want; its wait is what the pipeline finds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from campaign_pipeline.core.window import InvalidWindow, SendingWindow

DEFAULT_INTERVAL_SECONDS = 30.0
"""Between overdue messages that go out after a pause, where the campaign does not say; the CRM's own minimum."""

WINDOW_CLOSED = "window_closed"


@dataclass(frozen=True)
class RunWait:
    """Why a running run is not worked."""

    run_id: UUID
    code: str
    reason: str
    until: datetime | None = None


@dataclass(frozen=True)
class RunState:
    """A running run, judged."""

    run_id: UUID
    wait: RunWait | None
    has_due: bool
    resumed: bool  # what became overdue while it was held is to be spread
    interval_seconds: float
    too_old_before: datetime  # messages due before this are skipped
    note_changed: bool  # its wait is not what its row says
    pauses: tuple[tuple[str, str], ...] = ()  # paused scopes that cover it
    only_paused: bool = False  # nothing but pauses keeps it

    def waits_only_for(self, pause: Mapping[str, Any]) -> bool:
        """Whether this one paused scope is all that keeps it: then it may send the probe."""
        return self.only_paused and self.pauses == ((pause["scope"], pause["scope_id"]),)


def judge_run(row: Mapping[str, Any], pauses: Sequence[Mapping[str, Any]], max_age: timedelta) -> RunState:
    """Judge one row of `list_running_runs` against the open pauses of `list_pauses`."""
    now: datetime = row["now"]
    covering = [pause for pause in pauses if _covers(pause, row)]
    waits = list(_configuration_waits(row))
    window: SendingWindow | None = None
    try:
        window = SendingWindow.parse(row["start_time"], row["end_time"], row["timezone"], row["frequency"])
    except InvalidWindow as error:
        waits.append(RunWait(row["run_id"], "invalid_window", str(error)))
    only_paused = not waits and bool(covering) and window is not None and window.is_open(now)
    waits += [RunWait(row["run_id"], pause["code"], pause["reason"], pause["until"]) for pause in covering]
    held = bool(waits)
    if window is not None and not window.is_open(now):
        opening = window.next_opening(now)
        text = f"The sending window is closed; it opens at {opening.astimezone(window.zone):%Y-%m-%d %H:%M} ({window.zone})."
        waits.append(RunWait(row["run_id"], WINDOW_CLOSED, text, opening))
    wait = waits[0] if waits else None
    was_held = row["wait_code"] not in {None, WINDOW_CLOSED}
    due = row["first_due"]
    return RunState(
        run_id=row["run_id"],
        wait=wait,
        has_due=due is not None and due <= now,
        resumed=not held and (was_held or row["resumed_at"] is not None),
        interval_seconds=float(row["min_interval_seconds"] or DEFAULT_INTERVAL_SECONDS),
        too_old_before=window.age_cutoff(now, max_age) if window else now - max_age,
        note_changed=(row["wait_code"], row["wait_reason"]) != ((wait.code, wait.reason) if wait else (None, None)),
        pauses=tuple((pause["scope"], pause["scope_id"]) for pause in covering),
        only_paused=only_paused,
    )


def _covers(pause: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    ids = {
        "run": row["run_id"],
        "inbox": row["inbox_id"],
        "workspace": row["workspace_id"],
        "model": row["model"],
        "provider": pause["scope_id"],
    }
    return str(ids[pause["scope"]]) == str(pause["scope_id"])


def _configuration_waits(row: Mapping[str, Any]) -> list[RunWait]:
    """What in the CRM keeps the run, the most basic first."""
    run_id = row["run_id"]
    if row["config_id"] is None:
        return [RunWait(run_id, "no_campaign", "The run names no campaign config (config_id); it cannot be worked.")]
    if not row["is_active"]:
        return [RunWait(run_id, "campaign_inactive", "The campaign is switched off (campaign_configs.is_active).")]
    if row["inbox_id"] is None:
        return [RunWait(run_id, "no_inbox", "The campaign has no inbox (campaign_configs.inbox_id).")]
    if row["instance_id"] is None:
        text = f"The inbox {row['inbox_id']} has no instance; link one in inbox_instances."
        return [RunWait(run_id, "inbox_without_instance", text)]
    if row["instance_status"] != "connected":
        text = (
            f"The instance {row['instance_name'] or row['instance_id']} is {row['instance_status'] or 'of no known status'}, "
            "not connected; connect it and the run goes on by itself."
        )
        return [RunWait(run_id, "inbox_disconnected", text)]
    return []
