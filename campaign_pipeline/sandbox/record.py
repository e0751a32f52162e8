"""The record of all requests and their results, with which tests compare the pipeline."""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import orjson

from campaign_pipeline.sandbox.behaviour import Kind


class RecordError(ValueError):
    """A file that is not a record."""


class Entry(TypedDict):
    """One request, appended when it arrives and completed later."""

    seq: int  # from 1, increasing, unique
    provider: str
    kind: str
    endpoint: str  # `POST /message/sendText/{instance}`
    instance: str | None  # of UAZAPI: the token
    number: str | None  # digits, as the client gave them
    jid: str | None  # the address that was used
    text: str | None  # the delivered or generated text
    track_source: str | None
    track_id: str | None
    prompt: str | None  # digest of a generation's messages and user
    accepted: bool  # of a send: sent to the lead; of a generation: done and charged
    accepted_at: float | None  # seconds since the epoch
    saved_from: float | None  # the time from which it can be looked up; None: never
    provider_message_id: str | None
    cost: float | None  # of a generation, in US dollars
    prompt_tokens: int | None  # of a generation
    billed_prompt_tokens: float | None  # the same at the full input price; fewer if a prefix was cached
    fault: str | None  # the fault that was applied
    received_at: float  # seconds since the epoch
    answered: int | None  # the HTTP status; None: not answered yet, or the client disconnected


