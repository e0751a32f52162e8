"""The pipeline's own webhook: an ASGI application that stores providers' events, responds, and then applies them.

A call is answered only after its events are committed, so a provider repeats lost ones; repeated events are stored
once. Stored events are applied here at once, and by every batch of the job if this process ended too early.
"""

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import psycopg
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from campaign_pipeline.adapters.environment import SettingError
from campaign_pipeline.adapters.webhook_events import READERS
from campaign_pipeline.adapters.webhook_store import WebhookStore
from campaign_pipeline.core.ports import StoreUnavailable

LARGEST_CALL = 4 * 2**20
"""Bytes; Meta's largest call has 3 MB."""

GATHER_SECONDS = 0.1
"""Between two rounds of applying: in a burst, many events are applied together."""

LOOK_AGAIN_SECONDS = 10.0
"""After which postponed events are tried again, even without new ones."""


@dataclass(frozen=True)
class WebhookSecrets:
    """The secrets by which a call proves that it comes from its provider."""

    app_secret: str | None = field(default=None, repr=False)  # Meta signs each call with it
    verify_token: str | None = field(default=None, repr=False)  # Meta repeats it when the address is registered
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)  # by provider: the end of its address

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> "WebhookSecrets":
        """Read CLOUD_API_APP_SECRET, CLOUD_API_VERIFY_TOKEN, EVOLUTION_WEBHOOK_TOKEN, UAZAPI_WEBHOOK_TOKEN.

        Raises SettingError where none is set, or one is too short to be a secret.
        """
        e = {name: value.strip() for name, value in env.items() if value.strip()}
        names = {"evolution": "EVOLUTION_WEBHOOK_TOKEN", "uazapi": "UAZAPI_WEBHOOK_TOKEN"}
        tokens = {provider: e[name] for provider, name in names.items() if name in e}
        for provider, token in tokens.items():
            if len(token) < 16 or not token.isalnum():
                raise SettingError(
                    f"{names[provider]} must be at least 16 letters and digits: it is part of an address."
                )
        secret, verify = e.get("CLOUD_API_APP_SECRET"), e.get("CLOUD_API_VERIFY_TOKEN")
        if (secret is None) != (verify is None):
            raise SettingError("CLOUD_API_APP_SECRET and CLOUD_API_VERIFY_TOKEN go together; set both or none.")
        if secret is None and not tokens:
            raise SettingError(
                "No webhook is set up: set CLOUD_API_APP_SECRET and CLOUD_API_VERIFY_TOKEN, EVOLUTION_WEBHOOK_TOKEN "
                "or UAZAPI_WEBHOOK_TOKEN."
            )
        return cls(secret, verify, tokens)

    def paths(self) -> list[str]:
        """Return the paths that providers call, without secrets."""
        own = [f"/{provider}/<{provider.upper()}_WEBHOOK_TOKEN>" for provider in self.tokens]
        return (["/cloud_api"] if self.app_secret else []) + own


class Webhook:
    """The application, and the task that applies stored events."""

    def __init__(self, store: WebhookStore, secrets: WebhookSecrets) -> None:
        self._store = store
        self._secrets = secrets
        self._stored = asyncio.Event()
        routes = [
            Route("/cloud_api", self._verify, methods=["GET"]),
            Route("/cloud_api", self._cloud_api, methods=["POST"]),
            Route("/{provider}/{token}", self._by_token, methods=["POST"]),
            Route("/{provider}/{token}/{event:path}", self._by_token, methods=["POST"]),  # Evolution: a path per event
            Route("/healthz", self._health, methods=["GET"]),
        ]
        self.app = Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with self._store.kept_open():
            settling = asyncio.create_task(self._keep_settling())
            try:
                yield
            finally:
                settling.cancel()
                await asyncio.gather(settling, return_exceptions=True)

    async def _keep_settling(self) -> None:
        while True:
            self._stored.clear()
            # A failed event stays stored, and is retried.
            with contextlib.suppress(psycopg.Error, StoreUnavailable):
                await self._store.settle()
            await asyncio.sleep(GATHER_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stored.wait(), LOOK_AGAIN_SECONDS)

    async def _health(self, request: Request) -> Response:
        return PlainTextResponse("ok")

    async def _verify(self, request: Request) -> Response:
        """Answer Meta's verification request when the address is registered."""
        asked, token = request.query_params, self._secrets.verify_token
        given = asked.get("hub.verify_token", "")
        if token is None or asked.get("hub.mode") != "subscribe" or not _same(given, token):
            return PlainTextResponse("The verify token is not that of CLOUD_API_VERIFY_TOKEN.", 403)
        return PlainTextResponse(asked.get("hub.challenge", ""))

    async def _cloud_api(self, request: Request) -> Response:
        secret, body = self._secrets.app_secret, await _body(request)
        if body is None:
            return PlainTextResponse("The call is too large, or broke off.", 413)
        if secret is None or not is_signed(body, request.headers.get("X-Hub-Signature-256", ""), secret):
            return PlainTextResponse("The signature is not that of CLOUD_API_APP_SECRET.", 403)
        return await self._take("cloud_api", body)

    async def _by_token(self, request: Request) -> Response:
        provider = request.path_params["provider"]
        token = self._secrets.tokens.get(provider)
        if token is None or not _same(request.path_params["token"], token):
            return PlainTextResponse("There is nothing here.", 404)
        body = await _body(request)
        return (
            PlainTextResponse("The call is too large, or broke off.", 413)
            if body is None
            else await self._take(provider, body)
        )

    async def _take(self, provider: str, body: bytes) -> Response:
        try:
            call: Any = orjson.loads(body)
        except orjson.JSONDecodeError:
            return PlainTextResponse("The body is no JSON.", 400)
        events = list(READERS[provider](call))
        if events:
            try:
                await self._store.store(events)
            except (StoreUnavailable, psycopg.Error):
                return PlainTextResponse("The database is away; send it again.", 503)
            self._stored.set()
        return PlainTextResponse("stored")


def is_signed(body: bytes, signature: str, secret: str) -> bool:
    """Return whether Meta signed exactly these bytes with the app's secret (X-Hub-Signature-256)."""
    wanted = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return _same(signature, wanted)


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


async def _body(request: Request) -> bytes | None:
    """Return the body of a call; None if it is larger than any provider's, or was cut off."""
    body = bytearray()
    with contextlib.suppress(ClientDisconnect):
        async for piece in request.stream():
            body += piece
            if len(body) > LARGEST_CALL:
                return None
        return bytes(body)
    return None
