"""Our own webhook: who may call it, what it stores, and the effects."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import httpx
import pytest

from campaign_pipeline.adapters.environment import SettingError
from campaign_pipeline.adapters.webhook import Webhook, WebhookSecrets
from campaign_pipeline.adapters.webhook_events import WebhookEvent
from campaign_pipeline.adapters.webhook_store import WebhookStore
from campaign_pipeline.core.ports import StoreUnavailable
from campaign_pipeline_tests.commands import wait_until
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import holding

TOKEN = "a1b2c3d4e5f6a7b8"
SECRETS = WebhookSecrets("app-secret", "verify", {"evolution": TOKEN, "uazapi": TOKEN})
NUMBER = "5511987654321"


def calls(world: World, scenario: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Call the application, then apply the stored events."""

    async def run() -> None:
        store = WebhookStore(world.url)
        transport = httpx.ASGITransport(Webhook(store, SECRETS).app)
        async with httpx.AsyncClient(transport=transport, base_url="http://webhook") as client:
            await scenario(client)
        await store.settle()

    asyncio.run(run())


def post(world: World, path: str, *bodies: Any, headers: dict[str, str] | None = None) -> list[int]:
    """Return the answers to some calls."""
    answers: list[int] = []

    async def scenario(client: httpx.AsyncClient) -> None:
        for body in bodies:
            answer = await client.post(path, content=json.dumps(body), headers=headers)
            answers.append(answer.status_code)

    calls(world, scenario)
    return answers


def signed(body: Any) -> dict[str, str]:
    digest = hmac.new(b"app-secret", json.dumps(body).encode(), hashlib.sha256).hexdigest()
    return {"X-Hub-Signature-256": f"sha256={digest}"}


def reply(text: str, message_id: str = "3EB0REPLY") -> dict[str, Any]:
    """A lead's message in Evolution's format: without the ninth digit."""
    key = {"remoteJid": "551187654321@s.whatsapp.net", "fromMe": False, "id": message_id}
    data = {"key": key, "pushName": "Ana", "message": {"conversation": text}, "messageTimestamp": 1_764_000_000}
    return {"event": "messages.upsert", "instance": "loja", "data": data}


def receipt(status: str, provider_id: str = "3EB0SENT") -> dict[str, Any]:
    data = {"keyId": provider_id, "fromMe": True, "remoteJid": f"{NUMBER}@s.whatsapp.net", "status": status}
    return {"event": "messages.update", "instance": "loja", "data": data}


def meta(**value: Any) -> dict[str, Any]:
    changes = [{"field": "messages", "value": {"metadata": {"phone_number_id": "12345678"}, **value}}]
    return {"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": changes}]}


def sent_message(world: World, inbox: UUID, status: str = "sent") -> tuple[UUID, UUID]:
    """A message that was sent through an inbox, and its lead; of unknown outcome if `status` says so."""
    run = world.run(world.campaign(inbox=inbox))
    workspace = world.value("SELECT workspace_id FROM inboxes WHERE id = %s", inbox)
    lead = world.lead(workspace, phone=NUMBER)
    talk = world.insert(
        *("conversations",),
        workspace_id=workspace,
        inbox_id=inbox,
        lead_id=lead,
        contact_phone=NUMBER,
        contact_name="Ana",
    )
    now = world.value("SELECT campaign_now()")
    columns = {"status": "sent", "sent_at": now} if status == "sent" else {"status": "failed", "error_class": "unknown"}
    message = world.due_message(run, lead, conversation_id=talk, generated_message="Olá!", **columns)
    part = {"message_id": message, "part_no": 1, "text": "Olá!", "idempotency_key": f"{message}:1", "attempts": 1}
    part |= {"inbox_id": inbox, "conversation_id": talk, "status": status, "attempted_at": now, "run_id": run}
    if status == "sent":
        part |= {"sent_at": now, "provider_message_id": "3EB0SENT"}
    world.insert("campaign_message_parts", **part)
    return message, lead


@pytest.fixture
def inbox(world: World) -> UUID:
    return world.inbox(world.workspace(), name="loja")


# Authentication -------------------------------------------------------------------------------------------------------


def test_a_call_of_meta_counts_only_with_its_signature(world: World) -> None:
    world.inbox(world.workspace(), provider_type="cloud_api", provider_config={"phone_number_id": "12345678"})
    body = meta(messages=[{"from": NUMBER, "id": "wamid.1", "type": "text", "text": {"body": "Oi"}}])
    forged = {"X-Hub-Signature-256": "sha256=" + "0" * 64}
    assert post(world, "/cloud_api", body, headers=forged) == post(world, "/cloud_api", body) == [403]
    assert world.all("SELECT 1 FROM campaign_webhook_events") == []
    assert post(world, "/cloud_api", body, headers=signed(body)) == [200]
    assert world.value("SELECT text_content FROM messages") == "Oi"


