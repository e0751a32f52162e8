"""Formats of a notice for Slack, Teams, a plain webhook, and e-mail."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

SLACK_TITLE = 150
"""Characters that Slack allows in a header."""

SLACK_TEXT = 2900
"""Characters that Slack allows in a section, minus what escaping a link may add."""


@dataclass(frozen=True)
class Notice:
    """A headline, and one sentence per item. No personal data: it leaves the system."""

    title: str
    lines: Sequence[str]
    links: Mapping[str, str] | None = None  # label -> address

    @property
    def text(self) -> str:
        """Return the whole text."""
        links = (f"{name}: {url}" for name, url in (self.links or {}).items())
        return "\n".join((self.title, *(f"- {line}" for line in self.lines), *links))


def as_json(notice: Notice) -> dict[str, Any]:
    """Format for any webhook: Mattermost, Google Chat and similar services show `text`."""
    body = {"text": notice.text, "title": notice.title, "lines": list(notice.lines)}
    return body | ({"links": dict(notice.links)} if notice.links else {})


def as_slack(notice: Notice) -> dict[str, Any]:
    """Format for an incoming webhook of Slack: blocks, and `text` for notifications."""
    lines = "\n".join(f"• {_slack(line)}" for line in notice.lines)[:SLACK_TEXT]
    links = " · ".join(f"<{url}|{_slack(name)}>" for name, url in (notice.links or {}).items())
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": notice.title[:SLACK_TITLE]}},
    ]
    blocks += [{"type": "section", "text": {"type": "mrkdwn", "text": part}} for part in (lines, links) if part]
    return {"text": _slack(notice.title), "blocks": blocks}


def _slack(text: str) -> str:
    """Escape `<`, `>` and `&`, which Slack reads as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def as_teams(notice: Notice) -> dict[str, Any]:
    """Format for a workflow of Teams ("when a webhook request is received"): one adaptive card."""

    def block(text: str, **more: Any) -> dict[str, Any]:
        return {"type": "TextBlock", "text": text, "wrap": True, **more}

    title = block(notice.title, weight="Bolder", size="Medium")
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [title, *map(block, notice.lines)],
        "actions": [
            {"type": "Action.OpenUrl", "title": name, "url": url} for name, url in (notice.links or {}).items()
        ],
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return {"type": "message", "attachments": [attachment]}


def as_html(notice: Notice) -> str:
    """Format for a mail program."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in notice.lines)
    links = " · ".join(f'<a href="{escape(url)}">{escape(name)}</a>' for name, url in (notice.links or {}).items())
    return (
        f"<html><body><h3>{escape(notice.title)}</h3><ul>{lines}</ul>{f'<p>{links}</p>' if links else ''}</body></html>"
    )


WEBHOOKS: Mapping[str, Callable[[Notice], dict[str, Any]]] = {"json": as_json, "slack": as_slack, "teams": as_teams}
"""By format name, as in CAMPAIGN_NOTIFY_FORMAT."""
