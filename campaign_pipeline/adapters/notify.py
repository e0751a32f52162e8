"""Telling a person: in the log always, and to a webhook and by e-mail where the environment names them."""

import smtplib
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from urllib.parse import unquote, urlsplit

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from campaign_pipeline.adapters.environment import NotifierSettings

_PATIENCE = 5.0  # seconds for one attempt: a sensor's tick has a minute for everything
_ATTEMPTS = 2


@dataclass(frozen=True)
class Notice:
    """What a person should know: a headline, and a sentence for each thing. No personal data: it leaves the house."""

    title: str
    lines: Sequence[str]

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join((self.title, *(f"- {line}" for line in self.lines)))


class _NotTold(Exception):
    """One sentence without the address, which may hold a secret."""


class Notifier:
    """Tells a notice to everybody whom the settings name."""

    def __init__(self, settings: NotifierSettings, log: Callable[[str], None]) -> None:
        self._settings = settings
        self._log = log

    def tell(self, notice: Notice) -> list[str]:
        """Tell it; returns a sentence for each way that failed, after a second attempt. Never raises for those."""
        self._log(notice.text)
        return [trouble for send in self._ways() if (trouble := self._try(send, notice))]

    @staticmethod
    def _try(send: Callable[[Notice], None], notice: Notice) -> str | None:
        again = Retrying(
            retry=retry_if_exception_type(_NotTold),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_fixed(0.5),
            reraise=True,
        )
        try:
            again(send, notice)
        except _NotTold as error:
            return str(error)
        return None

    def _ways(self) -> Iterator[Callable[[Notice], None]]:
        if self._settings.webhook_url is not None:
            yield self._post
        if self._settings.email is not None:
            yield self._mail

    def _post(self, notice: Notice) -> None:
        assert self._settings.webhook_url is not None
        # `text` is what Slack, Mattermost, Google Chat and their like show.
        body = {"text": notice.text, "title": notice.title, "lines": list(notice.lines)}
        try:
            answer = httpx.post(self._settings.webhook_url, json=body, timeout=_PATIENCE)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _NotTold(f"CAMPAIGN_NOTIFY_WEBHOOK could not be reached: {type(error).__name__}.") from None
        if not answer.is_success:
            raise _NotTold(f"CAMPAIGN_NOTIFY_WEBHOOK answered with status {answer.status_code}.")

    def _mail(self, notice: Notice) -> None:
        url = urlsplit(self._settings.smtp_url or "")
        recipients = self._settings.email or ""
        user, password = unquote(url.username or ""), unquote(url.password or "")
        message = EmailMessage()
        message["Subject"] = notice.title.splitlines()[0]
        message["From"] = self._settings.email_from or (user if "@" in user else recipients.partition(",")[0])
        message["To"] = recipients
        message.set_content(notice.text)
        try:
            with self._smtp(url.scheme, url.hostname or "", url.port) as server:
                if user:
                    server.login(user, password)
                server.send_message(message)
        except (OSError, smtplib.SMTPException) as error:
            # Not the text: a server's refusal may quote whom it was to go to.
            raise _NotTold(f"The e-mail to CAMPAIGN_NOTIFY_EMAIL was not sent: {type(error).__name__}.") from None

    @staticmethod
    def _smtp(scheme: str, host: str, port: int | None) -> smtplib.SMTP:
        tls = ssl.create_default_context()
        if scheme == "smtps":
            return smtplib.SMTP_SSL(host, port or 465, timeout=_PATIENCE, context=tls)
        server = smtplib.SMTP(host, port or 587, timeout=_PATIENCE)
        try:
            server.ehlo_or_helo_if_needed()
            if server.has_extn("starttls"):
                server.starttls(context=tls)
                server.ehlo()
        except BaseException:
            server.close()
            raise
        return server
