"""Resources through which ops reach the queue, the language model and the inboxes. Keys are read when needed."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import dagster as dg
import httpx
from pydantic import Field

from campaign_pipeline.adapters import cloud_api, evolution, supabase, uazapi
from campaign_pipeline.adapters.connection import model_url, variables_of
from campaign_pipeline.adapters.database import queue_url
from campaign_pipeline.adapters.environment import DeliverySettings, Environment
from campaign_pipeline.adapters.hosts import Hosts
from campaign_pipeline.adapters.http import at, http_client
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.adapters.openrouter import OpenRouter
from campaign_pipeline.adapters.unconfigured import SANDBOX_ONLY, Unconfigured
from campaign_pipeline.core.ports import LanguageModel, MessageChannel
from campaign_pipeline.core.results import RetryPolicy
from campaign_pipeline.core.shard_context import DeliveryPolicy

ChannelBuilder: TypeAlias = Callable[
    [httpx.AsyncBaseTransport, InboxConnection, Mapping[str, str], float], MessageChannel
]


def _smtp(
    transport: httpx.AsyncBaseTransport, connection: InboxConnection, variables: Mapping[str, str], timeout: float
) -> MessageChannel:
    from campaign_pipeline.adapters import smtp  # its library is loaded only if there is a mailbox

    return smtp.from_connection(transport, connection, variables, timeout)


CHANNELS: dict[str, ChannelBuilder] = {
    # instances.provider_type -> constructor of its channel; a new provider is one file in adapters and one line here
    "cloud_api": cloud_api.from_connection,
    "evolution": evolution.from_connection,
    "smtp": _smtp,
    "supabase": supabase.from_connection,
    "uazapi": uazapi.from_connection,
}


def from_variable(name: str) -> dg.EnvVar | None:
    """Return a field that a variable sets, shown by the variable's name; None if it is unset."""
    return dg.EnvVar(name) if os.environ.get(name, "").strip() else None


class QueueDatabase(dg.ConfigurableResource[Any]):
    """The queue's PostgreSQL: CAMPAIGN_DATABASE_URL, else the embedded one under CAMPAIGN_HOME.

    Sensors and schedules that mostly find nothing to do create their resources themselves. For a resource parameter,
    Dagster opens its instance at each evaluation.
    """

    address: str | None = Field(default=None, description="A postgresql:// URL; unset: as the environment says.")

    def url(self) -> str:
        """Return its URL, reachable and with our schema. Raises SettingError or DatabaseUnusable."""
        environment = Environment.read()
        return queue_url(replace(environment, database_url=self.address.strip()) if self.address else environment)


class LanguageModelResource(dg.ConfigurableResource[Any]):
    """The language model: OpenRouter, with OPENROUTER_API_KEY if a workspace has no key of its own."""

    api_key: str | None = Field(default=None, description="Of the account that all workspaces share.")

    def missing_setting(self) -> str | None:
        """One sentence if workspaces without a key of their own cannot use it."""
        if self.api_key is None and Environment.read().openrouter_api_key is None:
            return "OPENROUTER_API_KEY is not set; set it in the environment of the Dagster processes."
        return None


@dataclass(frozen=True)
class Outside:
    """The outside systems of one shard."""

    model: LanguageModel
    channel: MessageChannel
    channel_kind: str  # whatsapp, email


class ProvidersResource(dg.ConfigurableResource[Any]):
    """The message providers: each inbox uses its instance's adapter; keys come from its row or the environment."""

    @contextlib.asynccontextmanager
    async def open(self, connection: InboxConnection | None, concurrency: int) -> AsyncIterator[Outside]:
        """Open the language model and one inbox on one HTTP client, for one shard."""
        environment, settings = Environment.read(), DeliverySettings.from_environment()
        # A generation and a send of the same message never overlap, but a connection that closes slowly may overlap.
        async with http_client(connections=2 * concurrency) as client:
            own_key = connection.openrouter_api_key if connection else None
            model = OpenRouter(
                client,
                model_url(environment),
                environment.openrouter_api_key,
                {str(connection.workspace_id): own_key} if connection and own_key else {},
                environment.openrouter_cache_seconds,
            )
            channel = channel_of(client, connection, environment, settings.send_timeout_seconds)
            async with contextlib.AsyncExitStack() as stack:
                if isinstance(channel, contextlib.AbstractAsyncContextManager):
                    await stack.enter_async_context(channel)  # it has its own connections
                yield Outside(model, channel, (connection.provider if connection else None) or "whatsapp")


def channel_of(
    client: httpx.AsyncBaseTransport,
    connection: InboxConnection | None,
    environment: Environment,
    send_timeout: float,
) -> MessageChannel:
    """Return the channel of an inbox for its instance's row, or one that refuses if it cannot be built."""
    if connection is None:
        return Unconfigured("inbox_without_instance", "The inbox has no instance; link one in inbox_instances.")
    # The CRM's own function uses provider_type itself, so an inbox may name our adapter beside it.
    kind = connection.setting("campaign_adapter") or connection.provider_type or "evolution"
    if at(connection.provider_config, SANDBOX_ONLY) is True and Hosts.from_environment().only is None:
        reason = f"The instance {connection.name} is made up; its messages only go to a sandbox (dev --sandbox)."
        return Unconfigured("made_up", reason)
    build = CHANNELS.get(kind)
    if build is None:
        known = ", ".join(sorted(CHANNELS))
        reason = f"The instance {connection.name} has provider_type {kind!r}, but only {known} can be used."
        return Unconfigured("unknown_provider", reason)
    try:
        variables = variables_of(connection, kind, environment.providers)
        return build(client, connection, variables, send_timeout)
    except LookupError as error:
        return Unconfigured("provider_not_configured", str(error.args[0]))


def delivery_policy(settings: DeliverySettings) -> DeliveryPolicy:
    """Convert the settings to a policy of the core."""
    return DeliveryPolicy(
        retry=RetryPolicy(
            delays_seconds=tuple(60 * minutes for minutes in settings.retry_delays_minutes),
            max_attempts=settings.max_attempts,
            look_up_patience_seconds=settings.look_up_patience_seconds,
        ),
        lease_seconds=settings.lease_seconds,
        max_inline_wait_seconds=settings.max_inline_wait_seconds,
        number_check_days=settings.number_check_days,
        number_recheck_days=settings.number_recheck_days,
        most_unrecognised_answers=settings.most_unrecognised_answers,
        generation_timeout_seconds=settings.generation_timeout_seconds,
    )