class Record:
    """The entries of a sandbox, oldest first; the accepted ones also go to a file, if one is given, before the answer.

    A file that exists is read first, so that what a killed sandbox accepted is known to the next one. It tells what was
    accepted, not what was answered.

    Raises:
        RecordError: the file holds something else than a record.
        OSError: the file cannot be read or written.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.entries: list[Entry] = []
        self._first_seq = 1  # earlier entries were cleared; their requests may still be in flight
        self._next_seq = 1
        self._found_by: defaultdict[tuple[str, ...], list[Entry]] = defaultdict(list)
        self._file = None if file is None else self._reload(file)

    def open(self, provider: str, kind: Kind, endpoint: str) -> Entry:
        """Record the arrival of a request."""
        entry = Entry(
            seq=self._next_seq,
            provider=provider,
            kind=kind.value,
            endpoint=endpoint,
            instance=None,
            number=None,
            jid=None,
            text=None,
            track_source=None,
            track_id=None,
            prompt=None,
            accepted=False,
            accepted_at=None,
            saved_from=None,
            provider_message_id=None,
            cost=None,
            prompt_tokens=None,
            billed_prompt_tokens=None,
            fault=None,
            received_at=time.time(),
            answered=None,
        )
        self._next_seq += 1
        self.entries.append(entry)
        return entry

    def accept(self, entry: Entry, provider_message_id: str, accepted_at: float, saved_from: float | None) -> None:
        """Record that a message was sent or a text generated. A crash does not lose this."""
        entry["accepted"] = True
        entry["accepted_at"] = accepted_at
        entry["saved_from"] = saved_from
        entry["provider_message_id"] = provider_message_id
        if entry["seq"] < self._first_seq:
            return
        self._index(entry)
        if self._file is not None:
            os.write(self._file, orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def where(
        self,
        *,
        provider: str | None = None,
        kind: str | None = None,
        instance: str | None = None,
        number: str | None = None,
        accepted: bool | None = None,
    ) -> list[Entry]:
        """Return the entries that match all filters, oldest first."""
        return [
            entry
            for entry in self.entries
            if (provider is None or entry["provider"] == provider)
            and (kind is None or entry["kind"] == kind)
            and (instance is None or entry["instance"] == instance)
            and (number is None or entry["number"] == number)
            and (accepted is None or entry["accepted"] is accepted)
        ]

    def sent(self) -> list[Entry]:
        """Return the sent messages, oldest request first."""
        return self.where(kind=Kind.SEND.value, accepted=True)

    def saved(
        self,
        provider: str,
        instance: str,
        *,
        message_id: str | None = None,
        jid: str | None = None,
        track_id: str | None = None,
    ) -> list[Entry]:
        """Return an instance's sent messages that can be looked up now, newest first."""
        if message_id is not None:
            place: tuple[str, ...] = ("id", provider, instance, message_id)
        elif track_id is not None:
            place = ("track", provider, instance, track_id)
        elif jid is not None:
            place = ("jid", provider, instance, jid)
        else:
            place = ("all", provider, instance)
        now = time.time()
        saved = [
            entry
            for entry in self._found_by.get(place, ())
            if entry["saved_from"] is not None and entry["saved_from"] <= now and (jid is None or entry["jid"] == jid)
        ]
        return saved[::-1]

    def summary(self) -> dict[str, Any]:
        """Return counts and duplicates: the same text to the same number, the same prompt paid twice."""
        received: Counter[str] = Counter()
        accepted: Counter[str] = Counter()
        faults: Counter[str] = Counter()
        for entry in self.entries:
            place = f"{entry['provider']}/{entry['kind']}"
            received[place] += 1
            accepted[place] += entry["accepted"]
            if entry["fault"] is not None:
                faults[f"{place}:{entry['fault']}"] += 1
        return {
            "received": len(self.entries),
            "accepted": sum(accepted.values()),
            "cost": sum(entry["cost"] or 0.0 for entry in self.entries if entry["accepted"]),
            "by_endpoint": {
                place: {"received": count, "accepted": accepted[place]} for place, count in sorted(received.items())
            },
            "faults": dict(sorted(faults.items())),
            "accepted_twice": list(_sent_twice(self.sent())),
            "generated_twice": list(_generated_twice(self.where(kind=Kind.GENERATION.value, accepted=True))),
        }

    def reset(self) -> None:
        """Clear everything, including the file; requests in flight are not recorded any more."""
        self.entries = []
        self._found_by.clear()
        self._first_seq = self._next_seq
        if self._file is not None:
            os.ftruncate(self._file, 0)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _index(self, entry: Entry) -> None:
        if entry["kind"] != Kind.SEND.value:
            return
        inbox = (entry["provider"], entry["instance"] or "")
        self._found_by[("all", *inbox)].append(entry)
        self._found_by[("id", *inbox, entry["provider_message_id"] or "")].append(entry)
        self._found_by[("jid", *inbox, entry["jid"] or "")].append(entry)
        if entry["track_id"] is not None:
            self._found_by[("track", *inbox, entry["track_id"])].append(entry)

    def _reload(self, file: Path) -> int:
        """Read the accepted requests of an earlier sandbox, and open the file for appending."""
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            content = file.read_bytes()
            whole = content.rfind(b"\n") + 1
            for entry in _entries(file, content[:whole]):
                self.entries.append(entry)
                self._index(entry)
                self._next_seq = max(self._next_seq, entry["seq"] + 1)
            self.entries.sort(key=lambda entry: entry["seq"])  # the file is in the order of acceptance
            # A sandbox that was killed while writing leaves half a line; it never answered that request.
            os.ftruncate(descriptor, whole)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _entries(file: Path, content: bytes) -> Iterator[Entry]:
    for no, line in enumerate(content.splitlines(), start=1):
        try:
            raw = orjson.loads(line)
        except orjson.JSONDecodeError:
            raw = None
        if not isinstance(raw, dict) or raw.keys() != Entry.__annotations__.keys():
            raise RecordError(f"{file}, line {no}, is not an entry of a sandbox's record.")
        yield Entry(**raw)  # type: ignore[typeddict-item]  # its keys were compared just now


def _sent_twice(sent: Iterable[Entry]) -> Iterator[dict[str, Any]]:
    groups: defaultdict[tuple[str, str | None, str | None, str | None], list[int]] = defaultdict(list)
    for entry in sent:
        groups[entry["provider"], entry["instance"], entry["number"], entry["text"]].append(entry["seq"])
    for (provider, instance, number, text), seqs in groups.items():
        if len(seqs) > 1:
            yield {"provider": provider, "instance": instance, "number": number, "text": text, "seqs": seqs}


def _generated_twice(generated: Iterable[Entry]) -> Iterator[dict[str, Any]]:
    groups: defaultdict[str | None, list[int]] = defaultdict(list)
    for entry in generated:
        groups[entry["prompt"]].append(entry["seq"])
    for prompt, seqs in groups.items():
        if len(seqs) > 1:
            yield {"prompt": prompt, "seqs": seqs}
