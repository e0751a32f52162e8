"""Settings from environment variables: every variable that the pipeline reads, in one place."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from campaign_pipeline.adapters.first_day import kept_first_day

# EVOLUTION_API_URL, EVOLUTION_API_KEY; UAZAPI_API_URL; CLOUD_API_URL, CLOUD_API_VERSION (v23.0), CLOUD_API_TOKEN;
# SUPABASE_URL, SUPABASE_SERVICE_ROLE_KEY; SMTP_URL (smtp://user:password@host:587), SMTP_FROM, SMTP_REPLY_TO,
# SMTP_DOMAIN, SMTP_UNSUBSCRIBE_URL, SMTP_UNSUBSCRIBE_MAILTO, SMTP_CA_FILE.
PROVIDER_PREFIXES = ("EVOLUTION_", "UAZAPI_", "CLOUD_API_", "SUPABASE_", "SMTP_")
"""Prefixes of the variables that message providers read; each adapter says which, and what instances override."""

DEFAULT_HOME = ".campaign"
"""The folder of the pipeline's own files, unless CAMPAIGN_HOME is set."""

LONGEST_CACHE_SECONDS = 86_400
"""For which OpenRouter caches a response at most."""


class SettingError(ValueError):
    """A required variable is missing, or a value is invalid; the message names the variable and says what to do."""


def _number(env: Mapping[str, str], name: str, default: float, minimum: float) -> float:
    raw = env.get(name, "").strip()
    if not raw:
        return default
    try:
        value = float(raw)
    except ValueError:
        raise SettingError(f"{name} is {raw!r}, but must be a number of at least {minimum:g}.") from None
    if not minimum <= value < math.inf:  # nor `nan`, which compares false
        raise SettingError(f"{name} is {raw}, but must be at least {minimum:g}.")
    return value


def _switch(env: Mapping[str, str], name: str, default: bool) -> bool:
    raw = env.get(name, "").strip().lower()
    if raw not in {"", "on", "off"}:
        raise SettingError(f"{name} is {raw!r}, but must be on or off.")
    return raw == "on" if raw else default


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
    """The days of reports and back-fills."""

    timezone: str = "America/Sao_Paulo"  # in which a day begins and ends
    first_day: date = date(2025, 1, 1)  # the earliest day in the UI, if the first day with data is unknown

    @property
    def zone(self) -> ZoneInfo:
        """The zone of the day, and of all times that operators read."""
        return ZoneInfo(self.timezone)

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> "BusinessDays":
        """Read CAMPAIGN_TIMEZONE and CAMPAIGN_FIRST_DAY, else the first day with data. Raises SettingError."""
        e = os.environ if env is None else env
        zone = e.get("CAMPAIGN_TIMEZONE", "").strip() or cls.timezone
        try:
            ZoneInfo(zone)
        except (LookupError, OSError, ValueError):  # unknown; a folder of the zone database; a path out of it
            text = f"CAMPAIGN_TIMEZONE is {zone!r}, but must be a time zone's name such as America/Sao_Paulo."
            raise SettingError(text) from None
        raw = e.get("CAMPAIGN_FIRST_DAY", "").strip()
        if not raw:
            home = Path(e.get("CAMPAIGN_HOME", "").strip() or DEFAULT_HOME).expanduser()
            return cls(zone, kept_first_day(home) or cls.first_day)
        try:
            first = date.fromisoformat(raw)
        except ValueError:
            text = f"CAMPAIGN_FIRST_DAY is {raw!r}, but must be a day such as {cls.first_day.isoformat()}."
            raise SettingError(text) from None
        return cls(zone, first)


