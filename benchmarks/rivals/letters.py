"""The work of a rival: prepared requests to the model and to the provider.

A rival gets the bytes of the requests that this project would send, so the sandbox draws the same latencies for it.
Reading contexts and building prompts costs the rival nothing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psycopg
from psycopg.rows import dict_row

from benchmarks.world import KEY, TOKEN
from campaign_pipeline.adapters.openrouter import request_body
from campaign_pipeline.core.address import normalize_phone
from campaign_pipeline.core.context import LeadContext, in_order
from campaign_pipeline.core.generation import Author, first_contact_prompt
from campaign_pipeline.core.ports import Prompt
from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline.sql import statement


@dataclass(frozen=True)
class Letter:
    """The two requests of one message, without the text, which the first one returns."""

    id: str
    generation: str  # the body of the first request
    send_url: str
    number: str


@dataclass(frozen=True)
class Letters:
    """All letters, and the model's address."""

    generation_url: str
    letters: Sequence[Letter]

    def save(self, file: Path) -> None:
        """Write the letters to a file, for a rival in another process."""
        file.write_bytes(orjson.dumps(asdict(self)))

    @classmethod
    def load(cls, file: Path) -> "Letters":
        """Read a file that `save` wrote."""
        raw = orjson.loads(file.read_bytes())
        return cls(raw["generation_url"], [Letter(**letter) for letter in raw["letters"]])

    def part(self, no: int, of: int) -> "Letters":
        """Return every `of`-th letter, beginning with number `no`."""
        return Letters(self.generation_url, self.letters[no::of])


GENERATION_HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
SEND_HEADERS = {"apikey": TOKEN, "Content-Type": "application/json"}


def read_letters(url: str, sandbox: SandboxProcess, most: int | None = None) -> Letters:
    """Build the letters of a database that `world.fill` filled, by due time."""
    query = """
        SELECT m.id, m.lead_id, m.phone_number, i.name, a.model, c.ai_instructions, c.workspace_id,
               a.system_prompt, w.name AS workspace
        FROM public.campaign_messages m JOIN public.campaign_runs r ON r.id = m.run_id
        JOIN public.campaign_configs c ON c.id = r.config_id
        JOIN public.inbox_instances x ON x.inbox_id = c.inbox_id JOIN public.instances i ON i.id = x.instance_id
        JOIN public.ai_agents a ON a.workspace_id = c.workspace_id JOIN public.workspaces w ON w.id = c.workspace_id
        ORDER BY m.scheduled_at, m.id LIMIT %s
    """
    with psycopg.connect(url, row_factory=dict_row) as connection:
        rows = connection.execute(query, [most]).fetchall()
        asked = {name: [row[name] for row in rows] for name in ("lead_id", "workspace_id")}
        found = connection.execute(
            statement("get_lead_contexts"), {"lead_ids": asked["lead_id"], "workspace_ids": asked["workspace_id"]}
        )
        contexts = {row["lead_id"]: _context(orjson.loads(row["context"])) for row in found}
    letters = []
    for row in rows:
        author = Author(row["system_prompt"] or "", row["workspace"] or "")
        system, user = first_contact_prompt(row["ai_instructions"], contexts[str(row["lead_id"])], author)
        prompt = Prompt(row["model"], system, user, reference=str(row["id"]), workspace_id=str(row["workspace_id"]))
        letters.append(
            Letter(
                str(row["id"]),
                orjson.dumps(request_body(prompt)).decode(),
                f"{sandbox.evolution_url}/message/sendText/{row['name']}",
                normalize_phone(row["phone_number"]),
            )
        )
    return Letters(f"{sandbox.openrouter_url}/chat/completions", letters)


def _context(row: dict[str, Any]) -> LeadContext:
    return LeadContext.from_row({**row, "custom_fields": in_order(row["custom_fields"])})


def send_body(letter: Letter, text: str) -> bytes:
    """Return the body of the second request."""
    return orjson.dumps({"number": letter.number, "text": text, "delay": 0, "linkPreview": False})


def text_in(answer: Any) -> str:
    """Return the text in the model's answer."""
    return str(answer["choices"][0]["message"]["content"]).strip()


async def generate(session: aiohttp.ClientSession, url: str, letter: Letter) -> str:
    """Make the first request; return the text. Raises aiohttp.ClientError unless it succeeds."""
    async with session.post(url, data=letter.generation.encode(), headers=GENERATION_HEADERS) as response:
        response.raise_for_status()
        return text_in(orjson.loads(await response.read()))


async def send(session: aiohttp.ClientSession, letter: Letter, text: str) -> str:
    """Make the second request; return the provider's id. Raises aiohttp.ClientError unless it succeeds."""
    async with session.post(letter.send_url, data=send_body(letter, text), headers=SEND_HEADERS) as response:
        response.raise_for_status()
        return str(orjson.loads(await response.read())["key"]["id"])


def client_session(connections: int) -> aiohttp.ClientSession:
    """Return an aiohttp session, the fastest client for this work."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections), cookie_jar=aiohttp.DummyCookieJar())
