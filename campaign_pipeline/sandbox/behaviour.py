"""The sandbox's behaviour: latencies, faults, states of instances.

A `Behaviour` is a value: built in Python, parsed from flags, or sent as JSON. A `Conduct` is a behaviour at work: it
counts, and it draws. Every draw is a hash of the seed, the rule, what is asked for and how often that was asked before,
so the same seed gives the same faults and latencies to the same messages in whatever order concurrent clients ask.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from hashlib import blake2b
from statistics import NormalDist
from types import MappingProxyType
from typing import Any

import orjson

from campaign_pipeline.sandbox.phone import canonical_number


class BehaviourError(ValueError):
    """An invalid behaviour; the message says what is wrong."""


class Kind(StrEnum):
    """The purpose of an endpoint, of any provider."""

    GENERATION = "generation"
    SEND = "send"
    LOOK_UP = "look_up"  # was this message accepted?
    STATUS = "status"  # of an instance, or of an API key
    NUMBER_CHECK = "number_check"  # is this number on WhatsApp?


class InstanceState(StrEnum):
    """The state of an inbox, in Evolution's words."""

    OPEN = "open"
    CONNECTING = "connecting"
    CLOSE = "close"
    MISSING = "missing"  # the provider does not know the instance


_ANYWHERE = {
    "unauthorized_401": "401: the key is refused",
    "instance_404": "404: the instance does not exist",
    "server_error_500": "500 in the provider's own shape",
    "proxy_html_502": "502 with a proxy's HTML page",
    "malformed_json": "200 with JSON that breaks off",
    "hang": "no answer until the client gives up",
    "cut": "the connection is closed without an answer",
}

FAULTS: Mapping[Kind, Mapping[str, str]] = {
    Kind.GENERATION: {
        "unauthorized_401": "401: the key is refused",
        "no_credit_402": "402: no credit; with Retry-After if `seconds` is given",
        "moderation_403": "403: the input was flagged (metadata.reasons)",
        "permission_403": "403: this key may not do this",
        "model_404": "404: no endpoint serves the model",
        "model_not_found_400": "400 with availability.code model_not_found",
        "context_length_400": "400: the prompt is too long",
        "rate_limit_429": "429 with Retry-After (`seconds`, default 1)",
        "server_error_500": "500",
        "bad_gateway_502": "502: the upstream provider failed",
        "unavailable_503": "503: overloaded; with Retry-After if `seconds` is given",
        "error_in_200": "200 with an error at its top level",
        "choice_error_in_200": "200 whose choice ends with finish_reason error",
        "length": "200 with a text that breaks off, finish_reason length",
        "content_filter": "200 without a text, finish_reason content_filter",
        "empty_content": "200 with an empty text, finish_reason stop",
        "empty_choices": "200 without choices",
        "html_200": "200 with an HTML page",
        "proxy_html_502": "502 with a proxy's HTML page",
        "malformed_json": "200 with JSON that breaks off",
        "too_short": "200 with a text of three characters",
        "placeholder": "200 with a text in which {{nome}} was left",
        "quoted": "200 with a text in quotation marks",
        "fenced": "200 with a text in a code fence",
        "hang": "no answer until the client gives up; nothing is generated",
        "cut_before": "the connection is closed, nothing is generated",
        "cut_after": "generated and charged, then the connection is closed",
    },
    Kind.SEND: {
        "not_on_whatsapp": "the number has no account",
        "connection_closed": "the instance lost its connection",
        "timed_out": "the provider gave up waiting for WhatsApp",
        "rate_overlimit": "WhatsApp says too fast",
        "schema": "the request is not valid",
        "no_keys": "the text could not be encrypted for this number; others can be written to",
        "other_400": "a failure that no table knows",
        "unauthorized_401": "401: the key is refused",
        "instance_404": "404: the instance does not exist",
        "timeout_408": "408 in the provider's own shape",
        "server_error_500": "500 in the provider's own shape",
        "proxy_html_502": "502 with a proxy's HTML page",
        "gateway_timeout_504": "504 with a proxy's HTML page",
        "malformed_json": "accepted, and a 2xx with JSON that breaks off",
        "no_id": "not accepted, yet a 2xx; it bears no message id",
        "cut_before": "never accepted, the connection is closed without an answer",
        "cut_after": "accepted, then the connection is closed without an answer",
        "hang_before": "never accepted, no answer until the client gives up",
        "hang_after": "accepted, answered only after `seconds` (default 600)",
        "late": "the connection is closed without an answer, accepted `seconds` (default 5) later",
        "scripted": "the answer that the rule itself says: `status` (default 418) and `body` (JSON, default {})",
    },
    Kind.LOOK_UP: _ANYWHERE,
    Kind.STATUS: _ANYWHERE,
    Kind.NUMBER_CHECK: {"not_on_whatsapp": "the number has no account", **_ANYWHERE},
}
"""Every fault and its effect, by kind of endpoint."""