@dataclass(frozen=True)
class DeliverySettings:
    """The timing of the send path. The defaults suit production; tests and rehearsals shorten them."""

    lease_seconds: float = 120.0  # how long a dead worker's messages stay locked
    max_age_minutes: float = 60.0  # of open time; older due messages are skipped
    retry_delays_minutes: tuple[float, ...] = (5.0, 15.0, 30.0)  # before the 2nd, 3rd, … attempt
    max_attempts: int = 3
    look_up_patience_seconds: float = 90.0  # how long a provider may take to show a message that it accepted
    send_timeout_seconds: float = 30.0  # beyond the delay that the provider was asked for
    generation_timeout_seconds: float = 30.0
    max_inline_wait_seconds: float = 60.0  # longer throttles return the message to the queue
    number_check_days: float = 0.0  # how long "has an account" is cached; 0: numbers are not checked
    number_recheck_days: float = 7.0  # how long "has none" is cached
    most_unrecognised_answers: int = 5  # in a row; then the inbox or the model is paused

    @property
    def max_age(self) -> timedelta:
        """Return the maximum age as a duration."""
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
            number_check_days=_number(e, "CAMPAIGN_NUMBER_CHECK_DAYS", d.number_check_days, 0),
            number_recheck_days=_number(e, "CAMPAIGN_NUMBER_RECHECK_DAYS", d.number_recheck_days, 0),
            most_unrecognised_answers=int(
                _number(e, "CAMPAIGN_MAX_UNRECOGNISED_ANSWERS", d.most_unrecognised_answers, 1)
            ),
        )


@dataclass(frozen=True)
class OperationsSettings:
    """Automatic processing of the queue, thresholds for notices, and retention."""

    schedules_on: bool = False  # whether sending starts with the code location; the UI's switches override it
    planning: bool = False  # whether to plan days although a CRM plans too
    demo_trickle: bool = False  # set only by `campaign-pipeline dev`: sample messages become due every minute
    runs_at_once: int = 3  # of process_campaign_queue, launched automatically
    drain_minutes: float = 30.0  # for which one run may launch the next while full batches are due
    overdue_minutes: float = 15.0  # of open time, after which waiting messages are reported
    keep_runs_days: int = 30  # finished Dagster runs and their events
    keep_outputs_days: int = 7  # step outputs, which contain personal data
    keep_logs_days: int = 90  # campaign_logs

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> "OperationsSettings":
        """Read the CAMPAIGN_* variables. Raises SettingError."""
        e = os.environ if env is None else env
        d = cls()
        return cls(
            schedules_on=_switch(e, "CAMPAIGN_SCHEDULES", d.schedules_on),
            planning=_switch(e, "CAMPAIGN_PLANNING", d.planning),
            demo_trickle=_switch(e, "CAMPAIGN_DEMO_TRICKLE", d.demo_trickle),
            runs_at_once=int(_number(e, "CAMPAIGN_RUNS_AT_ONCE", d.runs_at_once, 1)),
            drain_minutes=_number(e, "CAMPAIGN_DRAIN_MINUTES", d.drain_minutes, 0),
            overdue_minutes=_number(e, "CAMPAIGN_OVERDUE_MINUTES", d.overdue_minutes, 1),
            keep_runs_days=int(_number(e, "CAMPAIGN_KEEP_RUNS_DAYS", d.keep_runs_days, 1)),
            keep_outputs_days=int(_number(e, "CAMPAIGN_KEEP_OUTPUTS_DAYS", d.keep_outputs_days, 1)),
            keep_logs_days=int(_number(e, "CAMPAIGN_KEEP_LOGS_DAYS", d.keep_logs_days, 1)),
        )


