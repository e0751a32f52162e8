"""An operator's actions in Dagster's UI, in a real browser, verified at the providers."""

import os
import signal
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Locator, Page, expect

from campaign_pipeline.sandbox import Behaviour, Kind, Latency
from campaign_pipeline_tests.browser.conftest import PATIENCE, Stack, keep
from campaign_pipeline_tests.commands import wait_until

pytestmark = pytest.mark.timeout(400)

ZONE = ZoneInfo("America/Sao_Paulo")
JOBS = "/locations/campaign_pipeline/jobs"
WIDTH = 1440
"""Pixels of the browser's window: a laptop's."""
CAMPAIGNS = ("Diagnóstico gratuito", "Primeiro contato", "Reativação de orçamentos")
AT_AN_EASY_PACE = Behaviour(latencies={Kind.GENERATION: Latency(0.2, 0.3), Kind.SEND: Latency(0.2, 0.3)})


def due_campaigns(queue: Stack, messages: int, *inboxes: str) -> None:
    """A campaign per inbox, each with so many due messages."""
    world = queue.world
    workspace = world.workspace()
    for name in inboxes:
        run = world.run(world.campaign(workspace, world.inbox(workspace, name=name), name=name), name=name)
        world.due_messages(run, messages)


def launch(page: Page, tags: Mapping[str, str] | None = None) -> str:
    """Launch process_campaign_queue from its Launchpad, with extra tags; return the run's id."""
    page.goto(f"{JOBS}/process_campaign_queue/playground")
    expect(page.get_by_text("No errors")).to_be_visible()
    for key, value in (tags or {}).items():
        page.get_by_role("button", name="Edit tags").click()
        page.get_by_placeholder("Tag Key").last.fill(key)
        page.get_by_placeholder("Tag Value").last.fill(value)
        page.get_by_role("button", name="Apply").click()
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url("**/runs/*")
    return page.url.rpartition("/")[2]


def shards(page: Page) -> Locator:
    """The boxes of mapped steps in the Gantt chart."""
    return page.locator('.box[data-tooltip^="send_shard[inbox_"]')


def status(page: Page, text: str) -> Locator:
    """The run's status beside its name."""
    return page.get_by_text(text, exact=True).first


def enlarge_gantt(page: Page) -> None:
    """Give the chart the full height, with the unnamed button beside "Re-execute"."""
    page.get_by_role("button", name="Re-execute").locator("xpath=preceding::button[1]").click()


def expect_drawn(image: Locator) -> None:
    """Check that the browser could decode a picture and shows it at a readable size."""
    expect(image).to_be_visible()
    assert image.evaluate("async image => { await image.decode(); return image.naturalWidth > 0; }")
    box = image.bounding_box()
    assert box is not None
    assert box["width"] > 200
    assert box["height"] > 20


def right_edge(element: Locator) -> float:
    """Return where it ends, in pixels of the window."""
    box = element.bounding_box()
    assert box is not None
    return box["x"] + box["width"]


def test_a_batch_launched_from_the_launchpad_shows_its_shards_in_the_gantt_chart(page: Page, queue: Stack) -> None:
    queue.sandbox.set_behaviour(AT_AN_EASY_PACE)
    due_campaigns(queue, 40, "Vendas", "Reativacao", "Suporte")
    page.goto(f"{JOBS}/process_campaign_queue/playground")
    expect(page.get_by_text("No errors")).to_be_visible()
    keep(page, "launchpad")
    launch(page)
    expect(status(page, "Success")).to_be_visible()
    page.set_viewport_size({"width": WIDTH, "height": 640})
    enlarge_gantt(page)
    expect(shards(page)).to_have_count(3)
    for n in range(3):
        expect(shards(page).nth(n)).to_be_visible()
    keep(page, "gantt")
    assert Counter(message["status"] for message in queue.world.messages()) == {"sent": 120}
    assert len(queue.accepted()) == len(set(queue.accepted())) == 120


