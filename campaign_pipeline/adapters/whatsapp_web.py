"""Servers that use WhatsApp's web protocol (Evolution, UAZAPI): their common answers and queries.

The CRM's function passes their answers on unchanged.
"""

from collections.abc import Container, Mapping
from typing import Any, ClassVar

from campaign_pipeline.adapters.answers import Row
from campaign_pipeline.adapters.channel import HttpChannel
from campaign_pipeline.adapters.http import at
from campaign_pipeline.core.ports import (
    Failure,
    LookUpFailed,
    NotReady,
    NumberCheck,
    NumberExists,
    NumberMissing,
    NumberNotChecked,
    Permanent,
    Scope,
    Systemic,
    Throttled,
    Transient,
    Unknown,
)

NOT_ON_WHATSAPP = "The number is not on WhatsApp."
_DISCONNECTED = "This inbox's connection to WhatsApp is closed; connect it and it goes on by itself."

DISCONNECTED = Systemic("inbox_disconnected", _DISCONNECTED, Scope.INBOX)
CONNECTING = "The instance is connecting to WhatsApp."

# Each pattern matches one whole statement.
_SAYS_DISCONNECTED = (
    r"connection closed|(the )?(whatsapp|websocket|client|instance|socket|session)( \S{1,60})? (is )?"
    r"(not (open|connected|logged in)|disconnected|closed)|not (open|connected|logged in)|disconnected"
    r"|no (active )?session|(inst[âa]ncia|whatsapp) (est[áa] )?(desconectad[ao]|n[ãa]o (est[áa] )?conectad[ao])"
)
_SAYS_TOO_FAST = r"((server returned )?error )?429|rate.?overlimit|(429:? )?too many requests"
_SAYS_TIMED_OUT = (  # the request may have reached WhatsApp: an aborted transfer does not show what it carried
    r"(\S{1,40} )?timed?[ -]?out\b.{0,80}|timeouterror.{0,80}|(message|context) (timed out|deadline exceeded)"
    r"|connection (was )?(lost|terminated).{0,80}|stream errored.{0,80}"
    r"|websocket disconnected (before|while) .{0,80}"
)
_SAYS_NO_ACCOUNT = (
    r"(the )?number( \S{1,60})? (is )?not (registered )?on whatsapp|invalid (phone )?number"
    r"|(o )?n[úu]mero( \S{1,60})? n[ãa]o (est[áa] )?(no|registrado no) whatsapp"
)
_SAYS_NO_KEYS = (
    # Signal keys of one recipient are missing or broken: the text could not be encrypted, so it was not sent.
    r"(sessionerror: )?no (sessions|session record|open session|matching sessions found for message)"
    r"|(sessionerror: )?no (signal )?session (established with|found for|with) \S{1,60}|session with \S{1,60} not found"
    r"|(prekeyerror: )?invalid prekey id|untrustedidentitykeyerror.{0,120}"
    r"|can'?t encrypt message for device: no signal session established with \S{1,60}"
)
_NO_KEYS = "WhatsApp's encryption keys for this lead are missing or out of date; other leads are not concerned."


def timed_out(provider: str, status: Container[int]) -> Row:
    """Match the answer that WhatsApp did not respond in time."""
    sentence = f"{provider} timed out while it talked to WhatsApp."
    return Row(Unknown, "provider_timeout", sentence, status=status, says=_SAYS_TIMED_OUT)


def no_account(status: Container[int], fact: str | None = None) -> Row:
    """Match the answer that the number has no account: by a fact of the body, else by words."""
    says = None if fact else _SAYS_NO_ACCOUNT
    return Row(Permanent, "not_on_whatsapp", NOT_ON_WHATSAPP, status=status, fact=fact, says=says)


def in_words(status: Container[int]) -> tuple[Row, ...]:
    """Match answers that say why WhatsApp accepted nothing."""
    return (
        Row(Transient, "no_keys", _NO_KEYS, status=status, says=_SAYS_NO_KEYS),
        Row(Systemic, "inbox_disconnected", _DISCONNECTED, status=status, says=_SAYS_DISCONNECTED),
        too_fast(status, _SAYS_TOO_FAST),
    )


def too_fast(status: Container[int], says: str | None = None) -> Row:
    """Match the answer that the number sends too fast."""
    sentence = "WhatsApp says that this number sends too fast."
    return Row(Throttled, "rate_limited", sentence, status=status, says=says)


class WebChannel(HttpChannel):
    """One WhatsApp number on such a server."""

    exists_field: ClassVar[str]  # in the answer about a number
    numbers_path: str  # the endpoint that checks numbers

    @staticmethod
    def states_of(closed: str) -> Mapping[str, Failure | NotReady]:
        """Return the states in which nothing can be sent, if the server calls a closed connection `closed`."""
        return {"connecting": NotReady("connecting", CONNECTING, retry_after=5.0), closed: DISCONNECTED}

    async def check_number(self, number: str) -> NumberCheck:
        """Ask WhatsApp about one number; it tries a Brazilian one with and without its ninth digit."""
        entries = await self.accounts(number)
        if isinstance(entries, LookUpFailed):
            return NumberNotChecked(entries.reason)
        exists = at(entries, 0, self.exists_field)
        if not isinstance(exists, bool) or at(entries, 0, "error"):
            return NumberNotChecked(f"{self.provider} did not say whether the number is on WhatsApp.")
        if not exists:
            return NumberMissing(NOT_ON_WHATSAPP)
        jid, lid = (account_name(at(entries, 0, key)) for key in ("jid", "lid"))
        user, _, server = (jid or "").partition("@")
        digits = user if server == "s.whatsapp.net" and user.isdigit() else number
        return NumberExists(digits, jid, lid or (jid if server == "lid" else None))

    async def accounts(self, number: str) -> list[Any] | LookUpFailed:
        """Return what WhatsApp knows of one number. Never query many at once: that risks a ban."""
        asked = {"numbers": [number]}
        return await self.ask(
            self.numbers_path, asked, lambda body: body if isinstance(body, list) else None, "a number check"
        )


def account_name(value: Any) -> str | None:
    """Return a jid or a lid."""
    return value if isinstance(value, str) and "@" in value else None
