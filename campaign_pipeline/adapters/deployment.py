"""The deployment of steps: which of Dagster's executors, and whether several hosts share the work."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from campaign_pipeline.adapters.environment import Environment, SettingError

ENGINES = ("processes", "in_process", "celery", "k8s")
"""The values of CAMPAIGN_EXECUTOR."""

DEFAULT_QUEUE = "dagster"

_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
"""A Kubernetes quantity, as far as CPU and memory need it."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""A Kubernetes name (RFC 1123)."""

VISIBILITY_SECONDS = 120
"""As long as a lease: when the step of a dead worker reaches another worker, its messages are free."""

BROKERS = ("redis", "rediss", "amqp", "amqps", "pyamqp")


@dataclass(frozen=True)
class CelerySettings:
    """The broker between a run's process and the workers. Addresses may contain a password: not in `repr`."""

    broker: str = field(repr=False)
    backend: str = field(repr=False)  # where results are stored
    queue: str = DEFAULT_QUEUE
    visibility_seconds: int = VISIBILITY_SECONDS  # after which the step of a silent worker goes to another

    @property
    def shown_broker(self) -> str:
        """Return the broker's address without user and password."""
        parts = urlsplit(self.broker)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"

    @property
    def is_redis(self) -> bool:
        """Return whether the broker is Redis, which loses its queue in a restart without persistence."""
        return self.broker.startswith(("redis://", "rediss://"))

    @classmethod
    def read(cls, e: Mapping[str, str]) -> "CelerySettings":
        """Read the CAMPAIGN_CELERY_* variables. Raises SettingError."""
        broker = e.get("CAMPAIGN_CELERY_BROKER")
        if broker is None:
            raise SettingError("CAMPAIGN_CELERY_BROKER is not set; name the broker, such as redis://redis:6379/0.")
        if urlsplit(broker).scheme not in BROKERS or not urlsplit(broker).hostname:  # not shown: may hold a password
            raise SettingError(
                "CAMPAIGN_CELERY_BROKER must be a URL of Redis or RabbitMQ, such as redis://redis:6379/0 or "
                "amqp://user:password@rabbitmq:5672//."
            )
        redis = broker.startswith("redis")
        return cls(
            broker=broker,
            backend=e.get("CAMPAIGN_CELERY_BACKEND", broker if redis else "rpc://"),
            queue=e.get("CAMPAIGN_CELERY_QUEUE", DEFAULT_QUEUE),
            visibility_seconds=_visibility(e.get("CAMPAIGN_CELERY_VISIBILITY_SECONDS")),
        )


def _visibility(raw: str | None) -> int:
    if raw is None:
        return VISIBILITY_SECONDS
    if not raw.isdecimal() or not 5 <= int(raw) <= 86_400:
        text = f"CAMPAIGN_CELERY_VISIBILITY_SECONDS is {raw!r}, but must be a whole number from 5 to 86400."
        raise SettingError(text)
    return int(raw)


@dataclass(frozen=True)
class KubernetesSettings:
    """The pods of steps. Unset values come from the run launcher's own settings."""

    namespace: str | None = None
    image: str | None = None
    cpu: str | None = None
    memory: str | None = None

    @classmethod
    def read(cls, e: Mapping[str, str]) -> "KubernetesSettings":
        """Read the CAMPAIGN_K8S_* variables. Raises SettingError."""
        namespace = e.get("CAMPAIGN_K8S_NAMESPACE")
        if namespace is not None and not _LABEL.fullmatch(namespace):
            raise SettingError(f"CAMPAIGN_K8S_NAMESPACE is {namespace!r}, but must be a namespace such as campaigns.")
        quantities = {name: e.get(name) for name in ("CAMPAIGN_K8S_CPU", "CAMPAIGN_K8S_MEMORY")}
        for name, value in quantities.items():
            if value is not None and not _QUANTITY.fullmatch(value):
                raise SettingError(f"{name} is {value!r}, but must be a quantity such as 500m or 1Gi.")
        return cls(namespace, e.get("CAMPAIGN_K8S_IMAGE"), *quantities.values())


@dataclass(frozen=True)
class Deployment:
    """The engine that runs the steps of the code location, with its options."""

    engine: str = "processes"
    several_hosts: bool = False  # steps, runs or re-executions may run on another host than the data they read
    celery: CelerySettings | None = None
    k8s: KubernetesSettings | None = None

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> "Deployment":
        """Read CAMPAIGN_EXECUTOR, CAMPAIGN_HOSTS and the engine's own variables. Raises SettingError."""
        e = {name: value.strip() for name, value in (os.environ if env is None else env).items() if value.strip()}
        engine = e.get("CAMPAIGN_EXECUTOR", "processes").lower()
        if engine not in ENGINES:
            raise SettingError(f"CAMPAIGN_EXECUTOR is {engine!r}, but must be one of {', '.join(ENGINES)}.")
        hosts = e.get("CAMPAIGN_HOSTS", "one").lower()
        if hosts not in {"one", "several"}:
            raise SettingError(f"CAMPAIGN_HOSTS is {hosts!r}, but must be one or several.")
        deployment = cls(
            engine,
            hosts == "several" or engine in {"celery", "k8s"},
            CelerySettings.read(e) if engine == "celery" else None,
            KubernetesSettings.read(e) if engine == "k8s" else None,
        )
        if deployment.several_hosts:
            _refuse_what_hosts_cannot_share(Environment.read(e), engine)
        return deployment

    def describe(self) -> str:
        """Describe it in one line for the UI, without secrets."""
        if self.celery is not None:
            return f"celery: broker {self.celery.shown_broker}, queue {self.celery.queue}"
        if self.k8s is not None:
            options = {"namespace": self.k8s.namespace, "image": self.k8s.image}
            told = ", ".join(f"{name} {value}" for name, value in options.items() if value)
            return f"k8s: a pod per step{', ' if told else ''}{told}"
        hosts = ", runs on several hosts" if self.several_hosts else ""
        return f"{self.engine}{hosts}"


def _refuse_what_hosts_cannot_share(environment: Environment, engine: str) -> None:
    """Refuse settings whose data would exist on one host only."""
    why = f"CAMPAIGN_EXECUTOR is {engine}" if engine in {"celery", "k8s"} else "CAMPAIGN_HOSTS is several"
    if "://" not in environment.outputs_path:
        raise SettingError(
            f"{why}, but CAMPAIGN_OUTPUTS is the folder {environment.outputs_path}, which other hosts may not have; "
            "name a bucket (s3://bucket/prefix), or a folder that all hosts mount as file:///path."
        )
    if environment.database_url is None:
        raise SettingError(
            f"{why}, but CAMPAIGN_DATABASE_URL is not set and the embedded database serves one host only; "
            "name the PostgreSQL that all hosts reach."
        )