def test_metas_handshake_is_answered_for_the_right_token_alone(world: World) -> None:
    answers: list[tuple[int, str]] = []

    async def scenario(client: httpx.AsyncClient) -> None:
        for token in ("verify", "guess"):
            asked = {"hub.mode": "subscribe", "hub.verify_token": token, "hub.challenge": "4711"}
            answer = await client.get("/cloud_api", params=asked)
            answers.append((answer.status_code, answer.text))

    calls(world, scenario)
    assert answers[0] == (200, "4711")
    assert answers[1][0] == 403
    assert "4711" not in answers[1][1]


def test_an_address_without_the_token_is_none(world: World) -> None:
    assert post(world, "/evolution/0000000000000000", reply("Oi")) == post(world, f"/smtp/{TOKEN}", {}) == [404]
    assert post(world, f"/evolution/{TOKEN}/messages-upsert", {"event": "unheard.of"}, ["no", "object"]) == [200, 200]


@pytest.mark.parametrize("variables", [{}, {"CLOUD_API_APP_SECRET": "x"}, {"UAZAPI_WEBHOOK_TOKEN": "short"}])
def test_a_webhook_without_secrets_does_not_start(variables: dict[str, str]) -> None:
    with pytest.raises(SettingError, match="_TOKEN"):
        WebhookSecrets.from_environment(variables)


# Effects --------------------------------------------------------------------------------------------------------------


def test_a_reply_is_shown_once_and_stops_what_is_planned_for_its_lead(world: World, inbox: UUID) -> None:
    message, lead = sent_message(world, inbox)
    other = world.run(world.campaign(inbox=inbox))
    planned, elsewhere = world.due_message(other, lead), world.due_message(other)
    paused = world.due_message(world.run(world.campaign(inbox=inbox), status="paused"), lead)
    world.do("UPDATE campaign_messages SET status = 'skipped', error_message = 'Pausado' WHERE id = %s", paused)
    assert post(world, f"/evolution/{TOKEN}", reply("Quero saber mais"), reply("Quero saber mais")) == [200, 200]
    assert post(world, f"/evolution/{TOKEN}", reply("Quero saber mais")) == [200]
    assert [row["text_content"] for row in world.all("SELECT * FROM messages")] == ["Quero saber mais"]
    statuses = {row["id"]: (row["status"], row["error_code"]) for row in world.messages()}
    assert statuses == {
        message: ("replied", None),
        planned: ("skipped", "lead_replied"),
        paused: ("skipped", "lead_replied"),
        elsewhere: ("pending", None),
    }
    assert world.value("SELECT count(*) FROM campaign_messages WHERE strpos(error_message, 'ausad') > 0") == 0
    assert world.value("SELECT unread_count FROM conversations") == 1
    assert world.value("SELECT body FROM campaign_webhook_events") == {}
    assert world.wrong_counters() == []


def test_a_reply_stops_a_leased_message_before_its_request(world: World, inbox: UUID) -> None:
    _, lead = sent_message(world, inbox)
    other = world.run(world.campaign(inbox=inbox))
    queued, written, begun = (world.due_message(other, lead) for _ in range(3))
    holder = holding(world, queued, written, begun)
    holder.begin_new(written, part_no=0)
    assert holder.begin_new(begun, "Um", "Dois") == "go"
    assert post(world, f"/evolution/{TOKEN}", reply("Quero saber mais")) == [200]
    assert holder.begin_new(queued) == holder.begin(written, attempt_no=1) == "lost"
    holder.sent(begun)
    statuses = {row["id"]: (row["status"], row["error_code"]) for row in world.messages(other)}
    replied = ("skipped", "lead_replied")
    assert statuses == {queued: replied, written: replied, begun: ("sending", None)}
    assert holder.begin(begun, part_no=2, attempt_no=1) == "go"
    assert world.wrong_counters() == []


def test_an_inbox_name_of_two_tenants_is_ambiguous(world: World, inbox: UUID) -> None:
    sent_message(world, inbox)
    world.inbox(world.workspace(), name="loja")
    post(world, f"/evolution/{TOKEN}", reply("Oi"))
    assert world.value("SELECT verdict FROM campaign_webhook_events") == "not_ours"
    assert world.all("SELECT 1 FROM messages") == []


def test_an_opt_out_holds_at_once(world: World, inbox: UUID) -> None:
    _, lead = sent_message(world, inbox)
    post(world, f"/evolution/{TOKEN}", reply("SAIR"))
    held = world.one("SELECT lead_id, address, source FROM campaign_suppressions WHERE lifted_at IS NULL")
    assert held == {"lead_id": lead, "address": NUMBER, "source": "keyword"}


