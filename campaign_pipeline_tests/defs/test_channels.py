"""Whole shards through each provider: what arrives, what the ledger has, and what never happens twice."""

import asyncio
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from dagster import DagsterInstance
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaign_pipeline.adapters.cloud_api_events import read_status
from campaign_pipeline.adapters.status_events import settle_status_events
from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline_tests.conftest import point_at
from campaign_pipeline_tests.defs.test_job import IN_PROCESS, run_job, troubles
from campaign_pipeline_tests.defs.test_shard import FIRST, SECOND, TWO_PARTS, Play, Rig, Watch, play
from campaign_pipeline_tests.factories import World

__all__ = ["play"]

PHONE_NUMBER_ID = "106540352242922"
BODY = "Olá, {{1}}! Aqui é a Acme. {{2}} Podemos conversar?"


def uazapi_inbox(world: World, workspace: UUID) -> UUID:
    return world.inbox(workspace, provider_type="uazapi", instance_token="loja-token")


def cloud_inbox(world: World, workspace: UUID) -> UUID:
    config = {"phone_number_id": PHONE_NUMBER_ID}
    return world.inbox(workspace, provider_type="cloud_api", provider_config=config)


def supabase_inbox(world: World, workspace: UUID) -> UUID:
    # As the CRM has it: its own function reads provider_type, so our adapter is named beside it.
    return world.inbox(workspace, provider_type="uazapi", settings={"campaign_adapter": "supabase"})


def cloud_campaign(world: World, **columns: Any) -> tuple[UUID, UUID, UUID]:
    """Workspace, inbox and campaign of the Cloud API, with a template of two variables."""
    workspace = world.workspace()
    inbox = cloud_inbox(world, workspace)
    template = {
        "template_name": "primeiro_contato",
        "template_language": "pt_BR",
        "template_variables": ["primeiro nome do lead", "uma frase sobre a empresa"],
        "template_body": BODY,
    }
    return workspace, inbox, world.campaign(workspace, inbox, **{**template, **columns})


def heard(world: World, message: UUID, inbox: UUID, *, hours_ago: float) -> UUID:
    """Let the lead of a message write to an inbox."""
    row = world.one("SELECT lead_id FROM campaign_messages WHERE id = %s", message)
    conversation = world.insert("conversations", inbox_id=inbox, lead_id=row["lead_id"], channel="whatsapp")
    world.do(
        "INSERT INTO messages (conversation_id, message_type, text_content, created_at)"
        " VALUES (%s, 'incoming', 'Oi', campaign_now() - make_interval(mins => %s))",
        conversation,
        round(60 * hours_ago),
    )
    return conversation


# UAZAPI ---------------------------------------------------------------------------------------------------------------


def test_uazapi_sends_each_part_once_under_its_own_tracking_id(world: World, play: Play) -> None:
    workspace = world.workspace()
    world.insert("ai_message_splitter_config", min_chars_to_split=20, delay_between_messages=1)
    config = world.campaign(workspace, uazapi_inbox(world, workspace), split_messages=True, max_split_parts=2)
    message = world.due_message(world.run(config), generated_message=TWO_PARTS)

    async def scenario(rig: Rig) -> None:
        (report,) = await rig.batch()
        assert (report.sent, report.parts_sent) == (1, 2)
        assert [(e["text"], e["track_id"]) for e in rig.sandbox.record.sent()] == [
            (FIRST, f"{message}:1"),
            (SECOND, f"{message}:2"),
        ]
        ids = [entry["provider_message_id"] for entry in rig.sandbox.record.sent()]
        kept = world.all("SELECT provider_message_id FROM campaign_message_parts ORDER BY part_no")
        assert [row["provider_message_id"] for row in kept] == ids

    play(scenario)


