"""Sends notices to people: always to the log, and to a webhook and by e-mail if configured."""

import asyncio
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from email.message import EmailMessage
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import aiosmtplib
import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from campaign_pipeline.adapters.environment import NotifierSettings
from campaign_pipeline.adapters.hosts import HostRefused, Hosts
from campaign_pipeline.adapters.http import Answer, NoAnswer, http_client, post
from campaign_pipeline.adapters.notice_formats import WEBHOOKS, Notice, as_html

_PATIENCE = 5.0  # seconds for one attempt: a sensor's tick has one minute in total
_MAIL_PATIENCE = 15.0  # seconds for a whole e-mail
_ATTEMPTS = 2


class _NotTold(Exception):
    """One sentence without the address, which may contain a secret."""


class Notifier:
    """Sends a notice to all configured recipients."""

    def __init__(self, settings: NotifierSettings, log: Callable[[str], None]) -> None:
        self._settings = settings
        self._log = log

    def tell(self, notice: Notice) -> list[str]:
        """Send a notice; return a sentence for each way that failed twice. Never raises for those."""
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
        body = WEBHOOKS[self._settings.webhook_format](notice)
        answer = asyncio.run(self._ask_webhook(self._settings.webhook_url, body))
        if isinstance(answer, NoAnswer):
            raise _NotTold(f"CAMPAIGN_NOTIFY_WEBHOOK {_why(answer)}.")
        if not httpx.codes.is_success(answer.status):
            raise _NotTold(f"CAMPAIGN_NOTIFY_WEBHOOK answered with status {answer.status}.")

    @staticmethod
    async def _ask_webhook(url: str, body: Mapping[str, Any]) -> Answer | NoAnswer:
        place, headers = httpx.URL(url), {}
        if place.userinfo:  # the person's own, for a proxy before the webhook
            headers["Authorization"] = "Basic " + b64encode(f"{place.username}:{place.password}".encode()).decode()
        async with http_client(connections=1) as client:
            return await post(client, str(place.copy_with(username="", password="")), body, headers, _PATIENCE)

    def _mail(self, notice: Notice) -> None:
        url = urlsplit(self._settings.smtp_url or "")
        recipients = self._settings.email or ""
        user, password = unquote(url.username or ""), unquote(url.password or "")
        message = EmailMessage()
        message["Subject"] = notice.title.splitlines()[0]
        message["From"] = self._settings.email_from or (user if "@" in user else recipients.partition(",")[0])
        message["To"] = recipients
        message.set_content(notice.text)
        message.add_alternative(as_html(notice), subtype="html")
        try:
            asyncio.run(asyncio.wait_for(self._hand_over(message, url, user, password), _MAIL_PATIENCE))
        except HostRefused:
            raise _NotTold(
                "The e-mail to CAMPAIGN_NOTIFY_EMAIL was not sent: the server of CAMPAIGN_SMTP_URL may not be reached."
            ) from None
        except (TimeoutError, OSError, aiosmtplib.SMTPException, ValueError) as error:
            # Not the text: a server's refusal may quote the recipient.
            raise _NotTold(f"The e-mail to CAMPAIGN_NOTIFY_EMAIL was not sent: {type(error).__name__}.") from None

    @staticmethod
    async def _hand_over(message: EmailMessage, url: SplitResult, user: str, password: str) -> None:
        host, tls = url.hostname or "", url.scheme == "smtps"
        connection = await Hosts.from_environment().connect(host, url.port or (465 if tls else 587))
        client = aiosmtplib.SMTP(
            hostname=host,
            sock=connection,
            timeout=_PATIENCE,
            use_tls=tls,
            start_tls=False if tls else None,  # None: if the server offers it
            username=user or None,
            password=password or None,
        )
        async with client:
            await client.send_message(message)


def _why(answer: NoAnswer) -> str:
    """Return the failure without the address, which may contain a secret."""
    if answer.refused:
        return "names a host that may not be reached"
    return "gave no answer that can be read" if answer.may_have_left else "could not be reached"
