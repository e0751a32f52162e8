"""Celery settings for steps, shared by the run's process and the workers."""

import contextlib
from typing import Any
from uuid import uuid4

import redis

from campaign_pipeline.adapters.deployment import CelerySettings

LONGEST_RUN_SECONDS = 7 * 86_400

LOOKS_PER_TIMEOUT = 4
"""How often a worker looks for the steps of silent ones: a dead host's steps wait at most a quarter longer."""


def executor_config(settings: CelerySettings) -> dict[str, Any]:
    """Return the configuration of dagster-celery's executor and of the workers' application."""
    config = {
        # The broker keeps a step until it has ended. If its worker dies, or is silent for the visibility timeout, the
        # step goes to another worker; leases decide what that worker may send.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,  # no step waits behind a busy worker while another is idle
        "broker_transport_options": {
            "visibility_timeout": settings.visibility_seconds,
            # Workers look for such steps so often. Celery's own setting is every 100 seconds.
            "unacked_restore_interval": max(1, settings.visibility_seconds // LOOKS_PER_TIMEOUT),
            "unacked_restore_throttle": 1,
        },
        "broker_connection_retry_on_startup": True,
        "task_default_queue": settings.queue,
        "task_default_priority": 5,
    }
    return {"broker": settings.broker, "backend": settings.backend, "config_source": config}


class BrokerMemory:
    """Detects a restart of Redis that lost its data: the queued steps are gone, without an error.

    Each run writes a key. If the key is missing, so is the queue. RabbitMQ keeps its queues.
    """

    def __init__(self, settings: CelerySettings) -> None:
        self._url = settings.broker if settings.is_redis else None
        self._key = f"campaign_pipeline:run:{uuid4()}"
        self._known = False

    def why_lost(self) -> str | None:
        """Return one sentence if the broker lost the steps it was given; None while it is unreachable."""
        if self._url is None:
            return None
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self._url, socket_timeout=5) as broker:
            if not self._known:
                broker.set(self._key, "1", ex=LONGEST_RUN_SECONDS)
                self._known = True
            elif not broker.exists(self._key):
                return "The broker restarted without the steps that it was given (Redis without persistence)."
        return None