@pytest.mark.parametrize(("fault", "sends"), [("cut_after", 1), ("cut_before", 2)])
def test_uazapi_is_asked_by_tracking_id_before_anything_is_sent_again(
    world: World, play: Play, fault: str, sends: int
) -> None:
    workspace = world.workspace()
    message = world.due_message(world.run(world.campaign(workspace, uazapi_inbox(world, workspace))))

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        rig.later(minutes=20)
        await rig.batch()
        assert rig.message(message)["status"] == "sent"
        assert (rig.sends(), len(rig.sandbox.record.sent())) == (sends, 1)
        asked = [entry["kind"] for entry in rig.sandbox.record.where(provider="uazapi") if entry["kind"] != "status"]
        assert asked[:2] == ["send", "look_up"]

    play(scenario, f"uazapi/send:{fault}:times=1")


# The CRM's own sender -------------------------------------------------------------------------------------------------


def test_the_crms_function_writes_its_conversation_itself_and_we_do_not_write_it_again(
    world: World, play: Play
) -> None:
    workspace = world.workspace()
    message = world.due_message(world.run(world.campaign(workspace, supabase_inbox(world, workspace))))

    async def scenario(rig: Rig) -> None:
        (report,) = await rig.batch()
        assert report.sent == 1
        row = rig.message(message)
        (entry,) = rig.sandbox.record.sent()
        assert (entry["provider"], entry["number"]) == ("supabase", str(row["conversation_id"]))
        assert row["provider_message_id"] == entry["provider_message_id"]
        assert world.value("SELECT count(*) FROM messages") == 0
        assert world.value("SELECT last_message FROM conversations") == row["generated_message"]

    play(scenario)


def test_a_part_whose_answer_was_lost_is_found_in_the_crms_conversation(world: World, play: Play) -> None:
    workspace = world.workspace()
    message = world.due_message(
        world.run(world.campaign(workspace, supabase_inbox(world, workspace))), generated_message=FIRST
    )

    async def scenario(rig: Rig) -> None:
        def written_by_the_function(_: object) -> None:
            world.do(
                "INSERT INTO messages (conversation_id, message_type, text_content, provider_message_id, created_at)"
                " SELECT conversation_id, 'outgoing', %s, '3EB0ROW', campaign_now() FROM campaign_messages",
                FIRST,
            )

        await rig.batch(Watch(after_send=written_by_the_function))
        row = rig.message(message)
        assert (row["status"], row["provider_message_id"]) == ("sent", "3EB0ROW")
        assert world.value("SELECT count(*) FROM messages") == 1
        assert rig.sends() == 1

    play(scenario, "supabase/send:cut_after")


def test_a_miss_in_the_conversation_proves_nothing_and_nothing_is_sent_again(world: World, play: Play) -> None:
    workspace = world.workspace()
    message = world.due_message(world.run(world.campaign(workspace, supabase_inbox(world, workspace))))

    async def scenario(rig: Rig) -> None:
        await rig.until_quiet()
        row = rig.message(message)
        assert (row["status"], row["error_class"]) == ("failed", "unknown")
        assert rig.sends() == 1

    play(scenario, "supabase/send:cut_after")


# The Cloud API --------------------------------------------------------------------------------------------------------


def test_a_cold_lead_gets_the_template_with_variables_that_the_model_wrote(world: World, play: Play) -> None:
    _, _, config = cloud_campaign(world, split_messages=True)
    message = world.due_message(world.run(config))

    async def scenario(rig: Rig) -> None:
        (report,) = await rig.batch()
        assert (report.sent, report.parts_sent) == (1, 1)
        (entry,) = rig.sandbox.record.sent()
        row = rig.message(message)
        name, language, values = (row["template"][key] for key in ("name", "language", "variables"))
        assert (name, language, len(values)) == ("primeiro_contato", "pt_BR", 2)
        assert entry["text"] == " | ".join(["primeiro_contato pt_BR", *values])
        assert entry["track_id"] == f"{message}:1"
        # What the lead reads is what the CRM shows.
        read = BODY.replace("{{1}}", values[0]).replace("{{2}}", values[1])
        assert row["generated_message"] == read
        assert world.value("SELECT text_content FROM messages") == read
        assert rig.generations() == 1
        part = world.one("SELECT * FROM campaign_message_parts")
        assert part["provider_response"]["message_status"] == "accepted"

    play(scenario)


