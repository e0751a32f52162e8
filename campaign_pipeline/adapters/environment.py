"""What the process was told by its environment: every variable that the pipeline reads, in one place."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo


class SettingError(ValueError):
    """A variable is missing where it is needed, or has an impossible value; the text names it and says what to do."""


def _number(env: Mapping[str, str], name: str, default: float, minimum: float) -> float:
    raw = env.get(name, "").strip()
    if not raw:
        return default
    try:
        value = float(raw)
    except ValueError:
        raise SettingError(f"{name} is {raw!r}, but must be a number of at least {minimum:g}.") from None
    if not minimum <= value < math.inf:  # nor `nan`, which compares with nothing
        raise SettingError(f"{name} is {raw}, but must be at least {minimum:g}.")
    return value


def _minutes(env: Mapping[str, str], name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    raw = env.get(name, "").strip()
    if not raw:
        return default
    try:
        values = tuple(float(piece) for piece in raw.split(","))
    except ValueError:
        raise SettingError(f"{name} is {raw!r}, but must be minutes separated by commas, such as 5,15,30.") from None
    if not all(0 <= value < math.inf for value in values):
        raise SettingError(f"{name} is {raw!r}, but each delay must be a number of minutes, none of them negative.")
    return values


@dataclass(frozen=True)
class BusinessDays:
    """Which days reports and back-fills are cut in."""

    timezone: str = "America/Sao_Paulo"  # where a day begins and ends
    first_day: date = date(2025, 1, 1)  # the earliest day that the UI offers

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> "BusinessDays":
        """Read CAMPAIGN_TIMEZONE and CAMPAIGN_FIRST_DAY. Raises SettingError."""
        e = os.environ if env is None else env
        zone = e.get("CAMPAIGN_TIMEZONE", "").strip() or cls.timezone
        try:
            ZoneInfo(zone)
        except (LookupError, OSError, ValueError):  # unknown; a folder of the zone database; a path out of it
            text = f"CAMPAIGN_TIMEZONE is {zone!r}, but must be a time zone's name such as America/Sao_Paulo."
            raise SettingError(text) from None
        raw = e.get("CAMPAIGN_FIRST_DAY", "").strip() or cls.first_day.isoformat()
        try:
            first = date.fromisoformat(raw)
        except ValueError:
            text = f"CAMPAIGN_FIRST_DAY is {raw!r}, but must be a day such as {cls.first_day.isoformat()}."
            raise SettingError(text) from None
        return cls(zone, first)


@dataclass(frozen=True)
class DeliverySettings:
    """How patient the send path is. Defaults suit production; tests and rehearsals shorten them."""

    lease_seconds: float = 120.0  # how long a dead worker's messages stay locked
    max_age_minutes: float = 60.0  # of open time, after which a message that is due is skipped
    retry_delays_minutes: tuple[float, ...] = (5.0, 15.0, 30.0)  # before the 2nd, 3rd, … attempt
    max_attempts: int = 3
    look_up_patience_seconds: float = 90.0  # how long a provider may take to show a message that it accepted
    send_timeout_seconds: float = 30.0  # beyond the delay that the provider itself was asked for
    generation_timeout_seconds: float = 30.0
    max_inline_wait_seconds: float = 60.0  # a throttle up to this long is waited out, longer ones go back to the queue

    @property
    def max_age(self) -> timedelta:
        """The same as a duration."""
        return timedelta(minutes=self.max_age_minutes)

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> "DeliverySettings":
        """Read the CAMPAIGN_* variables. Raises SettingError."""
        e = os.environ if env is None else env
        d = cls()
        return cls(
            lease_seconds=_number(e, "CAMPAIGN_LEASE_SECONDS", d.lease_seconds, 1),
            max_age_minutes=_number(e, "CAMPAIGN_MAX_AGE_MINUTES", d.max_age_minutes, 1),
            retry_delays_minutes=_minutes(e, "CAMPAIGN_RETRY_DELAYS_MINUTES", d.retry_delays_minutes),
            max_attempts=int(_number(e, "CAMPAIGN_MAX_ATTEMPTS", d.max_attempts, 1)),
            look_up_patience_seconds=_number(e, "CAMPAIGN_LOOK_UP_PATIENCE_SECONDS", d.look_up_patience_seconds, 0),
            send_timeout_seconds=_number(e, "CAMPAIGN_SEND_TIMEOUT_SECONDS", d.send_timeout_seconds, 0.05),
            generation_timeout_seconds=_number(
                e, "CAMPAIGN_GENERATION_TIMEOUT_SECONDS", d.generation_timeout_seconds, 0.05
            ),
            max_inline_wait_seconds=_number(e, "CAMPAIGN_MAX_INLINE_WAIT_SECONDS", d.max_inline_wait_seconds, 0),
        )


@dataclass(frozen=True)
class Environment:
    """The variables that name outside systems and their keys. Keys are left out of `repr`."""

    home: Path
    outputs_path: str = ""  # where step outputs are written: a folder, or s3://bucket/prefix and the like
    database_url: str | None = field(default=None, repr=False)
    openrouter_api_key: str | None = field(default=None, repr=False)
    openrouter_base_url: str = "https://openrouter.ai/api/v1"
    providers: Mapping[str, str] = field(default_factory=dict, repr=False)  # every other variable of a provider

    @classmethod
    def read(cls, env: Mapping[str, str] | None = None) -> "Environment":
        """Read the variables of the public contract; blank ones count as unset."""
        e = {name: value.strip() for name, value in (os.environ if env is None else env).items() if value.strip()}
        home = Path(e.get("CAMPAIGN_HOME", ".campaign")).expanduser().resolve()
        return cls(
            home=home,
            outputs_path=e.get("CAMPAIGN_OUTPUTS", str(home / "outputs")),
            database_url=e.get("CAMPAIGN_DATABASE_URL"),
            openrouter_api_key=e.get("OPENROUTER_API_KEY"),
            openrouter_base_url=e.get("OPENROUTER_BASE_URL", "https://openrouter.ai/api/v1").rstrip("/"),
            providers={name: value for name, value in e.items() if name.startswith(("EVOLUTION_", "UAZAPI_"))},
        )
