"""A sandbox in a separate process, for whole jobs and for tests that kill a provider."""

import http.client
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

import orjson

from campaign_pipeline.sandbox.behaviour import Behaviour
from campaign_pipeline.sandbox.server import Addresses

_START_TIMEOUT = 30.0  # seconds
_STOP_TIMEOUT = 10.0  # seconds
_LOOK_EVERY = 0.01  # seconds
_ASK_TIMEOUT = 60.0  # seconds; a record of many messages is long


class SandboxFailed(ChildProcessError):
    """The sandbox did not start, or refused a request."""


class SandboxProcess(Addresses):
    """A child process that serves on 127.0.0.1, as a context manager.

    What it accepts is kept in a file (its own, unless `record_file` names one), so `kill` and `restart` lose none of
    it; all that was not accepted is forgotten by a kill. `restart` keeps the port and the behaviour.

    Raises:
        SandboxFailed: it did not start.
    """

    def __init__(self, behaviour: Behaviour | None = None, *, port: int = 0, record_file: Path | None = None) -> None:
        self.host = "127.0.0.1"
        self.port = port
        self._behaviour = behaviour or Behaviour()
        self._given_record_file = record_file
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "SandboxProcess":
        try:
            self.start()
        except BaseException:
            self.kill()
            self._forget_folder()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._forget_folder()

    @property
    def record_file(self) -> Path:
        """The file of accepted messages."""
        return self._given_record_file or self._private("record.jsonl")

    def start(self) -> None:
        """Start the child and wait until it accepts requests.

        Raises:
            SandboxFailed: it ended, or took too long.
        """
        if self._child is not None:
            raise SandboxFailed("The sandbox is already running.")
        ready_file = self._private("ready.json")
        ready_file.unlink(missing_ok=True)
        behaviour_file = self._private("behaviour.json")
        behaviour_file.write_bytes(orjson.dumps(self._behaviour.to_dict()))
        errors_file = self._private("errors.txt")
        command = [sys.executable, "-m", "campaign_pipeline.sandbox", "--host", self.host, "--port", str(self.port)]
        command += ["--behaviour-file", str(behaviour_file), "--record-file", str(self.record_file)]
        command += ["--ready-file", str(ready_file)]
        with errors_file.open("wb") as errors:
            self._child = subprocess.Popen(  # noqa: S603  # our own module, started without a shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                # Ctrl-C in a terminal must not end the provider while requests are in flight.
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_TIMEOUT
        while not ready_file.exists():
            if self._child.poll() is not None or time.monotonic() > deadline:
                self.kill()
                reason = errors_file.read_text(errors="replace").strip() or "it did not answer in time"
                raise SandboxFailed(f"The sandbox did not start: {reason}")
            time.sleep(_LOOK_EVERY)
        self.port = orjson.loads(ready_file.read_bytes())["port"]

    def stop(self) -> int | None:
        """End the child and return its exit code; None if none ran, or if it had to be killed."""
        if self._child is None:
            return None
        self._child.terminate()
        try:
            status = self._child.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        self._child = None
        return status

    def kill(self) -> None:
        """Kill the child at once, like a crash."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def restart(self) -> None:
        """Restart on the same port with the same behaviour; a running child is killed first."""
        self.kill()
        self.start()

    def record(self, **filters: str | bool) -> list[dict[str, Any]]:
        """Return the record, filtered by provider, kind, instance, number, accepted."""
        query = {name: str(value).lower() if isinstance(value, bool) else value for name, value in filters.items()}
        entries: list[dict[str, Any]] = self._ask("GET", f"/_sandbox/record?{urlencode(query)}")
        return entries

    def summary(self) -> dict[str, Any]:
        """Return the counts, and messages and prompts that occurred twice."""
        summary: dict[str, Any] = self._ask("GET", "/_sandbox/summary")
        return summary

    def set_behaviour(self, behaviour: Behaviour) -> None:
        """Set the behaviour, from the next request on and after a restart."""
        self._ask("POST", "/_sandbox/behaviour", orjson.dumps(behaviour.to_dict()))
        self._behaviour = behaviour

    def reset(self) -> None:
        """Clear all requests and counts; the behaviour stays."""
        self._ask("POST", "/_sandbox/reset")

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_ASK_TIMEOUT)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise SandboxFailed(f"The sandbox refused {method} {path}: {content.decode(errors='replace')}")
        return orjson.loads(content)

    def _private(self, name: str) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="sandbox-")
        return Path(self._folder.name, name)

    def _forget_folder(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