def test_a_retry_sends_the_very_same_variables_and_pays_for_nothing(world: World, play: Play) -> None:
    _, _, config = cloud_campaign(world)
    message = world.due_message(world.run(config))

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        assert rig.message(message)["status"] == "pending"
        rig.later(minutes=8)
        await rig.batch()
        assert rig.message(message)["status"] == "sent"
        first, second = rig.sandbox.record.where(kind="send")
        assert first["text"] == second["text"]
        assert rig.generations() == 1

    play(scenario, "cloud_api/send:server_error_500:times=1")


@pytest.mark.parametrize(("hours_ago", "free"), [(1, True), (23.5, True), (23.9, False), (30, False)])
def test_free_text_goes_only_to_leads_who_wrote_within_a_day(
    world: World, play: Play, hours_ago: float, free: bool
) -> None:
    _, inbox, config = cloud_campaign(world)
    message = world.due_message(world.run(config))
    heard(world, message, inbox, hours_ago=hours_ago)

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        row = rig.message(message)
        assert row["status"] == "sent"
        assert (row["template"] is None) is free
        (text,) = rig.arrived()
        assert text.startswith("primeiro_contato") is not free

    play(scenario)


def test_a_message_to_another_inbox_opens_no_service_window(world: World, play: Play) -> None:
    workspace, _, config = cloud_campaign(world)
    message = world.due_message(world.run(config))
    heard(world, message, world.inbox(workspace), hours_ago=1)

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        assert rig.message(message)["template"] is not None

    play(scenario)


def test_without_a_template_the_run_waits_and_goes_on_once_it_has_one(world: World, play: Play) -> None:
    _, _, config = cloud_campaign(world, template_name=None)
    world.due_messages(world.run(config), 3)

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        assert rig.pause()["code"] == "no_template"
        assert rig.pause()["scope"] == "run"
        assert rig.statuses() == {"pending": 3}
        assert rig.generations() == 0
        world.do("UPDATE campaign_configs SET template_name = 'primeiro_contato', template_variables = NULL")
        for _ in range(3):
            rig.later(minutes=2)
            await rig.batch()
        assert rig.statuses() == {"sent": 3}
        assert rig.generations() == 0, "a template without variables needs no model"

    play(scenario)


# Its status events ----------------------------------------------------------------------------------------------------


def event(message: UUID, status: str, *, part: int = 1, at: int = 1_900_000_000, **columns: Any) -> dict[str, Any]:
    """One element of a webhook's statuses[]."""
    made: dict[str, Any] = {
        "id": "wamid.LOST",
        "status": status,
        "timestamp": str(at),
        "recipient_id": "5511987654321",
        "biz_opaque_callback_data": f"{message}:{part}",
    }
    if status == "failed":
        made["errors"] = [{"code": 131026, "title": "x", "message": "Message undeliverable"}]
    return {**made, **columns}


def hand_over(world: World, *events: dict[str, Any]) -> dict[str, int]:
    """Store events like the CRM's webhook, and run a batch after it."""
    for each in events:
        world.insert("campaign_status_events", payload=each)
    return dict(asyncio.run(settle_status_events(world.url, read_status)))


def unknown_message(world: World) -> UUID:
    """A message that ended as unknown: its part may have been sent, and nobody can be asked."""
    message = world.due_message(
        world.run(),
        conversation_id=world.insert("conversations", channel="whatsapp"),
        status="failed",
        error_class="unknown",
        error_code="unknown_outcome",
        generated_message=FIRST,
        address="5511987654321",
        finished_at="2026-11-22T12:00:00Z",
    )
    world.do(
        "INSERT INTO campaign_message_parts"
        " (message_id, part_no, text, status, idempotency_key, attempts, attempted_at)"
        " VALUES (%s, 1, %s, 'unknown', %s, 1, '2026-11-22T12:00:00Z')",
        message,
        FIRST,
        f"{message}:1",
    )
    return message


