"""Notices: one per cause, also if sending fails."""

import email
import email.policy
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import orjson
import pytest
from aiosmtpd.controller import Controller
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.execution.plan.objects import StepFailureData
from dagster_shared.error import SerializableErrorInfo

from campaign_pipeline.adapters.environment import BusinessDays, NotifierSettings, SettingError
from campaign_pipeline.adapters.notice_formats import Notice
from campaign_pipeline.adapters.notify import Notifier
from campaign_pipeline.definitions import defs
from campaign_pipeline.defs.days import at, days
from campaign_pipeline.defs.resources import QueueDatabase
from campaign_pipeline.defs.sensors import backlog_notifications, run_failure_notifications
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.ports import reserved_port


class Webhook:
    """A person's webhook: records what it receives, answers as configured."""

    def __init__(self) -> None:
        self.status = 200
        self.told: list[dict[str, Any]] = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if webhook.status == 200:
                    webhook.told.append(orjson.loads(body))
                self.send_response(webhook.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/SECRET-hook"


@pytest.fixture
def webhook(environment: pytest.MonkeyPatch) -> Iterator[Webhook]:
    webhook = Webhook()
    thread = threading.Thread(target=webhook.server.serve_forever, args=(0.01,))
    thread.start()
    environment.setenv("CAMPAIGN_NOTIFY_WEBHOOK", webhook.url)
    environment.setenv("OPENROUTER_API_KEY", "sk-or-test-key-of-no-account")
    yield webhook
    webhook.server.shutdown()
    thread.join()
    webhook.server.server_close()


@pytest.fixture
def instance(environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


class Watch:
    """The backlog sensor, tick by tick; its cursor is stored as by the daemon."""

    def __init__(self, instance: DagsterInstance) -> None:
        self._instance = instance
        self._cursor: str | None = None

    def tick(self) -> str:
        with dg.build_sensor_context(self._instance, cursor=self._cursor) as context:
            data = backlog_notifications.evaluate_tick(context)
        self._cursor = data.cursor
        return data.skip_message or ""


@pytest.fixture
def watch(instance: DagsterInstance) -> Watch:
    return Watch(instance)


def test_overdue_messages_are_reported_once_and_their_end_once(world: World, webhook: Webhook, watch: Watch) -> None:
    def notices() -> list[dict[str, Any]]:
        """Without the day's summary, which is sent if the moved clock passes 18:00."""
        return [told for told in webhook.told if not told["title"].startswith("Campaigns on")]

    run = world.run(name="Natal")
    world.due_message(run)
    assert watch.tick() == "All is well."
    world.move_clock(timedelta(minutes=20))
    assert watch.tick() == "Told: 1 new, 0 over, 1 in all."
    (told,) = notices()
    assert told["title"] == "Overdue, 1 message waiting"
    assert told["lines"][0] == "Messages are overdue by more than 15 minutes in an open window."
    assert "Waiting: 1 message of Natal. Nothing is lost." in told["lines"][1]
    assert "process_campaign_queue_every_minute is on" in told["lines"][2]
    world.due_message(run)
    assert watch.tick() == "Told before: 1 concern."
    world.move_clock(timedelta(hours=4, minutes=21))
    assert watch.tick() == "Told: 1 new, 0 over, 1 in all."
    assert ", 4 hours. Waiting: 2 messages of Natal." in notices()[1]["lines"][1]
    world.do("UPDATE campaign_messages SET status = 'sent', sent_at = campaign_now()")
    assert watch.tick() == "Told: 0 new, 1 over, 0 in all."
    assert notices()[2]["title"] == "Over: Overdue, 2 messages waiting"
    assert "It lasted 4 hours" in notices()[2]["lines"][0]
    assert "The affected campaigns have sent 2 messages since it began." in notices()[2]["lines"][0]
    assert watch.tick() == "All is well."
    assert len(notices()) == 3


def test_a_tick_keeps_the_first_day_that_has_data_for_the_next_loading(
    world: World, webhook: Webhook, watch: Watch
) -> None:
    world.run(run_date=date(2026, 3, 2))
    watch.tick()
    assert BusinessDays.from_environment().first_day == date(2026, 3, 2)


def test_hours_in_which_the_window_is_closed_make_nothing_overdue(world: World, webhook: Webhook, watch: Watch) -> None:
    until_eight: timedelta = datetime(2027, 3, 1, 8, tzinfo=UTC) - world.value("SELECT now()")
    world.move_clock(until_eight)
    config = world.campaign(start_time="10:00", end_time="12:00", timezone="UTC")
    world.due_message(world.run(config), scheduled_at=world.value("SELECT campaign_now() - interval '2 hours'"))
    assert watch.tick() == "All is well."
    world.move_clock(until_eight + timedelta(hours=2, minutes=5))  # open for five minutes
    assert watch.tick() == "All is well."
    world.move_clock(until_eight + timedelta(hours=2, minutes=20))
    assert watch.tick() == "Told: 1 new, 0 over, 1 in all."


def test_one_inbox_that_is_down_is_one_notice_that_names_it_and_all_the_campaigns_it_holds(
    world: World, webhook: Webhook, watch: Watch, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("CAMPAIGN_UI_URL", "https://dagster.example.com/")
    workspace = world.workspace()
    inbox = world.inbox(workspace, status="close", name="numero 2")
    runs = [world.run(world.campaign(workspace, inbox), name=name) for name in ("Natal", "Páscoa")]
    assert watch.tick() == "All is well."
    for run in runs:
        world.due_messages(run, 2)
    assert watch.tick() == "Told: 1 new, 0 over, 1 in all."
    (told,) = webhook.told
    assert told["title"] == "Inbox Vendas (numero 2): inbox disconnected, 4 messages waiting"
    assert told["lines"][0].startswith("The instance numero 2 is close, not connected")
    assert "4 messages of Natal, Páscoa." in told["lines"][1] or "4 messages of Páscoa, Natal." in told["lines"][1]
    assert told["lines"][2] == "What to do: connect the inbox's instance; it then continues automatically."
    assert told["links"] == {"Runs": "https://dagster.example.com/assets/campaign_runs"}
    world.move_clock(timedelta(minutes=40))
    assert watch.tick() == "Told before: 1 concern."
    # Messages that became late because of it have the same cause while they may be catching up.
    world.do("UPDATE instances SET status = 'connected'")
    assert watch.tick() == "Told: 0 new, 1 over, 0 in all."
    world.move_clock(timedelta(minutes=56))
    assert watch.tick() == "Told: 1 new, 0 over, 1 in all."


def test_a_pause_of_the_account_that_all_share_is_one_notice_since_it_began(
    world: World, webhook: Webhook, watch: Watch
) -> None:
    for name in ("Natal", "Páscoa", "Férias"):
        world.due_message(world.run(name=name))
    world.do(
        "INSERT INTO campaign_pauses (scope, scope_id, kind, code, reason, since, until) VALUES ('provider', "
        "'openrouter', 'systemic', 'bad_key', 'OpenRouter refuses the key.', campaign_now() - interval '3 hours', "
        "campaign_now() + interval '9 minutes')"
    )
    assert watch.tick() == "Told: 1 new, 0 over, 1 in all."
    assert webhook.told[0]["title"] == "Provider openrouter: bad key, 3 messages waiting"
    since = at(world.value("SELECT since FROM campaign_pauses"))
    assert f"Since {since}. Waiting: 3 messages of" in webhook.told[0]["lines"][1]
    assert world.value("SELECT cardinality(run_ids) FROM campaign_notices") == 3


def test_the_summary_of_a_day_says_what_is_left_for_a_person(world: World, webhook: Webhook, watch: Watch) -> None:
    until_six = world.value(
        "SELECT extract(epoch FROM l.time::date + interval '42 hours 5 minutes' - l.time)"
        " FROM (SELECT campaign_now() AT TIME ZONE %s AS time) l",
        str(days.timezone),
    )
    world.move_clock(timedelta(seconds=float(until_six)))
    run = world.run(name="Natal", wait_code="daily_limit", wait_reason="It has begun as many today as it may.")
    world.do(
        "UPDATE campaign_runs SET pace_held_since = campaign_now(), wait_until = campaign_now() + interval '9 hours'"
    )
    world.due_messages(run, 3)
    at = world.value("SELECT campaign_now()")
    for _ in range(2):
        world.due_message(run, status="failed", error_class="exhausted", error_code="timeout", finished_at=at)
    watch.tick()
    (told,) = webhook.told
    assert "what is left for you" in told["title"]
    assert told["lines"][:-1] == [
        "Natal: 2 failed for good (timeout).",
        "To send these again, launch retry_failed_messages for today.",
        "Natal: about 0 of 3 messages due today will be sent. It has begun as many today as it may.",
    ]
    assert told["lines"][-1].startswith("Check clock: the pipeline's clock is moved by ")
    watch.tick()
    assert len(webhook.told) == 1


def test_findings_that_stop_sending_are_reported_even_if_nothing_is_due(
    world: World, webhook: Webhook, watch: Watch
) -> None:
    campaign = world.campaign(timezone="Brazil/Nowhere")
    assert watch.tick() == "Told: 1 new, 0 over, 1 in all."
    assert webhook.told[0]["title"] == "Window"
    assert webhook.told[0]["lines"][0].startswith(f"Campaign {campaign}: ")
    assert "What to do: Correct the row." in webhook.told[0]["lines"]
    world.do("UPDATE campaign_configs SET timezone = 'America/Sao_Paulo'")
    assert watch.tick() == "Told: 0 new, 1 over, 0 in all."


def test_more_unknown_outcomes_are_news_and_fewer_are_not(world: World, webhook: Webhook, watch: Watch) -> None:
    run = world.run()

    def unknown() -> None:
        world.due_message(run, status="failed", error_class="unknown", finished_at=world.value("SELECT campaign_now()"))

    unknown()
    unknown()
    assert watch.tick().startswith("Told: 1 new")
    assert webhook.told[0]["title"] == "Unknown outcome"
    assert webhook.told[0]["lines"][0].startswith("2 messages have an unknown delivery status")
    world.do("DELETE FROM campaign_messages WHERE id IN (SELECT id FROM campaign_messages LIMIT 1)")
    assert watch.tick() == "Told before: 1 concern."
    unknown()
    assert watch.tick().startswith("Told: 1 new")


def test_a_failed_notice_shows_in_the_tick_and_is_sent_at_the_next(
    world: World, webhook: Webhook, watch: Watch
) -> None:
    world.due_message(world.run(), scheduled_at=world.value("SELECT campaign_now() - interval '20 minutes'"))
    webhook.status = 500
    said = watch.tick()
    assert said == "Not told, to be tried again at the next tick: CAMPAIGN_NOTIFY_WEBHOOK answered with status 500."
    webhook.status = 200
    assert watch.tick().startswith("Told: 1 new")
    assert len(webhook.told) == 1


def test_an_unreadable_queue_is_reported_without_its_password(
    webhook: Webhook, watch: Watch, environment: pytest.MonkeyPatch
) -> None:
    url = os.environ["CAMPAIGN_DATABASE_URL"]
    environment.setenv("CAMPAIGN_DATABASE_URL", "postgresql://crm:hunter2@127.0.0.1:1/crm")
    assert watch.tick() == "Told: the queue cannot be read."
    assert watch.tick() == "The queue cannot be read, as was told before."
    assert webhook.told[0]["title"] == "The queue cannot be read"
    assert webhook.told[0]["lines"][0].startswith("The database crm at 127.0.0.1:1")
    assert "hunter2" not in webhook.told[0]["text"]
    environment.setenv("CAMPAIGN_DATABASE_URL", url)
    watch.tick()
    assert [told["title"] for told in webhook.told[1:]] == ["Over: the queue cannot be read"]


def test_a_missing_key_is_reported_when_something_is_due(
    world: World, webhook: Webhook, watch: Watch, environment: pytest.MonkeyPatch
) -> None:
    environment.delenv("OPENROUTER_API_KEY")
    assert watch.tick() == "All is well."
    world.due_message(world.run())
    watch.tick()
    assert webhook.told[0]["title"] == "Missing key, 1 message waiting"
    assert "Nothing can be sent: OPENROUTER_API_KEY is not set" in webhook.told[0]["text"]


# --------------------------------------------------------------------------------------------------------- failed runs


def a_failed_run(instance: DagsterInstance, url: str) -> dg.DagsterRun:
    """A run of the main job that fails in its first step, with the sentence for a wrong database."""
    job = defs.resolve_job_def("process_campaign_queue")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAMPAIGN_DATABASE_URL", url)
        result = job.execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    return run


def tell(instance: DagsterInstance, run: dg.DagsterRun) -> str:
    (record,) = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
    event = record.event_log_entry.dagster_event
    assert event is not None
    database = {"database": QueueDatabase()}
    with dg.build_run_status_sensor_context(
        "run_failure_notifications", event, instance, run, resources=database
    ) as context:
        outcome = run_failure_notifications(context.for_run_failure())
    assert isinstance(outcome, dg.SkipReason)
    return outcome.skip_message or ""


def test_a_failed_run_is_reported_with_its_reason_once_per_reason(instance: DagsterInstance, webhook: Webhook) -> None:
    first = a_failed_run(instance, "mysql://one")
    assert tell(instance, first) == f"The run {first.run_id[:8]} of process_campaign_queue failed: told."
    (told,) = webhook.told
    assert told["lines"][0] == "CAMPAIGN_DATABASE_URL has 'mysql', but must be a postgresql:// URL."
    assert first.run_id in told["text"]
    again = a_failed_run(instance, "mysql://two")
    assert tell(instance, again).startswith("Told already")
    other = a_failed_run(instance, "sqlite://three")
    assert tell(instance, other).endswith(": told.")
    assert len(webhook.told) == 2


def test_a_failed_run_is_over_when_a_later_run_of_its_job_succeeds(
    world: World, instance: DagsterInstance, webhook: Webhook, watch: Watch, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("CAMPAIGN_UI_URL", "http://localhost:3000")
    failed = a_failed_run(instance, "mysql://one")
    tell(instance, failed)
    assert webhook.told[0]["links"] == {"The run": f"http://localhost:3000/runs/{failed.run_id}"}
    assert watch.tick() == "All is well."
    repeated = defs.resolve_job_def("process_campaign_queue").execute_in_process(instance=instance)
    assert watch.tick() == "Told: 0 new, 1 over, 0 in all."
    assert webhook.told[1]["title"] == f"Over: The run {failed.run_id[:8]} of process_campaign_queue failed"
    assert f"The run {repeated.run_id[:8]} of process_campaign_queue succeeded." in webhook.told[1]["lines"][0]
    assert watch.tick() == "All is well."


def test_a_step_that_was_killed_says_that_nothing_is_lost_and_when_what_it_held_comes_back(
    world: World, instance: DagsterInstance, webhook: Webhook
) -> None:
    job = defs.resolve_job_def("process_campaign_queue")
    run = instance.create_run_for_job(job, status=DagsterRunStatus.STARTED, tags={"dagster/will_retry": "true"})
    crash = SerializableErrorInfo("killed", [], "ChildProcessCrashException")
    failure = StepFailureData(error=crash, user_failure_data=None)
    event = dg.DagsterEvent(
        dg.DagsterEventType.STEP_FAILURE.value,
        run.job_name,
        step_key="send_shard[inbox_1]",
        event_specific_data=failure,
    )
    instance.report_dagster_event(event, run.run_id)
    instance.report_run_failed(run, "A step was killed.")
    world.due_messages(world.run(), 3)
    world.do(
        "UPDATE campaign_messages SET status = 'queued', lease_token = gen_random_uuid(), lease_owner = %s, "
        "lease_expires_at = campaign_now() + interval '90 seconds'",
        f"run {run.run_id[:8]} inbox_1",
    )
    until = at(world.value("SELECT max(lease_expires_at) FROM campaign_messages"))
    dead = instance.get_run_by_id(run.run_id)
    assert dead is not None
    tell(instance, dead)
    assert webhook.told[0]["lines"][0] == (
        "The process of the step send_shard[inbox_1] was killed: "
        "from outside, or because the machine ran out of memory."
    )
    assert f"Nothing is lost: 3 messages that it held are due again at {until}" in webhook.told[0]["text"]
    assert "Dagster repeats the run by itself." in webhook.told[0]["lines"]


def test_a_failed_notice_of_a_failure_is_visible(instance: DagsterInstance, webhook: Webhook) -> None:
    webhook.status = 503
    said = tell(instance, a_failed_run(instance, "mysql://one"))
    assert said.endswith("nobody but this log was told: CAMPAIGN_NOTIFY_WEBHOOK answered with status 503.")


def test_a_run_whose_process_died_is_reported_although_no_step_failed(
    instance: DagsterInstance, webhook: Webhook
) -> None:
    job = defs.resolve_job_def("process_campaign_queue")
    run = instance.create_run_for_job(job, status=DagsterRunStatus.STARTED)
    instance.report_run_failed(run, "Run timed out after 7200 seconds.")
    dead = instance.get_run_by_id(run.run_id)
    assert dead is not None
    assert tell(instance, dead).endswith(": told.")
    assert webhook.told[0]["lines"][0] == "Run timed out after 7200 seconds."


def test_a_run_that_failed_while_the_code_server_was_away_is_told_when_it_is_back(
    instance: DagsterInstance, webhook: Webhook
) -> None:
    cursor: str | None = None

    def evaluate() -> str:
        nonlocal cursor
        resources = {"database": QueueDatabase()}
        with dg.build_sensor_context(instance, cursor=cursor, resources=resources) as context:
            data = run_failure_notifications.evaluate_tick(context)
        cursor = data.cursor
        return data.skip_message or ""

    evaluate()
    job = defs.resolve_job_def("retry_failed_messages")
    # The sensor's process is gone, the daemon is not: a day of a back-fill for which its patience ended.
    lost = instance.create_run_for_job(job, status=DagsterRunStatus.STARTING)
    instance.report_run_failed(lost, "Could not reach user code server.")
    assert webhook.told == []
    assert evaluate() == f"The run {lost.run_id[:8]} of retry_failed_messages failed: told."
    assert webhook.told[0]["lines"][0] == "Could not reach user code server."
    evaluate()
    assert len(webhook.told) == 1


# ------------------------------------------------------------------------------------------------------------ telling


class Mailbox:
    """An SMTP server's handler that stores what it receives."""

    def __init__(self) -> None:
        self.mails: list[email.message.EmailMessage] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 (aiosmtpd's name)
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(mail, email.message.EmailMessage)
        self.mails.append(mail)
        return "250 OK"


@contextmanager
def mail_server() -> Iterator[tuple[Mailbox, str]]:
    mailbox = Mailbox()
    with reserved_port() as port:
        controller = Controller(mailbox, hostname="127.0.0.1", port=port)
        controller.start()
        try:
            yield mailbox, f"smtp://127.0.0.1:{port}"
        finally:
            controller.stop()


def test_a_notice_by_e_mail_has_its_headline_as_subject() -> None:
    with mail_server() as (mailbox, url):
        settings = NotifierSettings(email="ops@example.com, on-call@example.com", smtp_url=url)
        assert Notifier(settings, lambda _: None).tell(Notice("Título", ["Uma inbox está fora."])) == []
    (mail,) = mailbox.mails
    html = mail.get_body(("html",))
    assert html is not None
    assert "<li>Uma inbox está fora.</li>" in html.get_content()
    assert (mail["Subject"], mail["From"]) == ("Título", "ops@example.com")
    assert mail["To"] == "ops@example.com, on-call@example.com"
    plain = mail.get_body(("plain",))
    assert plain is not None
    assert "- Uma inbox está fora." in plain.get_content()


NOTICE = Notice("Inbox <Vendas> is down", ["4 messages of A & B wait."], {"Runs": "https://dagster.example.com/runs"})


def received(webhook: Webhook, form: str) -> dict[str, Any]:
    settings = NotifierSettings(webhook_url=webhook.url, webhook_format=form)
    assert Notifier(settings, lambda _: None).tell(NOTICE) == []
    (body,) = webhook.told
    return body


def test_slack_gets_blocks_in_its_own_markup(webhook: Webhook) -> None:
    body = received(webhook, "slack")
    header, lines, links = body["blocks"]
    assert header == {"type": "header", "text": {"type": "plain_text", "text": "Inbox <Vendas> is down"}}
    assert lines["text"] == {"type": "mrkdwn", "text": "• 4 messages of A &amp; B wait."}
    assert links["text"]["text"] == "<https://dagster.example.com/runs|Runs>"
    assert body["text"] == "Inbox &lt;Vendas&gt; is down"


def test_teams_gets_an_adaptive_card(webhook: Webhook) -> None:
    body = received(webhook, "teams")
    (attachment,) = body["attachments"]
    card = attachment["content"]
    assert (body["type"], attachment["contentType"]) == ("message", "application/vnd.microsoft.card.adaptive")
    assert [block["text"] for block in card["body"]] == ["Inbox <Vendas> is down", "4 messages of A & B wait."]
    assert card["actions"] == [{"type": "Action.OpenUrl", "title": "Runs", "url": "https://dagster.example.com/runs"}]


@pytest.mark.parametrize(
    ("variables", "form"),
    [
        ({"CAMPAIGN_NOTIFY_WEBHOOK": "https://hooks.slack.com/services/T/B/X"}, "slack"),
        ({"CAMPAIGN_NOTIFY_WEBHOOK": "https://prod-1.westeurope.logic.azure.com:443/workflows/x"}, "teams"),
        ({"CAMPAIGN_NOTIFY_WEBHOOK": "https://chat.example.com/hooks/x"}, "json"),
        ({"CAMPAIGN_NOTIFY_WEBHOOK": "https://chat.example.com/x", "CAMPAIGN_NOTIFY_FORMAT": "slack"}, "slack"),
    ],
)
def test_the_format_of_a_webhook_follows_its_host_unless_it_is_set(variables: dict[str, str], form: str) -> None:
    assert NotifierSettings.from_environment(variables).webhook_format == form


def unreachable() -> NotifierSettings:
    return NotifierSettings(
        webhook_url="http://127.0.0.1:1/SECRET-hook",
        email="ops@example.com",
        smtp_url="smtp://user:SECRET-password@127.0.0.1:1",
    )


def test_every_way_that_fails_is_named_without_its_secret_and_the_log_has_the_notice() -> None:
    logged: list[str] = []
    settings = unreachable()
    troubles = Notifier(settings, logged.append).tell(Notice("Title", ["A line."]))
    assert troubles == [
        "CAMPAIGN_NOTIFY_WEBHOOK could not be reached.",
        "The e-mail to CAMPAIGN_NOTIFY_EMAIL was not sent: ConnectionRefusedError.",
    ]
    assert logged == ["Title\n- A line."]
    assert "SECRET" not in repr(settings)


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"CAMPAIGN_NOTIFY_WEBHOOK": "hooks.example.com/SECRET"}, "CAMPAIGN_NOTIFY_WEBHOOK"),
        ({"CAMPAIGN_NOTIFY_EMAIL": "ops@example.com"}, "CAMPAIGN_NOTIFY_EMAIL needs CAMPAIGN_SMTP_URL"),
        ({"CAMPAIGN_SMTP_URL": "mail.example.com:25:SECRET"}, "CAMPAIGN_SMTP_URL"),
        ({"CAMPAIGN_SMTP_URL": "smtp://"}, "CAMPAIGN_SMTP_URL"),
        ({"CAMPAIGN_NOTIFY_FORMAT": "xml"}, "CAMPAIGN_NOTIFY_FORMAT is 'xml'"),
        ({"CAMPAIGN_UI_URL": "dagster.example.com"}, "CAMPAIGN_UI_URL"),
    ],
)
def test_an_address_that_cannot_be_is_named_without_its_value(variables: dict[str, str], name: str) -> None:
    with pytest.raises(SettingError, match=name) as refused:
        NotifierSettings.from_environment(variables)
    assert "SECRET" not in str(refused.value)