def test_a_dead_shard_is_re_executed_from_failure_and_nothing_is_sent_twice(page: Page, queue: Stack) -> None:
    queue.sandbox.set_behaviour(AT_AN_EASY_PACE)
    due_campaigns(queue, 60, "Vendas", "Suporte")
    # Dagster would retry a run that lost a process automatically, before a person has seen it.
    run = launch(page, tags={"dagster/max_retries": "0"})
    wait_until(lambda: len(queue.accepted("Vendas")) >= 10, PATIENCE / 1000)
    os.kill(process_of_shard(queue, run, "Vendas"), signal.SIGKILL)
    expect(status(page, "Failure")).to_be_visible()
    enlarge_gantt(page)
    keep(page, "shard_failed")
    assert len(queue.accepted("Vendas")) < 60 == len(queue.accepted("Suporte"))

    queue.world.move_clock(timedelta(minutes=5))  # the dead process's leases have run out
    page.get_by_role("button", name="Re-execute").locator("xpath=following::button[1]").click()
    page.get_by_role("menuitem", name="From failure").click()
    page.wait_for_url(lambda url: "/runs/" in url and run not in url)
    expect(status(page, "Success")).to_be_visible()
    expect(shards(page)).to_have_count(1)
    keep(page, "re_executed")
    assert Counter(message["status"] for message in queue.world.messages()) == {"sent": 120}
    assert Counter(Counter(queue.accepted()).values()) == {1: 120}
    assert queue.world.wrong_counters() == []
    assert {row["status"] for row in queue.world.all("SELECT status FROM campaign_runs")} == {"completed"}


def test_dagster_retries_a_run_that_lost_a_process_and_nothing_is_sent_twice(page: Page, queue: Stack) -> None:
    queue.sandbox.set_behaviour(AT_AN_EASY_PACE)
    due_campaigns(queue, 60, "Vendas", "Suporte")
    run = launch(page)
    wait_until(lambda: len(queue.accepted("Vendas")) >= 10, PATIENCE / 1000)
    os.kill(process_of_shard(queue, run, "Vendas"), signal.SIGKILL)
    expect(status(page, "Failure")).to_be_visible()
    queue.world.move_clock(timedelta(minutes=5))  # the dead process's leases have run out
    wait_until(lambda: queue.repeats(run) == ["SUCCESS"], PATIENCE / 1000)
    assert Counter(message["status"] for message in queue.world.messages()) == {"sent": 120}
    assert Counter(Counter(queue.accepted()).values()) == {1: 120}
    assert queue.world.wrong_counters() == []


def test_a_back_fill_of_three_days_resends_their_failed_messages(page: Page, queue: Stack) -> None:
    due_campaigns(queue, 0, "Black Friday")
    days = [today() - timedelta(days=back) for back in (4, 3, 2, 1)]
    for day in days:
        for _ in range(5):
            failed_message(queue, day)
    page.goto(f"{JOBS}/retry_failed_messages/partitions")
    page.get_by_role("button", name="Launch backfill").click()
    field = page.get_by_placeholder("ex: 20")
    field.fill(f"[{days[1]:%Y-%m-%d}...{days[3]:%Y-%m-%d}]")
    field.press("Tab")
    submit = page.get_by_role("button", name="Submit 3 runs")
    expect(submit).to_be_visible()
    keep(page, "back_fill_dialog")
    submit.click()
    page.locator("tr", has_text="3 partitions").get_by_role("link").first.click()
    expect(page.get_by_text("100% completed")).to_be_visible()
    keep(page, "back_fill")
    statuses = {(message["status"], message["requeued_at"] is None) for message in queue.world.messages()}
    assert statuses == {("sent", False), ("failed", True)}
    assert queue.world.value("SELECT count(*) FROM campaign_messages WHERE status = 'failed'") == 5
    assert Counter(Counter(queue.accepted()).values()) == {1: 15}
    page.goto(f"{JOBS}/retry_failed_messages/partitions")
    expect(page.get_by_text("Missing partitions")).to_be_visible()
    keep(page, "back_filled_days")