ACCEPTING_FAULTS = frozenset({"cut_after", "hang_after", "late", "malformed_json"})
"""Faults of a send after which the message is sent nevertheless, unless the rule says otherwise."""


@dataclass(frozen=True)
class Latency:
    """The latency of an endpoint: `mean` seconds, or log-normal with this mean if `sigma` is above 0.

    Raises:
        BehaviourError: a value is negative or not finite.
    """

    mean: float = 0.0  # seconds; the mean of the distribution, not its median
    sigma: float = 0.0  # standard deviation of the logarithm; 0.5 is typical of a web service

    def __post_init__(self) -> None:
        for name, value in (("mean", self.mean), ("sigma", self.sigma)):
            if not (math.isfinite(value) and value >= 0):
                raise BehaviourError(f"A latency's {name} must be a number of 0 or more, not {value!r}.")

    def at(self, share: float) -> float:
        """Return the quantile: the seconds that this share (between 0 and 1) of requests do not exceed."""
        if self.mean == 0 or self.sigma == 0:
            return self.mean
        return self.mean * math.exp(self.sigma * _NORMAL.inv_cdf(share) - self.sigma**2 / 2)


_NORMAL = NormalDist()


@dataclass(frozen=True)
class Fault:
    """A rule: matching requests get its fault. The first rule that matches and draws true is applied.

    Raises:
        BehaviourError: the name is no fault of this kind of endpoint, or a value is out of its range.
    """

    kind: Kind
    name: str  # one of FAULTS[kind]
    provider: str | None = None  # only this one: `evolution`
    rate: float = 1.0  # share of the matching requests, 0 to 1; each retry is drawn again
    phone: str | None = None  # only this number, with or without its ninth digit
    text: str | None = None  # only if the text (of a generation: the prompt) contains this
    instance: str | None = None  # only this instance (UAZAPI: this token)
    times: int | None = None  # at most this often in total
    times_each: int | None = None  # at most this often per message, prompt, number or instance
    seconds: float | None = None  # of Retry-After, `late` and `hang_after`
    accepts: bool | None = None  # whether a send is accepted in spite of the fault; None: the default of the fault
    saves: bool = True  # whether an accepted send can be looked up; False: like a server whose database fails
    status: int | None = None  # of a `scripted` answer
    body: Any = None  # of a `scripted` answer: JSON

    def __post_init__(self) -> None:
        if self.name not in FAULTS[self.kind]:
            known = ", ".join(FAULTS[self.kind])
            raise BehaviourError(f"{self.name!r} is not a fault of {self.kind.value}; choose one of: {known}.")
        if not 0 <= self.rate <= 1:
            raise BehaviourError(f"The rate of {self.name} must lie between 0 and 1, not {self.rate!r}.")
        for name, count in (("times", self.times), ("times_each", self.times_each)):
            if count is not None and count < 1:
                raise BehaviourError(f"{name} of {self.name} must be 1 or more, not {count!r}.")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise BehaviourError(f"seconds of {self.name} must be a number of 0 or more, not {self.seconds!r}.")
        if self.kind is Kind.GENERATION and (self.phone is not None or self.instance is not None):
            raise BehaviourError("A generation has neither phone nor instance: match its prompt by text.")
        if (self.accepts is not None or not self.saves) and self.kind is not Kind.SEND:
            raise BehaviourError("Only the fault of a send can have accepts and saves.")
        if self.name != "scripted" and (self.status is not None or self.body is not None):
            raise BehaviourError(f"Only a scripted answer can have status and body, not {self.name}.")
        if self.status is not None and not 200 <= self.status <= 599:
            raise BehaviourError(f"The status of a scripted answer must lie between 200 and 599, not {self.status!r}.")

    @property
    def accepts_message(self) -> bool:
        """Whether a message with this fault is sent nevertheless."""
        return self.name in ACCEPTING_FAULTS if self.accepts is None else self.accepts

    @classmethod
    def parse(cls, words: str) -> "Fault":
        """Parse a rule of a flag: `[provider/]kind:name[:key=value]...`.

        Example: `evolution/send:cut_after:rate=0.02:times_each=1`.

        Raises:
            BehaviourError: it does not read as such a rule.
        """
        place, _, rest = words.partition(":")
        name, *options = rest.split(":")
        provider, _, kind = place.rpartition("/")
        raw: dict[str, Any] = {"kind": kind, "name": name}
        if provider:
            raw["provider"] = provider
        for option in options:
            key, equals, value = option.partition("=")
            if not equals or key in raw:
                raise BehaviourError(f"Fault {words!r}: expected key=value once for each key, found {option!r}.")
            raw[key] = _from_flag(words, key, value)
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: object) -> "Fault":
        """Read a rule from JSON.

        Raises:
            BehaviourError: it is not a rule.
        """
        rule = _mapping(raw, "A fault")
        _refuse_unknown(rule, {each.name for each in fields(cls)}, "A fault")
        if "kind" not in rule or "name" not in rule:
            raise BehaviourError("A fault needs a kind and a name: send:cut_after.")
        kind = rule["kind"]
        if not isinstance(kind, str) or kind.replace("-", "_") not in {each.value for each in Kind}:
            raise BehaviourError(
                f"{kind!r} is not a kind of endpoint; choose one of: {', '.join(each.value for each in Kind)}."
            )
        return cls(
            kind=_kind(rule["kind"]),
            name=_words(rule, "name") or "",
            provider=_words(rule, "provider"),
            rate=_number(rule, "rate", 1.0),
            phone=_words(rule, "phone"),
            text=_words(rule, "text"),
            instance=_words(rule, "instance"),
            times=_count(rule, "times"),
            times_each=_count(rule, "times_each"),
            seconds=None if rule.get("seconds") is None else _number(rule, "seconds", 0.0),
            accepts=None if rule.get("accepts") is None else _flag(rule, "accepts", False),
            saves=_flag(rule, "saves", True),
            status=_count(rule, "status"),
            body=rule.get("body"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert the rule to JSON, without unset keys."""
        values = {
            each.name: getattr(self, each.name) for each in fields(self) if each.name != "saves" or not self.saves
        }
        return {name: value for name, value in values.items() if value is not None} | {"kind": self.kind.value}


@dataclass(frozen=True)
class Behaviour:
    """The whole behaviour. The default answers at once, without faults, and every instance is connected."""

    seed: int = 0
    latencies: Mapping[Kind, Latency] = field(default_factory=dict)  # a kind that is absent takes no time
    faults: tuple[Fault, ...] = ()
    instances: Mapping[str, InstanceState] = field(default_factory=dict)  # one that is absent is open
    saves_messages: bool = True  # whether messages accepted from now on can be looked up
    saved_after: float = 0.0  # seconds from acceptance until a message can be looked up

    def __post_init__(self) -> None:
        if not (math.isfinite(self.saved_after) and self.saved_after >= 0):
            raise BehaviourError(f"saved_after must be a number of 0 or more, not {self.saved_after!r}.")

    @classmethod
    def from_dict(cls, raw: object) -> "Behaviour":
        """Read a behaviour from JSON.

        Raises:
            BehaviourError: something in it makes no sense.
        """
        return cls().updated(raw)

    def updated(self, raw: object) -> "Behaviour":
        """Replace the top-level keys of `raw`; the others stay.

        Raises:
            BehaviourError: something in it makes no sense.
        """
        given = _mapping(raw, "A behaviour")
        _refuse_unknown(given, {each.name for each in fields(self)}, "A behaviour")
        values: dict[str, Any] = {}
        if "seed" in given:
            values["seed"] = _whole(given, "seed")
        if "latencies" in given:
            values["latencies"] = _latencies(given["latencies"])
        if "faults" in given:
            if not isinstance(given["faults"], list):
                raise BehaviourError("faults must be a list.")
            values["faults"] = tuple(Fault.from_dict(rule) for rule in given["faults"])
        if "instances" in given:
            values["instances"] = _instances(given["instances"])
        if "saves_messages" in given:
            values["saves_messages"] = _flag(given, "saves_messages", True)
        if "saved_after" in given:
            values["saved_after"] = _number(given, "saved_after", 0.0)
        return replace(self, **values)

    @classmethod
    def from_json(cls, text: bytes) -> "Behaviour":
        """Read a behaviour from the text of a JSON file.

        Raises:
            BehaviourError: it is not JSON, or something in it makes no sense.
        """
        try:
            return cls.from_dict(orjson.loads(text))
        except orjson.JSONDecodeError as error:
            raise BehaviourError(f"The behaviour is not JSON: {error}.") from error

    def to_dict(self) -> dict[str, Any]:
        """Convert the behaviour to JSON; `from_dict` reads it."""
        return {
            "seed": self.seed,
            "latencies": {
                kind.value: {"mean": latency.mean, "sigma": latency.sigma} for kind, latency in self.latencies.items()
            },
            "faults": [fault.to_dict() for fault in self.faults],
            "instances": {name: state.value for name, state in self.instances.items()},
            "saves_messages": self.saves_messages,
            "saved_after": self.saved_after,
        }


@dataclass(frozen=True)
class Subject:
    """The properties of a request that rules can match."""

    key: str  # the same for each repetition of the same message, prompt or question
    instance: str = ""
    number: str = ""
    text: str = ""


class Conduct:
    """A behaviour in use, with the counts of earlier requests."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self._rules: Mapping[Kind, tuple[tuple[int, Fault], ...]] = {}
        self.change(behaviour)

    def change(self, behaviour: Behaviour, *, recount: bool = True) -> None:
        """Set the behaviour; `recount` resets the counts of every rule."""
        self.behaviour = behaviour
        self._rules = {
            kind: tuple((no, rule) for no, rule in enumerate(behaviour.faults) if rule.kind is kind) for kind in Kind
        }
        if recount:
            self.recount()

    def recount(self) -> None:
        """Reset the counts of earlier requests."""
        self._asked: defaultdict[tuple[object, str], int] = defaultdict(int)  # (rule or kind, key): requests
        self._applied: defaultdict[int, int] = defaultdict(int)  # rule: times
        self._applied_each: defaultdict[tuple[int, str], int] = defaultdict(int)  # rule, key: times

    def state_of(self, instance: str) -> InstanceState:
        """Return the state of an instance."""
        return self.behaviour.instances.get(instance, InstanceState.OPEN)

    def saved_from(self, accepted_at: float, fault: Fault | None = None) -> float | None:
        """Return the time (seconds since the epoch) from which a message can be looked up; None: never."""
        saves = self.behaviour.saves_messages and (fault is None or fault.saves)
        return accepted_at + self.behaviour.saved_after if saves else None

    def latency(self, kind: Kind, key: str) -> float:
        """Draw the latency of this request, in seconds."""
        latency = self.behaviour.latencies.get(kind)
        if latency is None or latency.sigma == 0:
            return 0.0 if latency is None else latency.mean
        return latency.at(self._draw(kind.value, key))

    def fault(self, provider: str, kind: Kind, subject: Subject) -> Fault | None:
        """Return the fault of this request, and count it."""
        for no, rule in self._rules[kind]:
            if not _matches(rule, provider, subject):
                continue
            if rule.times is not None and self._applied[no] >= rule.times:
                continue
            each = (no, subject.key)
            if rule.times_each is not None and self._applied_each[each] >= rule.times_each:
                continue
            if rule.rate < 1 and self._draw(no, subject.key) >= rule.rate:
                continue
            self._applied[no] += 1
            if rule.times_each is not None:
                self._applied_each[each] += 1
            return rule
        return None

    def _draw(self, what: object, key: str) -> float:
        asked = self._asked[what, key]
        self._asked[what, key] = asked + 1
        digest = blake2b(f"{self.behaviour.seed}\x1f{what}\x1f{asked}\x1f{key}".encode(), digest_size=8).digest()
        return ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52  # 52 bits: never rounds to 0 or 1


def _matches(rule: Fault, provider: str, subject: Subject) -> bool:
    return (
        (rule.provider is None or rule.provider == provider)
        and (rule.instance is None or rule.instance == subject.instance)
        and (rule.text is None or rule.text in subject.text)
        and (rule.phone is None or canonical_number(rule.phone) == canonical_number(subject.number))
    )


def _from_flag(words: str, key: str, value: str) -> object:
    """Convert a flag's text to the type that it has in JSON."""
    try:
        if key in {"rate", "seconds"}:
            return float(value)
        if key in {"times", "times_each", "status"}:
            return int(value)
    except ValueError:
        raise BehaviourError(f"Fault {words!r}: {key} must be a number, not {value!r}.") from None
    if key in {"accepts", "saves"}:
        if value not in _YES_NO:
            raise BehaviourError(f"Fault {words!r}: {key} must be true or false, not {value!r}.")
        return _YES_NO[value]
    return value


_YES_NO: Mapping[str, bool] = MappingProxyType({"true": True, "false": False})


def _kind(name: object) -> Kind:
    known = {kind.value: kind for kind in Kind}
    if not isinstance(name, str) or name.replace("-", "_") not in known:
        raise BehaviourError(f"{name!r} is not a kind of endpoint; choose one of: {', '.join(known)}.")
    return known[name.replace("-", "_")]


def _latencies(raw: object) -> dict[Kind, Latency]:
    latencies: dict[Kind, Latency] = {}
    for name, value in _mapping(raw, "latencies").items():
        if name.replace("-", "_") not in {kind.value for kind in Kind}:
            raise BehaviourError(
                f"{name!r} is not a kind of endpoint; choose one of: {', '.join(kind.value for kind in Kind)}."
            )
        parts = _mapping(value if isinstance(value, Mapping) else {"mean": value}, "A latency")
        _refuse_unknown(parts, {"mean", "sigma"}, "A latency")
        latencies[_kind(name)] = Latency(_number(parts, "mean", 0.0), _number(parts, "sigma", 0.0))
    return latencies


def _instances(raw: object) -> dict[str, InstanceState]:
    states = {state.value: state for state in InstanceState}
    instances: dict[str, InstanceState] = {}
    for name, state in _mapping(raw, "instances").items():
        if not isinstance(state, str) or state not in states:
            raise BehaviourError(f"Instance {name!r} cannot be {state!r}; it can be: {', '.join(states)}.")
        instances[name] = states[state]
    return instances


def _mapping(raw: object, what: str) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise BehaviourError(f"{what} must be a JSON object, not {type(raw).__name__}.")
    return raw


def _refuse_unknown(raw: Mapping[str, Any], known: set[str], what: str) -> None:
    unknown = sorted(set(raw) - known)
    if unknown:
        raise BehaviourError(f"{what} has no {', '.join(unknown)}; it has: {', '.join(sorted(known))}.")


def _number(raw: Mapping[str, Any], name: str, default: float) -> float:
    value = raw.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BehaviourError(f"{name} must be a number, not {value!r}.")
    return float(value)


def _whole(raw: Mapping[str, Any], name: str) -> int:
    value = raw[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise BehaviourError(f"{name} must be a whole number, not {value!r}.")
    return value


def _count(raw: Mapping[str, Any], name: str) -> int | None:
    return None if raw.get(name) is None else _whole(raw, name)


def _words(raw: Mapping[str, Any], name: str) -> str | None:
    value = raw.get(name)
    if value is not None and not isinstance(value, str):
        raise BehaviourError(f"{name} must be a text, not {value!r}.")
    return value


def _flag(raw: Mapping[str, Any], name: str, default: bool) -> bool:
    value = raw.get(name, default)
    if not isinstance(value, bool):
        raise BehaviourError(f"{name} must be true or false, not {value!r}.")
    return value
