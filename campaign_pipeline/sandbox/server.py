"""The sandbox: one server for all mock providers, and its own endpoints under `/_sandbox`."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
from aiohttp import web

from campaign_pipeline.sandbox.behaviour import Behaviour, BehaviourError, Conduct
from campaign_pipeline.sandbox.cloud_api import CloudApi
from campaign_pipeline.sandbox.evolution import Evolution
from campaign_pipeline.sandbox.openrouter import OpenRouter
from campaign_pipeline.sandbox.provider import Provider, Stage, answer
from campaign_pipeline.sandbox.record import Record
from campaign_pipeline.sandbox.supabase import Supabase
from campaign_pipeline.sandbox.uazapi import Uazapi

_run: Callable[[Coroutine[Any, Any, None]], None]
try:
    import uvloop

    _run = uvloop.run
except ImportError:  # uvloop is only faster
    _run = asyncio.run

PROVIDERS: tuple[type[Provider], ...] = (OpenRouter, Evolution, Uazapi, CloudApi, Supabase)
"""All mock providers; a new one needs a line here and one in `Addresses`."""

_LARGEST_BODY = 16 * 2**20  # bytes
_SHUTDOWN = 0.01  # seconds; aiohttp takes 0 for "wait for ever"
_FILTERS = ("provider", "kind", "instance", "number")


class Addresses:
    """The addresses of a sandbox's providers."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The root of the server, without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def openrouter_url(self) -> str:
        """The base URL of OpenRouter, with its `/api/v1`."""
        return self.url + OpenRouter.prefix

    @property
    def evolution_url(self) -> str:
        """The base URL of Evolution."""
        return self.url + Evolution.prefix

    @property
    def uazapi_url(self) -> str:
        """The base URL of UAZAPI."""
        return self.url + Uazapi.prefix

    @property
    def cloud_api_url(self) -> str:
        """The base URL of the Cloud API, without a version."""
        return self.url + CloudApi.prefix

    @property
    def supabase_url(self) -> str:
        """The URL of the Supabase project."""
        return self.url + Supabase.prefix


class Sandbox(Addresses):
    """A server on a loopback port, as an asynchronous context manager.

    ```
    async with Sandbox(Behaviour(faults=(Fault.parse("send:cut_after:times=1"),))) as sandbox:
        ...  # talk to sandbox.evolution_url
        assert not sandbox.record.summary()["accepted_twice"]
    ```

    Raises:
        BehaviourError: the behaviour names a provider that there is not, or a fault that it cannot have.
        RecordError: the record file is none.
        OSError: the port is taken, or the record file cannot be written.
    """

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,  # 0: any that is free
        record_file: Path | None = None,
    ) -> None:
        behaviour = behaviour or Behaviour()
        check_providers(behaviour)
        self.host = host
        self.port = port
        self._conduct = Conduct(behaviour)
        self._record_file = record_file
        self._record: Record | None = None
        self._stage: Stage | None = None
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> "Sandbox":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Serve; return when requests are accepted."""
        self._record = Record(self._record_file)
        self._stage = Stage(self._conduct, self._record)
        app = web.Application(client_max_size=_LARGEST_BODY)
        for provider in PROVIDERS:
            app.router.add_routes(provider(self._stage).routes())
        app.router.add_routes(
            [
                web.get("/_sandbox/behaviour", self._tell_behaviour),
                web.post("/_sandbox/behaviour", self._change_behaviour),
                web.get("/_sandbox/record", self._tell_record),
                web.get("/_sandbox/summary", self._tell_summary),
                web.post("/_sandbox/reset", self._reset),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN)
        try:
            await self._runner.setup()
            await web.TCPSite(self._runner, self.host, self.port, backlog=1024).start()
        except BaseException:
            await self.stop()
            raise
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop at once: requests in flight get no answer; accepted ones stay in the record."""
        if self._stage is not None:
            self._stage.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._record is not None:
            self._record.close()

    @property
    def record(self) -> Record:
        """The record, which is also readable after the sandbox has stopped."""
        if self._record is None:
            raise RuntimeError("The sandbox was not started.")
        return self._record

    @property
    def behaviour(self) -> Behaviour:
        """The current behaviour."""
        return self._conduct.behaviour

    def set_behaviour(self, behaviour: Behaviour) -> None:
        """Set the behaviour, from the next request on; the counts of all rules are reset.

        Raises:
            BehaviourError: it names a provider that there is not, or a fault that it cannot have.
        """
        check_providers(behaviour)
        self._conduct.change(behaviour)

    def reset(self) -> None:
        """Clear all requests and counts; the behaviour stays."""
        if self._stage is not None:
            self._stage.forget_later()
        self.record.reset()
        self._conduct.recount()

    async def _tell_behaviour(self, _: web.Request) -> web.Response:
        return answer(200, self.behaviour.to_dict())

    async def _change_behaviour(self, request: web.Request) -> web.Response:
        try:
            raw = orjson.loads(await request.read())
            behaviour = self.behaviour.updated(raw)
            check_providers(behaviour)
        except orjson.JSONDecodeError as error:
            return answer(400, {"error": f"The behaviour is not JSON: {error}."})
        except BehaviourError as error:
            return answer(400, {"error": str(error)})
        self._conduct.change(behaviour, recount="faults" in raw or "seed" in raw)
        return answer(200, behaviour.to_dict())

    async def _tell_record(self, request: web.Request) -> web.Response:
        unknown = sorted(set(request.query) - {*_FILTERS, "accepted"})
        accepted = request.query.get("accepted")
        if unknown or accepted not in {None, "true", "false"}:
            return answer(400, {"error": f"Ask by {', '.join(_FILTERS)} and accepted (true or false)."})
        wanted = {name: request.query.get(name) for name in _FILTERS}
        return answer(200, self.record.where(**wanted, accepted=None if accepted is None else accepted == "true"))

    async def _tell_summary(self, _: web.Request) -> web.Response:
        return answer(200, self.record.summary())

    async def _reset(self, _: web.Request) -> web.Response:
        self.reset()
        return answer(200, {})


