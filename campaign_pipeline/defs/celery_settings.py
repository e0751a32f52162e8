"""How steps go through Celery: the same settings for the run's process and for the workers."""

import contextlib
from typing import Any
from uuid import uuid4

import redis

from campaign_pipeline.adapters.deployment import CelerySettings

LONGEST_RUN_SECONDS = 7 * 86_400


def executor_config(settings: CelerySettings) -> dict[str, Any]:
    """What dagster-celery's executor and the workers' application are told."""
    config = {
        # A step is the broker's until it has ended. One whose worker died, or fell silent for the visibility time-out,
        # goes to another worker; leases decide what of it may be sent.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,  # no step waits behind a busy worker while another is idle
        "broker_transport_options": {"visibility_timeout": settings.visibility_seconds},
        "broker_connection_retry_on_startup": True,
        "task_default_queue": settings.queue,
        "task_default_priority": 5,
    }
    return {"broker": settings.broker, "backend": settings.backend, "config_source": config}


class BrokerMemory:
    """Notices that Redis restarted without what it held: the steps in its queue are gone, and nobody would say so.

    A key is left there by each run. Where it is missing, the queue is missing too. RabbitMQ keeps its queues.
    """

    def __init__(self, settings: CelerySettings) -> None:
        self._url = settings.broker if settings.is_redis else None
        self._key = f"campaign_pipeline:run:{uuid4()}"
        self._known = False

    def why_lost(self) -> str | None:
        """One sentence if the broker forgot the steps that it was given. One that is away says nothing."""
        if self._url is None:
            return None
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self._url, socket_timeout=5) as broker:
            if not self._known:
                broker.set(self._key, "1", ex=LONGEST_RUN_SECONDS)
                self._known = True
            elif not broker.exists(self._key):
                return "The broker restarted without the steps that it was given (Redis without persistence)."
        return None
