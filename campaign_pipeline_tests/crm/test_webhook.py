"""Our webhook beside the CRM's own: an event received by both counts once."""

import asyncio

from campaign_pipeline.adapters.webhook_events import WebhookEvent
from campaign_pipeline.adapters.webhook_store import WebhookStore
from campaign_pipeline_tests.crm import Crm


def test_a_message_that_the_crm_has_in_its_chat_is_not_counted_again(crm: Crm) -> None:
    box = crm.one(
        "SELECT x.inbox_id, i.id, i.name, i.workspace_id FROM inbox_instances x "
        "JOIN instances i ON i.id = x.instance_id ORDER BY i.name LIMIT 1"
    )
    crm.do("UPDATE instances SET provider_type = 'evolution' WHERE id = %s", box["id"])
    talk = crm.insert(
        *("conversations",),
        **{name: box[name] for name in ("workspace_id", "inbox_id")},
        contact_name="Ana",
        contact_phone="5511987654321",
    )
    crm.insert("messages", conversation_id=talk, message_type="received", text_content="Oi", provider_message_id="M1")
    before = crm.value("SELECT count(*) FROM messages")

    async def told() -> None:
        store = WebhookStore(crm.url)
        for message_id in ("M1", "M2"):
            body = {"id": message_id, "from": "5511987654321", "name": "Ana", "text": "Oi", "at": None}
            await store.store([WebhookEvent("evolution", message_id, box["name"], "message", body)])
        assert await store.settle() == {"known": 1, "settled": 1}

    asyncio.run(told())
    assert crm.value("SELECT count(*) FROM messages") == before + 1
