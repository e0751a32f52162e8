"""Status events of the Cloud API, stored by the CRM's webhook: what they settle, and how.

The webhook inserts each element of Meta's `statuses[]` unchanged:

    INSERT INTO campaign_pipeline.campaign_status_events (payload) SELECT jsonb_array_elements(:statuses);

Each batch settles the stored events; `settle_status_events` does so at any other time.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from campaign_pipeline.adapters.statements import Lender, lender_of
from campaign_pipeline.core.ports import StatusEvent
from campaign_pipeline.sql import statement

EVENTS_A_ROUND = 1000
"""Events per transaction: their messages stay locked during it."""


async def settle_status_events(database: str | Lender, read: Callable[[Any], StatusEvent | None]) -> Counter[str]:
    """Settle every stored event; return how many ended how. `later` ones are tried again in a minute.

    Safe to call from several processes at once, and to interrupt anywhere: an event is settled in the transaction that
    applies it, and applying it twice changes nothing. Raises psycopg.Error if the database refuses.
    """
    verdicts = Counter[str]()
    async with lender_of(database)() as connection:
        while True:
            async with connection.transaction():
                settled = await _settle_round(connection, read)
            verdicts.update(settled)
            if len(settled) < EVENTS_A_ROUND:
                break
        await connection.execute(statement("drop_settled_status_events"))
    return verdicts


async def _settle_round(
    connection: "psycopg.AsyncConnection[dict[str, Any]]", read: Callable[[Any], StatusEvent | None]
) -> list[str]:
    taken = await (await connection.execute(statement("take_status_events"), {"limit": EVENTS_A_ROUND})).fetchall()
    if not taken:
        return []
    events = {row["id"]: read(row["payload"]) for row in taken}
    ours = [_item(event_id, event) for event_id, event in events.items() if event is not None]
    verdicts = dict.fromkeys(events, "not_ours")
    if ours:
        rows = await (await connection.execute(statement("apply_status_events"), {"events": Jsonb(ours)})).fetchall()
        verdicts |= {row["event_id"]: row["verdict"] for row in rows}
    await connection.execute(
        statement("note_status_events"), {"ids": list(verdicts), "verdicts": list(verdicts.values())}
    )
    return list(verdicts.values())


def _item(event_id: int, event: StatusEvent) -> dict[str, Any]:
    item = asdict(event)
    return {"event_id": event_id, "id": item.pop("message_id"), **item}