def test_the_report_of_a_day_shows_its_picture_and_its_table(page: Page, queue: Stack) -> None:
    day = today() - timedelta(days=1)
    make_a_days_history(queue, day)
    page.goto("/assets/campaign_report")
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    field = dialog.get_by_role("textbox").first
    field.fill(f"{day:%Y-%m-%d}")
    field.press("Tab")
    dialog.get_by_role("button", name="Launch 1 run").click()
    expect(dialog).to_be_hidden()
    wait_until(lambda: queue.status_of_latest_run() == "SUCCESS", PATIENCE / 1000)
    page.goto(f"/assets/campaign_report?view=partitions&partition={day:%Y-%m-%d}")
    page.set_viewport_size({"width": WIDTH, "height": 1150})

    def metadata(name: str) -> Locator:
        return page.get_by_role("row").filter(has=page.get_by_role("cell", name=name, exact=True)).last

    expect(metadata("next_step")).to_contain_text(f"launch retry_failed_messages for {day:%Y-%m-%d}")
    for table in ("campaigns", "costs_and_times"):
        for campaign in CAMPAIGNS:
            expect(metadata(table).get_by_role("cell", name=campaign, exact=True)).to_be_visible()
        assert right_edge(metadata(table)) <= WIDTH
    keep(page, "report")
    metadata("picture").get_by_text("Show Markdown").click()
    expect_drawn(page.get_by_role("dialog").locator("img"))
    keep(page, "report_picture")


def test_a_skipped_tick_of_the_schedule_records_the_reason(page: Page, queue: Stack) -> None:
    due_campaigns(queue, 0, "Vendas")
    run = queue.world.value("SELECT id FROM campaign_runs")
    queue.world.due_message(run, scheduled_at=datetime.now(ZONE) + timedelta(hours=2))
    page.goto("/locations/campaign_pipeline/schedules/process_campaign_queue_every_minute")
    switch = page.locator("tr", has_text="Running").locator("label")
    switch.click()
    try:
        tick = page.get_by_role("row").filter(has=page.get_by_role("button", name="View logs"))
        tick.get_by_text("0 runs requested").first.hover()
        expect(page.get_by_text("The next message is due at")).to_be_visible()
        keep(page, "tick")
    finally:
        switch.click()
    assert queue.accepted() == []


def today() -> datetime:
    """Noon of this day, in the business's time zone."""
    return datetime.now(ZONE).replace(hour=12, minute=0, second=0, microsecond=0)


def failed_message(queue: Stack, at: datetime) -> None:
    """A message, the only one of its run, that failed for a temporary reason."""
    run = queue.world.value("SELECT id FROM campaign_runs")
    queue.world.due_message(run, status="failed", finished_at=at, error_class="exhausted", retry_count=3)


def make_a_days_history(queue: Stack, day: datetime) -> None:
    """The results of three campaigns on a day: most messages sent, some failed for several reasons."""
    due_campaigns(queue, 0, *CAMPAIGNS)
    for no, run in enumerate(queue.world.all("SELECT id FROM campaign_runs ORDER BY name")):
        for n in range(40 - 8 * no):
            at = day.replace(hour=9 + n % 9, minute=7 * n % 60)
            ended: dict[str, Any] = {"status": "sent", "sent_at": at}
            if n % 10 == 3:
                ended = {"status": "failed", "error_class": ("permanent", "exhausted", "unknown")[n % 3]}
            elif n % 7 == 5:
                ended = {"status": "replied", "sent_at": at}
            queue.world.due_message(
                run["id"],
                finished_at=at,
                scheduled_at=at - timedelta(seconds=40 + n),
                ai_tokens_used=300 + 7 * n,
                ai_cost_usd=0.0002 + 0.000004 * n,
                ai_generation_time_ms=900 + 31 * n,
                send_time_ms=350 + 11 * n,
                **ended,
            )


def process_of_shard(queue: Stack, run: str, instance: str) -> int:
    """Return the process that delivers an inbox's shard in a run."""
    inbox = queue.world.value(
        "SELECT b.inbox_id FROM inbox_instances b JOIN instances i ON i.id = b.instance_id WHERE i.name = %s"
        " AND i.workspace_id = (SELECT workspace_id FROM campaign_configs LIMIT 1)",
        instance,
    )
    step = f"send_shard[inbox_{inbox.hex[:8]}"
    events = queue.ask(
        f'{{logsForRun(runId: "{run}") {{... on EventConnection {{events {{'
        "... on StepWorkerStartedEvent {stepKey metadataEntries {label ... on TextMetadataEntry {text}}}}}}}"
    )["logsForRun"]["events"]
    (pid,) = [
        entry["text"]
        for event in events
        if event.get("stepKey", "").startswith(step)
        for entry in event["metadataEntries"]
        if entry["label"] == "pid"
    ]
    return int(pid)
