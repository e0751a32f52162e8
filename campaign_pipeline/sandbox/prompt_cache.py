"""Prompt caching like OpenRouter's: which models cache the beginning of a prompt, for how long, at what price.

A model runs on several endpoints, each with a cache of its own. Requests of one `session_id` stay on one endpoint;
others go where the hash of their opening messages says, as OpenRouter's guide on prompt caching describes it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

ENDPOINTS = 3
"""The endpoints on which the sandbox runs each model."""

KEPT_SECONDS = 300.0
"""Lifetime of an entry since its last use."""

CHARS_PER_TOKEN = 4
_SHORTEST, _BLOCK = 1024, 128  # tokens: least length, and block size without marks


@dataclass(frozen=True)
class Caching:
    """The caching of a model family; prices are shares of an input token's price."""

    read: float
    write: float = 1.0
    marked: bool = False  # only up to a block with `cache_control`


FAMILIES: Mapping[str, Caching] = {
    "anthropic/": Caching(0.1, 1.25, marked=True),
    "qwen/": Caching(0.1, 1.25, marked=True),
    "deepseek/": Caching(0.1),
    "google/gemini-2.5": Caching(0.25),
    "openai/gpt-5": Caching(0.1),
    "openai/gpt-4.1": Caching(0.25),
    "openai/": Caching(0.5),
    "x-ai/": Caching(0.25),
}
"""By the beginning of the model's name; the first match counts, other models do not cache."""


@dataclass(frozen=True)
class PromptUse:
    """The bill of one prompt, in tokens."""

    tokens: int
    cached: int = 0
    written: int = 0
    billed: float = 0.0  # in tokens at the full input price
    kept: tuple[bytes, ...] = ()  # keys of the prefixes that are cached after the answer


class PromptCache:
    """The caches of all endpoints, of all accounts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[bytes, float] = {}

    def look(self, account: str, model: str, body: Mapping[str, Any]) -> PromptUse:
        """Look up the cached prefix of a prompt that arrives now."""
        blocks = list(_blocks(body["messages"]))
        text = "\n".join(words for _, words, _ in blocks)
        tokens = max(1, -(-len(text) // CHARS_PER_TOKEN))
        caching = next((found for name, found in FAMILIES.items() if model.startswith(name)), None)
        if caching is None or tokens < _SHORTEST:
            return PromptUse(tokens, billed=float(tokens))
        place = f"{account}\0{model}\0{_endpoint(body, blocks)}".encode()
        names = dict(_beginnings(place, text, _marked_chars(blocks) if caching.marked else None))
        now = self._clock()
        cached = max((size for name, size in names.items() if self._until.get(name, 0.0) > now), default=0)
        written = max(names.values(), default=0) - cached if caching.marked else 0
        plain = tokens - cached - written
        return PromptUse(tokens, cached, written, plain + caching.read * cached + caching.write * written, tuple(names))

    def keep(self, use: PromptUse) -> None:
        """Cache a prompt's prefixes after its answer."""
        until = self._clock() + KEPT_SECONDS
        self._until.update(dict.fromkeys(use.kept, until))


def _blocks(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, bool]]:
    """Return role, text and mark of each block."""
    for message in messages:
        role, content = str(message.get("role")), message.get("content")
        for block in content if isinstance(content, list) else [{"text": content}]:
            if isinstance(block, dict):
                yield role, str(block.get("text") or ""), isinstance(block.get("cache_control"), dict)


def _marked_chars(blocks: Sequence[tuple[str, str, bool]]) -> int:
    """Count the characters up to the end of the last marked block."""
    marked = max((place for place, (_, _, mark) in enumerate(blocks) if mark), default=-1)
    return len("\n".join(words for _, words, _ in blocks[: marked + 1]))


def _beginnings(place: bytes, text: str, marked: int | None) -> Iterator[tuple[bytes, int]]:
    """Return key and tokens of each prefix that may be cached: all whole blocks, or the marked one."""
    last = (len(text) if marked is None else marked) // CHARS_PER_TOKEN
    ends = range(_SHORTEST, last + 1, _BLOCK) if marked is None else (last,)
    digest, done = blake2b(place, digest_size=16), 0
    for tokens in ends:
        if tokens < _SHORTEST:
            continue
        end = tokens * CHARS_PER_TOKEN
        digest.update(text[done:end].encode("utf-8", "replace"))
        done = end
        yield digest.copy().digest(), tokens


def _endpoint(body: Mapping[str, Any], blocks: Sequence[tuple[str, str, bool]]) -> int:
    session = body.get("session_id")
    if not isinstance(session, str):
        system = next((words for role, words, _ in blocks if role == "system"), "")
        session = "\0".join((system, next((words for role, words, _ in blocks if role != "system"), "")))
    return blake2b(session.encode("utf-8", "replace"), digest_size=2).digest()[0] % ENDPOINTS