@dataclass(frozen=True)
class NotifierSettings:
    """Recipients of notices. Addresses that contain a secret are not in `repr`."""

    webhook_url: str | None = field(default=None, repr=False)  # receives a JSON object by POST
    webhook_format: str = "json"  # slack, teams or json
    ui_url: str | None = None  # Dagster's UI, for links
    email: str | None = None  # one or several addresses, separated by commas
    smtp_url: str | None = field(default=None, repr=False)  # smtp://user:password@host:587 or smtps://…:465
    email_from: str | None = None

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> "NotifierSettings":
        """Read CAMPAIGN_NOTIFY_…, CAMPAIGN_SMTP_URL and CAMPAIGN_UI_URL. Raises SettingError."""
        e = {name: value.strip() for name, value in (os.environ if env is None else env).items() if value.strip()}
        webhook, email, smtp = (
            e.get(name) for name in ("CAMPAIGN_NOTIFY_WEBHOOK", "CAMPAIGN_NOTIFY_EMAIL", "CAMPAIGN_SMTP_URL")
        )
        # Neither text shows the value, because both contain a secret.
        if webhook is not None and not webhook.startswith(("https://", "http://")):
            raise SettingError("CAMPAIGN_NOTIFY_WEBHOOK must be an https:// or http:// URL.")
        if email is not None and smtp is None:
            raise SettingError("CAMPAIGN_NOTIFY_EMAIL needs CAMPAIGN_SMTP_URL, such as smtp://user:password@host:587.")
        if smtp is not None and not (smtp.startswith(("smtp://", "smtps://")) and urlsplit(smtp).hostname):
            raise SettingError("CAMPAIGN_SMTP_URL must be a URL such as smtp://user:password@host:587 or smtps://….")
        ui_url = e.get("CAMPAIGN_UI_URL")
        if ui_url is not None and not ui_url.startswith(("https://", "http://")):
            raise SettingError(f"CAMPAIGN_UI_URL is {ui_url!r}, but must be an https:// or http:// URL.")
        return cls(
            webhook_url=webhook,
            webhook_format=_webhook_format(e.get("CAMPAIGN_NOTIFY_FORMAT"), webhook),
            ui_url=ui_url.rstrip("/") if ui_url else None,
            email=email,
            smtp_url=smtp,
            email_from=e.get("CAMPAIGN_NOTIFY_FROM"),
        )


WEBHOOK_FORMATS = ("slack", "teams", "json")

_WEBHOOK_HOSTS = {
    "slack": (".slack.com",),
    # Teams: the old connectors, and the workflows that replace them.
    "teams": (".webhook.office.com", ".logic.azure.com", ".api.powerplatform.com"),
}


def _webhook_format(wanted: str | None, webhook: str | None) -> str:
    """Return the webhook's format: as set, else by its host."""
    if wanted is not None:
        if wanted not in WEBHOOK_FORMATS:
            raise SettingError(f"CAMPAIGN_NOTIFY_FORMAT is {wanted!r}, but must be slack, teams or json.")
        return wanted
    host = urlsplit(webhook or "").hostname or ""
    return next((name for name, ends in _WEBHOOK_HOSTS.items() if host.endswith(ends)), "json")


def _cache_seconds(env: Mapping[str, str]) -> int:
    seconds = _number(env, "OPENROUTER_CACHE_SECONDS", 0, 0)
    if seconds > LONGEST_CACHE_SECONDS or seconds != int(seconds):
        raise SettingError(
            f"OPENROUTER_CACHE_SECONDS is {seconds:g}, but must be a whole number from 0 to {LONGEST_CACHE_SECONDS}."
        )
    return int(seconds)


@dataclass(frozen=True)
class Environment:
    """Variables that name outside systems and their keys. Keys are not in `repr`."""

    home: Path
    outputs_path: str = ""  # where step outputs are written: a folder, or s3://bucket/prefix and the like
    database_url: str | None = field(default=None, repr=False)
    openrouter_api_key: str | None = field(default=None, repr=False)
    openrouter_base_url: str = "https://openrouter.ai/api/v1"
    openrouter_cache_seconds: int = 0  # for which OpenRouter may cache responses, personal data included; 0: never
    providers: Mapping[str, str] = field(default_factory=dict, repr=False)  # all other variables of providers

    @classmethod
    def read(cls, env: Mapping[str, str] | None = None) -> "Environment":
        """Read the variables of the public contract; blank ones count as unset."""
        e = {name: value.strip() for name, value in (os.environ if env is None else env).items() if value.strip()}
        home = Path(e.get("CAMPAIGN_HOME", DEFAULT_HOME)).expanduser().resolve()
        return cls(
            home=home,
            outputs_path=e.get("CAMPAIGN_OUTPUTS", str(home / "outputs")),
            database_url=e.get("CAMPAIGN_DATABASE_URL"),
            openrouter_api_key=e.get("OPENROUTER_API_KEY"),
            openrouter_base_url=e.get("OPENROUTER_BASE_URL", "https://openrouter.ai/api/v1").rstrip("/"),
            openrouter_cache_seconds=_cache_seconds(e),
            providers={name: value for name, value in e.items() if name.startswith(PROVIDER_PREFIXES)},
        )