def test_an_unknown_outcome_is_settled_by_its_event_and_never_sent_again(world: World, play: Play) -> None:
    _, _, config = cloud_campaign(world)
    message = world.due_message(world.run(config))

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        assert (rig.message(message)["status"], rig.message(message)["error_class"]) == ("failed", "unknown")
        (entry,) = rig.sandbox.record.sent()
        world.insert("campaign_status_events", payload=event(message, "sent", id=entry["provider_message_id"]))
        assert await settle_status_events(world.url, read_status) == {"settled": 1}
        row = rig.message(message)
        assert (row["status"], row["error_class"]) == ("sent", None)
        assert row["provider_message_id"] == entry["provider_message_id"]
        assert world.value("SELECT count(*) FROM messages") == 1
        await rig.until_quiet()
        assert rig.sends() == 1

    play(scenario, "cloud_api/send:cut_after")


def test_a_failure_ends_an_unknown_message_with_its_class(world: World) -> None:
    message = unknown_message(world)
    assert hand_over(world, event(message, "failed")) == {"settled": 1}
    row = world.one("SELECT * FROM campaign_messages")
    assert (row["status"], row["error_class"], row["error_code"]) == ("failed", "permanent", "undeliverable")
    assert world.value("SELECT status FROM campaign_message_parts") == "failed"
    assert world.wrong_counters() == []


STAGES = {"sent": 1, "failed": 2, "delivered": 3, "read": 4}


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_events_in_any_order_and_number_leave_the_same_and_never_resurrect(world: World, data: st.DataObject) -> None:
    statuses = data.draw(st.lists(st.sampled_from(list(STAGES)), min_size=1, max_size=5), label="statuses")
    order = data.draw(st.permutations(statuses), label="order")
    message = unknown_message(world)
    half = len(order) // 2
    for group in (order[:half], order[half:]):  # some come together, some later
        hand_over(world, *(event(message, status) for status in group))
        status = world.value("SELECT status FROM campaign_messages WHERE id = %s", message)
        assert status in {"sent", "failed"}, "no event puts a message back"
    row = world.one("SELECT * FROM campaign_messages WHERE id = %s", message)
    part = world.one("SELECT * FROM campaign_message_parts WHERE message_id = %s", message)
    out = set(statuses) - {"failed"}
    assert (row["status"], part["status"]) == (("sent", "sent") if out else ("failed", "failed"))
    assert part["delivery_status"] == max(statuses, key=lambda status: STAGES[status])
    assert world.wrong_counters() == []
    shown = "SELECT count(*) FROM messages WHERE conversation_id = %s"
    assert world.value(shown, row["conversation_id"]) == (1 if out else 0)


def test_a_failure_of_an_earlier_attempt_says_nothing_of_the_last_one(world: World) -> None:
    message = unknown_message(world)
    world.do("UPDATE campaign_message_parts SET attempts = 2, attempted_at = to_timestamp(1900000000)")
    hand_over(world, event(message, "failed", at=1_899_999_000))
    assert world.value("SELECT status FROM campaign_message_parts") == "unknown"
    hand_over(world, event(message, "failed", at=1_900_000_003))
    assert world.value("SELECT status FROM campaign_message_parts") == "failed"


