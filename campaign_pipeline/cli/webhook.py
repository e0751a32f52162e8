"""`campaign-pipeline webhook`: receipts and replies, where no CRM takes them."""

from __future__ import annotations

import os

import click

from campaign_pipeline.cli.queue import queue_url

KEEP_ALIVE_SECONDS = 75


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; put a TLS proxy before it.")
@click.option("--port", type=click.IntRange(1, 65535), default=8765, show_default=True, help="Port to listen on.")
def webhook(host: str, port: int) -> None:
    """Take receipts and replies of the providers, until interrupted.

    Receipts settle what was in doubt and show who read what; a reply stops what is planned for its lead, and an opt-out
    holds at once. Not needed where the CRM takes the webhooks; an event that comes both ways counts once.
    """
    import uvicorn

    from campaign_pipeline.adapters.webhook import Webhook, WebhookSecrets
    from campaign_pipeline.adapters.webhook_store import WebhookStore

    secrets = WebhookSecrets.from_environment(os.environ)
    application = Webhook(WebhookStore(queue_url()), secrets)
    click.echo(f"Listening on http://{host}:{port}; Ctrl-C stops it. The providers are to call:")
    for path in secrets.paths():
        click.echo(f"  {path}")
    # Addresses hold tokens, so no access log is written.
    # A provider's idle connection is kept for longer than its own pool keeps it, or a call may meet it being closed.
    config = uvicorn.Config(
        application.app, host, port, log_level="warning", access_log=False, timeout_keep_alive=KEEP_ALIVE_SECONDS
    )
    uvicorn.Server(config).run()


COMMANDS = (webhook,)
