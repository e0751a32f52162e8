"""`campaign-pipeline webhook`: receive receipts and replies, if no CRM does."""

from __future__ import annotations

import os

import click

from campaign_pipeline.cli.queue import queue_url

KEEP_ALIVE_SECONDS = 75


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; put a TLS proxy before it.")
@click.option("--port", type=click.IntRange(1, 65535), default=8765, show_default=True, help="Port to listen on.")
def webhook(host: str, port: int) -> None:
    """Receive the providers' receipts and replies until interrupted.

    Receipts settle unknown outcomes and show who read a message. A reply stops further messages to the lead, and an
    opt-out takes effect at once. This is not needed if the CRM receives the webhooks; an event that arrives twice
    counts once.
    """
    import uvicorn

    from campaign_pipeline.adapters.webhook import Webhook, WebhookSecrets
    from campaign_pipeline.adapters.webhook_store import WebhookStore

    secrets = WebhookSecrets.from_environment(os.environ)
    application = Webhook(WebhookStore(queue_url()), secrets)
    click.echo(f"Listening on http://{host}:{port}; Ctrl-C stops it. Paths to register at the providers:")
    for path in secrets.paths():
        click.echo(f"  {path}")
    # No access log: paths contain tokens.
    # Idle connections are kept longer than the providers' pools keep them, so that none is closed during a call.
    config = uvicorn.Config(
        application.app, host, port, log_level="warning", access_log=False, timeout_keep_alive=KEEP_ALIVE_SECONDS
    )
    uvicorn.Server(config).run()


COMMANDS = (webhook,)