def test_a_failure_waits_for_the_parts_worker_and_is_then_applied(world: World) -> None:
    message = unknown_message(world)
    world.do(
        "UPDATE campaign_messages SET status = 'sending', error_class = NULL, lease_token = gen_random_uuid(),"
        " lease_expires_at = campaign_now() + interval '1 minute', finished_at = NULL"
    )
    world.do("UPDATE campaign_message_parts SET status = 'attempting'")
    assert hand_over(world, event(message, "failed")) == {"later": 1}
    assert world.value("SELECT status FROM campaign_messages") == "sending"
    assert hand_over(world) == {}, "not before its minute is over"
    world.do("UPDATE campaign_message_parts SET status = 'unknown'")
    world.do("UPDATE campaign_messages SET status = 'pending', lease_token = NULL, lease_expires_at = NULL")
    world.move_clock(timedelta(minutes=2))
    assert hand_over(world) == {"settled": 1}
    assert world.value("SELECT status FROM campaign_messages") == "failed"
    assert world.wrong_counters() == []


def test_a_sent_part_stays_sent_whatever_happens_later(world: World) -> None:
    message = unknown_message(world)
    hand_over(world, event(message, "delivered"))
    hand_over(world, event(message, "failed"))
    assert world.value("SELECT status FROM campaign_messages") == "sent"
    assert world.value("SELECT delivery_status FROM campaign_message_parts") == "delivered"


@pytest.mark.parametrize("before", ["unknown", "sent"])
def test_an_opt_out_in_an_event_applies_to_every_campaign(world: World, before: str) -> None:
    message = unknown_message(world)
    if before == "sent":
        hand_over(world, event(message, "sent"))
    for _ in range(2):
        hand_over(world, event(message, "failed", errors=[{"code": 131050, "title": "opted out"}]))
    assert world.value("SELECT count(*) FROM campaign_suppressions WHERE source = 'provider'") == 1


@pytest.mark.parametrize(
    ("payload", "verdict"),
    [
        ({"id": "wamid.X", "status": "sent"}, "not_ours"),
        ({"id": "wamid.X", "status": "sent", "biz_opaque_callback_data": "of the CRM itself"}, "not_ours"),
        ({"status": "warning", "biz_opaque_callback_data": f"{uuid4()}:1"}, "not_ours"),
        ({"biz_opaque_callback_data": 7}, "not_ours"),
        ({"status": "sent", "biz_opaque_callback_data": f"{uuid4()}:1"}, "no_part"),
    ],
)
def test_events_about_other_messages_are_set_aside(world: World, payload: dict[str, Any], verdict: str) -> None:
    assert hand_over(world, payload) == {verdict: 1}
    assert hand_over(world) == {}
    assert world.value("SELECT verdict FROM campaign_status_events") == verdict


def test_events_are_forgotten_after_a_month(world: World) -> None:
    hand_over(world, {"id": "wamid.X", "status": "sent"})
    world.move_clock(timedelta(days=31))
    hand_over(world)
    assert world.value("SELECT count(*) FROM campaign_status_events") == 0


# The whole job --------------------------------------------------------------------------------------------------------


def test_one_batch_goes_out_through_every_provider_and_settles_the_events_that_wait(
    world: World, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workspace = world.workspace()
    _, _, cold = cloud_campaign(world)
    inboxes = [uazapi_inbox(world, workspace), supabase_inbox(world, workspace), world.inbox(workspace)]
    configs = [cold, *(world.campaign(workspace, inbox) for inbox in inboxes)]
    for config in configs:
        world.due_messages(world.run(config), 3)
    lost = unknown_message(world)
    world.insert("campaign_status_events", payload=event(lost, "delivered"))
    environment.setenv("CAMPAIGN_OUTPUTS", str(tmp_path / "outputs"))
    with (
        SandboxProcess() as sandbox,
        DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance,
    ):
        point_at(environment, sandbox)
        result = run_job(instance, IN_PROCESS)
        assert result.success, troubles(result)
        sends = Counter(entry["provider"] for entry in sandbox.record() if entry["kind"] == "send")
    assert sends == {"cloud_api": 3, "uazapi": 3, "supabase": 3, "evolution": 3}
    assert Counter(row["status"] for row in world.messages()) == {"sent": 13}
    assert world.value("SELECT verdict FROM campaign_status_events") == "settled"
    assert world.wrong_counters() == []