def test_receipts_in_any_order_give_the_latest_stage(world: World, inbox: UUID) -> None:
    sent_message(world, inbox)
    post(world, f"/evolution/{TOKEN}", receipt("READ"), receipt("DELIVERY_ACK"), receipt("DELIVERY_ACK", "3EB0OTHER"))
    assert world.value("SELECT delivery_status FROM campaign_message_parts") == "read"
    verdicts = {row["event_id"]: row["verdict"] for row in world.all("SELECT * FROM campaign_webhook_events")}
    # A receipt may arrive before the answer that it belongs to.
    assert verdicts == {"3EB0SENT:read": "settled", "3EB0SENT:delivered": "settled", "3EB0OTHER:delivered": None}


def test_a_receipt_of_meta_settles_an_unknown_outcome(world: World) -> None:
    own = world.inbox(world.workspace(), provider_type="cloud_api", provider_config={"phone_number_id": "12345678"})
    message, _ = sent_message(world, own, "unknown")
    status = {"id": "wamid.2", "status": "delivered", "timestamp": "1764000000", "recipient_id": NUMBER}
    body = meta(statuses=[{**status, "biz_opaque_callback_data": f"{message}:1"}])
    post(world, "/cloud_api", body, headers=signed(body))
    assert world.value("SELECT status FROM campaign_messages") == "sent"
    assert world.value("SELECT provider_message_id FROM campaign_message_parts") == "wamid.2"


def test_uazapis_events_are_read(world: World) -> None:
    inbox = world.inbox(world.workspace(), name="loja", provider_type="uazapi")
    sent_message(world, inbox)
    event = {"MessageIDs": ["3EB0SENT"], "Type": "read"}
    message = {"messageid": "M1", "chatid": f"{NUMBER}@s.whatsapp.net", "fromMe": False, "text": "Oi", "isGroup": False}
    post(
        *(world, f"/uazapi/{TOKEN}"),
        {"EventType": "messages_update", "instanceName": "loja", "event": event, "state": "Read"},
        {"EventType": "messages", "instanceName": "loja", "message": message},
        {"EventType": "messages", "instanceName": "loja", "message": {**message, "messageid": "M2", "fromMe": True}},
    )
    assert world.value("SELECT delivery_status FROM campaign_message_parts") == "read"
    assert world.value("SELECT text_content FROM messages") == "Oi"


def test_a_burst_of_a_thousand_events_is_stored_without_loss(world: World, inbox: UUID) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        bodies = [receipt("READ", f"3EB0{number}") for number in range(1000)]
        answers = await asyncio.gather(*(client.post(f"/evolution/{TOKEN}", json=body) for body in bodies))
        assert {answer.status_code for answer in answers} == {200}

    calls(world, scenario)
    assert world.value("SELECT count(*) FROM campaign_webhook_events") == 1000


def test_connections_are_kept_through_a_burst_and_one_that_is_cut_loses_nothing(world: World) -> None:
    def backends() -> list[int]:
        asked = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND strpos(query, %s) > 0"
        return [row["pid"] for row in world.all(asked, "INSERT INTO campaign_pipeline.campaign_webhook_events")]

    async def run() -> None:
        store = WebhookStore(world.url)
        async with store.kept_open():
            for number in range(20):
                await store.store([WebhookEvent("evolution", f"3EB0{number}", "loja", "status", {})])
            kept = backends()
            assert 1 <= len(kept) <= 4
            world.all("SELECT pg_terminate_backend(p) FROM unnest(%s::integer[]) AS p", kept)
            await store.store([WebhookEvent("evolution", "3EB020", "loja", "status", {})])
            assert not set(backends()) & set(kept)
        wait_until(lambda: backends() == [])  # a server's process ends a moment after its connection

    asyncio.run(run())
    assert world.value("SELECT count(*) FROM campaign_webhook_events") == 21


def test_a_connection_to_a_server_that_takes_no_writes_any_more_is_not_kept(world: World) -> None:
    """As after a fail-over, when the former primary still answers."""
    change = f"ALTER DATABASE {world.value('SELECT quote_ident(current_database())')}"
    events = [WebhookEvent("evolution", "3EB0", "loja", "status", {})]

    async def run() -> None:
        store = WebhookStore(world.url, patience_seconds=0.5)
        world.do(f"{change} SET default_transaction_read_only = on")
        async with store.kept_open():
            with pytest.raises(StoreUnavailable, match="read-only"):
                await store.store(events)
            world.do(f"{change} RESET default_transaction_read_only")
            await store.store(events)

    asyncio.run(run())
    assert world.value("SELECT count(*) FROM campaign_webhook_events") == 1
