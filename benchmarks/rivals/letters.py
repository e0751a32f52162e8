"""The work of a rival: what to ask the model for and whom to send it to, ready made.

A rival gets the requests as bytes that this project would have sent, so that the sandbox draws the same latencies for
it; reading contexts and writing prompts costs it nothing.
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
    """One message: the two requests that it needs, but for the text that the first one brings."""

    id: str
    generation: str  # the body of the first request
    send_url: str
    number: str


@dataclass(frozen=True)
class Letters:
    """All of them, and where the model is."""

    generation_url: str
    letters: Sequence[Letter]

    def save(self, file: Path) -> None:
        """Write them for a rival in another process."""
        file.write_bytes(orjson.dumps(asdict(self)))

    @classmethod
    def load(cls, file: Path) -> "Letters":
        """Read what `save` wrote."""
        raw = orjson.loads(file.read_bytes())
        return cls(raw["generation_url"], [Letter(**letter) for letter in raw["letters"]])

    def part(self, no: int, of: int) -> "Letters":
        """Every `of`-th one."""
        return Letters(self.generation_url, self.letters[no::of])


GENERATION_HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
SEND_HEADERS = {"apikey": TOKEN, "Content-Type": "application/json"}


def read_letters(url: str, sandbox: SandboxProcess, most: int | None = None) -> Letters:
    """Make the letters of a database that `world.fill` filled, in the order in which they are due."""
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
    """The body of the second request."""
    return orjson.dumps({"number": letter.number, "text": text, "delay": 0, "linkPreview": False})


def text_in(answer: Any) -> str:
    """The text in the model's answer."""
    return str(answer["choices"][0]["message"]["content"]).strip()


async def generate(session: aiohttp.ClientSession, url: str, letter: Letter) -> str:
    """The first request; returns the text. Raises aiohttp.ClientError for anything but a success."""
    async with session.post(url, data=letter.generation.encode(), headers=GENERATION_HEADERS) as response:
        response.raise_for_status()
        return text_in(orjson.loads(await response.read()))


async def send(session: aiohttp.ClientSession, letter: Letter, text: str) -> str:
    """The second request; returns the provider's id. Raises aiohttp.ClientError for anything but a success."""
    async with session.post(letter.send_url, data=send_body(letter, text), headers=SEND_HEADERS) as response:
        response.raise_for_status()
        return str(orjson.loads(await response.read())["key"]["id"])


def client_session(connections: int) -> aiohttp.ClientSession:
    """The fastest client there is for this: aiohttp itself."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections), cookie_jar=aiohttp.DummyCookieJar())