def check_providers(behaviour: Behaviour) -> None:
    """Check that every rule can apply.

    Raises:
        BehaviourError: a rule names a provider that there is not, or that has no endpoint of this kind.
    """
    kinds = {provider.name: provider.kinds for provider in PROVIDERS}
    for fault in behaviour.faults:
        if fault.provider is not None and fault.provider not in kinds:
            raise BehaviourError(f"There is no provider {fault.provider!r}; choose one of: {', '.join(kinds)}.")
        if fault.provider is not None and fault.kind not in kinds[fault.provider]:
            raise BehaviourError(f"{fault.provider} has no {fault.kind.value} endpoint.")


@dataclass(frozen=True)
class SandboxOptions:
    """The settings of `serve`."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: any that is free
    behaviour: Behaviour = field(default_factory=Behaviour)
    record_file: Path | None = None  # accepted messages, which survive a kill
    ready_file: Path | None = None  # written when requests are accepted: JSON with pid, host, port and the URLs


def serve(options: SandboxOptions, announce: Callable[[Sandbox], None] | None = None) -> None:
    """Run a sandbox in this process until SIGTERM or SIGINT; call `announce` once it accepts requests.

    Raises:
        BehaviourError: the behaviour names a provider that there is not, or a fault that it cannot have.
        RecordError: the record file is none.
        OSError: the port is taken, or a file cannot be written.
    """
    with suppress(KeyboardInterrupt):  # SIGINT, if the loop cannot handle signals (Windows)
        _run(_serve_until_told(options, announce))


async def _serve_until_told(options: SandboxOptions, announce: Callable[[Sandbox], None] | None) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, told.set)
    sandbox = Sandbox(options.behaviour, host=options.host, port=options.port, record_file=options.record_file)
    async with sandbox:
        if options.ready_file is not None:
            _write_ready_file(options.ready_file, sandbox)
        if announce is not None:
            announce(sandbox)
        await told.wait()


def _write_ready_file(file: Path, sandbox: Sandbox) -> None:
    """Write the sandbox's addresses; the file is created atomically."""
    content: dict[str, Any] = {"pid": os.getpid(), "host": sandbox.host, "port": sandbox.port, "url": sandbox.url}
    content |= {f"{provider.name}_url": sandbox.url + provider.prefix for provider in PROVIDERS}
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    draft.write_bytes(orjson.dumps(content))
    draft.replace(file)
