"""The replies of mail servers and their meaning: one table, the first matching rule decides.

A server refuses a message before accepting it, so a refused message was surely not sent. A rule says whom a refusal
concerns: the recipient, this message, or us. Replies about us pause the inbox or slow it down and cost no lead
anything. Only a refusal with an enhanced status code (RFC 3463) about the recipient is a hard bounce, after which the
address is never used again.

The table matches first by enhanced status codes with one meaning, then by the wording of single providers, then by
words that many servers use, then by the first digit. Addresses, quoted arguments and URLs are removed from a reply
before matching: they may contain any word.
"""

import re
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from campaign_pipeline.adapters.redaction import redact_people
from campaign_pipeline.core.ports import (
    UNRECOGNISED,
    Failure,
    Permanent,
    Scope,
    Systemic,
    Throttled,
    Transient,
    Unknown,
)
from campaign_pipeline.core.window import DEFAULT_ZONE


class Stage(IntEnum):
    """The stage of a message in the protocol."""

    CONNECT = 0  # connection, greeting, EHLO, STARTTLS
    LOGIN = 1
    MAIL = 2
    RCPT = 3
    DATA = 4  # the command, before any content was sent
    BODY = 5  # the content was sent


class Rule(NamedTuple):
    """One row of the table."""

    stages: frozenset[Stage]
    reply: str  # pattern for "<code> <enhanced code or ->": `550 5.1.1`, `421 -`
    text: str  # pattern anywhere in the text; empty: any text
    kind: type[Systemic] | type[Throttled] | type[Transient] | type[Permanent]
    code: str
    wait: float | None = None  # seconds; TOMORROW

    @property
    def by_words(self) -> bool:
        """Return whether the text decides, not the code."""
        return self.text != ""

    def matches(self, stage: Stage, number: str, text: str) -> bool:
        """Return whether a reply is of this kind."""
        return (
            stage in self.stages
            and re.match(self.reply, number) is not None
            and (not self.text or re.search(self.text, text, re.IGNORECASE) is not None)
        )


def _any(*patterns: str) -> str:
    """Join patterns to one that matches any of them."""
    return "|".join(patterns)


SOON: Final = 300.0
"""Seconds. A server that defers or greylists wants minutes, not seconds."""

HOUR: Final = 3600.0
TOMORROW: Final = -1.0
"""As a wait: until the next day begins in the CRM's usual time zone, but at least an hour."""

_ANY: Final = frozenset(Stage)
_FROM_MAIL: Final = frozenset({Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.BODY})
_ENVELOPE: Final = frozenset({Stage.RCPT, Stage.DATA, Stage.BODY})
_RCPT: Final = frozenset({Stage.RCPT})
_LAST: Final = frozenset({Stage.DATA, Stage.BODY})

# Enhanced codes with one meaning on all servers. ----------------------------------------------------------------------

BY_CODE: tuple[Rule, ...] = (
    Rule(
        frozenset({Stage.CONNECT, Stage.LOGIN, Stage.MAIL}),
        r"5\d\d 5\.7\.(3|8|9|14|139)$",
        "",
        Systemic,
        "bad_credentials",
    ),
    Rule(_ANY, r"53[0458] |5\d\d 5\.7\.(3|8|14|57|139)$", "", Systemic, "bad_credentials"),
    Rule(_FROM_MAIL, r"5\d\d 5\.4\.5$", "", Throttled, "daily_limit", TOMORROW),  # Google: daily sending limit
    Rule(_FROM_MAIL, r"5\d\d 5\.1\.90$", "", Throttled, "daily_limit", TOMORROW),  # Microsoft: recipients a day
    Rule(_FROM_MAIL, r"5\d\d 5\.7\.705$", "", Throttled, "daily_limit", TOMORROW),  # Microsoft: tenant threshold
    # SPF, DKIM, DMARC, reverse DNS, TLS of the sender's domain.
    Rule(_FROM_MAIL, r"5\d\d 5\.7\.(2\d|3[0-2]|40|509|515|750)$", "", Systemic, "sender_policy"),
    Rule(_ANY, r"4\d\d 4\.7\.(2[3-9]|3[0-2]|40|515)$", "", Throttled, "rate_limited", HOUR),
    # Microsoft: banned or unknown senders and networks (5.7.5xx to 5.7.7xx).
    Rule(_FROM_MAIL, r"5\d\d 5\.7\.[5-7]\d\d$", "", Systemic, "sender_blocked"),
    Rule(_ANY, r"4\d\d 4\.7\.[5-7]\d\d$", "", Throttled, "rate_limited", HOUR),
    Rule(_FROM_MAIL, r"5\d\d 5\.(7\.60|2\.252|1\.[78])$", "", Systemic, "sender_refused"),
    # Restrictions of one recipient: a closed group, an internal mailbox, a limit on what it receives per hour.
    Rule(_ENVELOPE, r"5\d\d 5\.7\.(12|13|17|18|124|129|13[346])$", "", Permanent, "refused"),
    Rule(_ENVELOPE, r"\d\d\d [45]\.2\.12[12]$", "", Transient, "deferred", HOUR),
    Rule(_ENVELOPE, r"5\d\d 5\.1\.(1|2|3|6|10)$|5\d\d 5\.4\.310$", "", Permanent, "hard_bounce"),
    Rule(_ENVELOPE, r"5\d\d 5\.3\.4$", "", Permanent, "too_large"),
    Rule(_ENVELOPE, r"4\d\d 4\.2\.2$", "", Transient, "mailbox_full"),
)

# Refusals about one recipient that sound like a limit of ours. --------------------------------------------------------

ABOUT_THE_RECIPIENT: tuple[Rule, ...] = (
    Rule(
        _ENVELOPE,
        r"[45]",
        r"\b(user|recipient|account|mailbox|person)\b.{0,80}\breceiv(es|ing|ed)\b.{0,40}\b(rate|quickly|mail)\b",
        Transient,
        "deferred",
        HOUR,
    ),
    Rule(_ENVELOPE, r"4", r"gr[ea]y.?list", Transient, "greylisted"),
    Rule(
        _ENVELOPE,
        r"552 |5\d\d 5\.2\.2$|[45]\d\d (-|4\.5\.2)$",
        _any(
            r"\b(mailbox|inbox|account|user|recipient|caixa)\b.{0,60}\b(full|over.?quota|cheia)\b",
            r"\bover (its |the )?(disk |storage )?quota\b",
            r"\b(mailbox|disk|storage|recipient|user)\b.{0,20}\bquota\b.{0,20}\b(exceeded|full)\b",
            r"exceeded storage allocation",
        ),
        Transient,
        "mailbox_full",
    ),
    Rule(
        _ENVELOPE, r"5", r"\baddress (is )?blacklisted\b|suppression list", Permanent, "refused"
    ),  # Amazon SES, SendGrid
)

# Refusals about us in the words of single providers. ------------------------------------------------------------------

_AMOUNT: Final = r"\b(messages?|e?-?mails?|recipients?|failures|limite?|quota|mensagens|envios)"
_PER_DAY: Final = _any(
    r"\b(daily|24[- ]?hours?|di[áa]ri[oa])\b.{0,40}\b(limits?|quota|cota|threshold|e-?mails|messages)\b",
    r"\b(limite|cota|quota)\b.{0,20}\b(di[áa]ri[oa]s?|24 ?h)\b",
    _AMOUNT + r"\b.{0,20}\b(per|a|in a|por|in 24) ?(day|24 ?hours|hours|dia)\b",
)
_PER_HOUR: Final = _any(
    r"\bhourly\b",
    _AMOUNT + r"\b.{0,20}\b(per|an|por|in this|this) ?(hour|hora)\b",
    r"/ ?1 ?h\b",
)

BY_PROVIDER: tuple[Rule, ...] = (
    # Google
    Rule(
        _FROM_MAIL,
        r"5\d\d 5\.7\.[01]$",
        r"daily smtp relay|e-?mail quota exceeded|mail sending denied",
        Throttled,
        "daily_limit",
        TOMORROW,
    ),
    Rule(
        _FROM_MAIL,
        r"55\d ",
        _any(
            r"unusual rate of unsolicited mail",
            r"very low reputation of the sending",
            r"ip you'?re using to send mail is not authorized",
            r"sending ip .{0,20}reputation",
        ),
        Systemic,
        "sender_blocked",
    ),
    Rule(
        _FROM_MAIL, r"552 5\.7\.0$", "", Permanent, "content_refused"
    ),  # "its content presents a potential security issue"
    # Microsoft
    Rule(
        _ANY,
        r"5\d\d ",
        r"submissionquotaexceeded|exceeded.{0,40}recipient rate limit",
        Throttled,
        "daily_limit",
        TOMORROW,
    ),
    Rule(
        _FROM_MAIL,
        r"5\d\d ",
        r"sendasdenied|not allowed to send as|permissions? to send as",
        Systemic,
        "sender_refused",
    ),
    Rule(_ANY, r"432 |4\d\d ", r"sender thread limit|concurrent connections? limit", Throttled, "rate_limited", 60.0),
    Rule(
        _ANY,
        r"5",
        _any(
            r"\((S3140|S3150|SC-00\d|DY-00\d|OU-00\d|BL\d\d)\)",
            r"^(SC|DY|OU)-00\d\b",
        ),
        Systemic,
        "sender_blocked",
    ),
    Rule(
        _ANY,
        r"4",
        _any(
            r"\bRP-00\d\b",
            r"\[TSS?\d\d\]",
            r"server busy\. please try again later from",
        ),
        Throttled,
        "rate_limited",
        HOUR,
    ),
    # Amazon SES
    Rule(_ANY, r"454 ", r"daily message quota exceeded", Throttled, "daily_limit", TOMORROW),
    Rule(_ANY, r"454 ", r"maximum sending rate exceeded|throttling failure", Throttled, "rate_limited", 60.0),
    Rule(
        _FROM_MAIL,
        r"55\d ",
        _any(
            r"(address|domain|identit\w+|sender)\b.{0,30}\bnot (been )?verified",
            r"failed the check",
            r"verified sender identity",
            r"sending (has been )?(suspended|paused|disabled)",
            r"not authorized to perform",
            r"configuration set .{0,60}does not exist",
        ),
        Systemic,
        "sender_refused",
    ),
    # Zoho
    Rule(_FROM_MAIL, r"5\d\d ", r"unusual sending activity", Throttled, "rate_limited", HOUR),
    # Perl relays (hitobito)
    Rule(_FROM_MAIL, r"5\d\d ", r"reputation rate.?limit", Throttled, "rate_limited", HOUR),
    # Yahoo's answer if DMARC fails.
    Rule(_LAST, r"5\d\d 5\.7\.9$", "", Systemic, "sender_policy"),
    # SendGrid, Brevo, Mailgun
    Rule(
        _ANY,
        r"[45]",
        _any(
            r"maximum credits exceeded",
            r"credits? (are |is )?exhausted",
            r"out of credits",
        ),
        Systemic,
        "sender_refused",
        TOMORROW,
    ),
    Rule(
        _ANY,
        r"5",
        _any(
            r"smtp account is not yet activated",
            r"unauthorized ip address",
            r"domain .{0,60}is not allowed to send",
        ),
        Systemic,
        "sender_refused",
    ),
)

# Refusals about us in words of many servers: Exim and cPanel, Postfix, mailcow, Hostinger, Locaweb. -------------------

BY_WORDS: tuple[Rule, ...] = (
    Rule(_ANY, r"[45]", _PER_DAY, Throttled, "daily_limit", TOMORROW),
    Rule(_ANY, r"[45]", _PER_HOUR, Throttled, "hourly_limit", HOUR),
    Rule(
        _ANY,
        r"[45]",
        _any(
            r"rate.?limit",
            r"ratelimit",
            r"rate overlimit",
            r"over rate",
            r"\b(send(ing|er)?|message|outgoing|policy rejection)\W{0,2} ?.{0,20}\b(rate|limits?|quota)\b",
            r"\bquota limit exceeded",
            r"throttl",
            r"\btoo (many|much) (e-?mails?|messages|mail|connections|concurrent|recipients|requests|sessions|smtp)",
            r"\btoo many login attempts",
            r"\btoo fast\b",
            r"slow(ing)? down",
            r"limite de envios?",
            r"muitas (mensagens|conex)",
            r"\baccount limit\b",
        ),
        Throttled,
        "rate_limited",
    ),
    Rule(
        _LAST,
        r"5\d\d 5\.[47]\.\d+$",
        r"\bquota exceeded\b|\bexceeded (its|your|the) quota",
        Throttled,
        "rate_limited",
        HOUR,
    ),
    Rule(_ANY, r"4\d\d 4\.7\.0$|421 4\.7\.|454 4\.7\.0$|454 -$", "", Throttled, "rate_limited"),
    Rule(
        _FROM_MAIL,
        r"[45]",
        _any(
            r"\brelay(ing)?( \w{1,20}){0,2}( is| was)? (denied|disallowed|prohibited|rejected|not (permitted|allowed))",
            r"not permitted to relay",
            r"unable to relay",
            r"relay access",
            r"authentication (is )?required",
            r"must (first )?(authenticate|log ?in)",
            r"turn on smtp auth",
            r"allowed rcpthosts",
            r"domain is(n'?t| not) in my list",
        ),
        Systemic,
        "sender_refused",
    ),
    Rule(
        _FROM_MAIL,
        r"[45]",
        _any(
            r"\bsender( e-?mail)?( address)?( was| is)? (rejected|denied|refused|not allowed|blocked)",
            r"sender verify failed",
            r"not owned by",
            r"\byour (account|domain|mailbox)\b.{0,40}\b(suspended|disabled|blocked|locked)",
            r"\b(outgoing|outbound|sending)\b.{0,40}\b(suspended|blocked|disabled|paused)",
            r"disabled by user from",
            r"invalid mail from address",
            r"conta (foi |est[áa] )?(suspensa|bloqueada)",
            r"\byour (account|domain|mailbox|address)\b.{0,20}\b(not|isn'?t) (allowed|authori[sz]ed|verified)",
            r"\bsandbox (account|mode)\b",
        ),
        Systemic,
        "sender_refused",
    ),
    Rule(
        _FROM_MAIL,
        r"[45]\d\d (-|[45]\.(2\.0|[03-7]\.\d+))$",
        _any(
            r"\b(spf|dkim|dmarc)\b",
            r"unauthenticated (e-?mail|sender)",
            r"sender is unauthenticated",
            r"\breverse (dns|hostname|lookup)",
            r"\bptr record",
            r"cannot find your( reverse)? hostname",
            r"invalid helo",
        ),
        Systemic,
        "sender_policy",
    ),
    Rule(
        _ANY,
        r"[45]\d\d (-|[45]\.(2\.0|[03-7]\.\d+))$",
        _any(
            r"\b(ip|sender|client|domain|host|server|network|address \[)\b.{0,60}\b(blocked?|banned|listed)\b",
            r"\byour (ip|network|server|domain)\b.{0,60}\b(black|block|deny) ?list",
            r"\b(ip|sender|client|domain|host|server|network)\b.{0,60}\breputation\b",
            r"(blocked|listed|rejected) (by|at|in|using|because) .{0,60}(black.?list|block.?list|dnsbl|rbl|spamcop)",
            r"\bbarracuda\b",
            r"spamhaus",
            r"poor reputation",
            r"\bblack ?list(ed)?\b",
            r"\bin an rbl\b",
            r"bloqueado por",
        ),
        Systemic,
        "sender_blocked",
    ),
)

# Everything else: by the stage and the first digit. -------------------------------------------------------------------

_NAMED: Final = r"\b(user|mailbox|recipient|account|address)\b.{0,40}\b"

BY_DIGIT: tuple[Rule, ...] = (
    Rule(frozenset({Stage.LOGIN}), r"5", "", Systemic, "bad_credentials"),
    Rule(frozenset({Stage.CONNECT}), r"5", "", Systemic, "server_refuses"),
    Rule(frozenset({Stage.MAIL}), r"5", "", Systemic, "sender_refused"),
    Rule(_ENVELOPE, r"5\d\d 5\.6\.7$|553 ", r"smtputf8|internationali[sz]ed", Permanent, "not_supported"),
    Rule(_ENVELOPE, r"55\d ", r"\bsize\b|\btoo (large|big)\b", Permanent, "too_large"),
    Rule(_ENVELOPE, r"5\d\d 5\.2\.1$", "", Permanent, "hard_bounce"),
    Rule(_ENVELOPE, r"5\d\d 5\.2\.2$|552 -$", "", Transient, "mailbox_full"),
    Rule(
        _ENVELOPE,
        r"5",
        _any(
            _NAMED + r"(unknown|not found|does not exist|doesn'?t exist|unavailable|not local)\b",
            _NAMED + r"(disabled|suspended|inactive|invalid)\b",
            r"\b(unknown|invalid|no such|unrouteable|nonexistent) (user|mailbox|recipient|person|address|local)",
            r"doesn'?t have a\b.{0,30}\baccount",
            r"no mailbox here",
            r"usu[áa]rio (desconhecido|inexistente)",
        ),
        Permanent,
        "unknown_recipient",
    ),
    Rule(_RCPT, r"551 |5\d\d 5\.[14]\.\d+$", "", Permanent, "unknown_recipient"),
    Rule(
        _LAST,
        r"5\d\d 5\.[67]\.\d+$|5",
        _any(
            r"\bspam\b",
            r"\bvirus",
            r"\bcontent\b",
            r"\bjunk",
            r"\burl\b",
            r"\blink\b",
            r"\bphish",
            r"unsolicited",
        ),
        Permanent,
        "content_refused",
    ),
    Rule(_LAST, r"5\d\d 5\.[67]\.\d+$", "", Permanent, "content_refused"),
    Rule(_RCPT, r"5\d\d 5\.7\.\d+$", "", Permanent, "refused"),
    Rule(_ENVELOPE, r"4\d\d 4\.7\.1$", "", Transient, "greylisted"),
    # Before a recipient is named, a deferral is about the server's state: it costs no attempt.
    Rule(frozenset({Stage.CONNECT, Stage.LOGIN, Stage.MAIL}), r"4", "", Throttled, "server_busy", SOON),
    Rule(_ANY, r"4", "", Transient, "deferred"),
    Rule(_ANY, r"5", "", Permanent, UNRECOGNISED),
)

RULES: tuple[Rule, ...] = (*BY_CODE, *ABOUT_THE_RECIPIENT, *BY_PROVIDER, *BY_WORDS, *BY_DIGIT)
"""Every rule, in matching order."""

SENTENCES: Final = {
    "bad_credentials": "The mail server refuses this mailbox's user or password; correct them in the instance.",
    "rate_limited": "The mail server says that this mailbox sends too fast.",
    "hourly_limit": "The mail server's limit of messages an hour is reached for this mailbox.",
    "daily_limit": "The mail server's limit of messages a day is reached for this mailbox; it goes on tomorrow.",
    "server_busy": "The mail server takes no mail from anybody now.",
    "server_refuses": "The mail server refuses connections from here.",
    "sender_refused": "The mail server does not let this mailbox send from its address.",
    "sender_policy": "The sender's domain fails a check (SPF, DKIM, DMARC, reverse DNS); correct its DNS records.",
    "sender_blocked": "The mail server blocks this sender or its network; it must be taken off the block list first.",
    "hard_bounce": "The lead's mailbox does not exist.",
    "unknown_recipient": "The mail server says that it cannot deliver to the lead's address.",
    "not_supported": "The mail server cannot send to such an address.",
    "too_large": "The mail server finds the message too large.",
    "mailbox_full": "The lead's mailbox is full.",
    "content_refused": "The mail server refused the message's content.",
    "greylisted": "The mail server asks to come back later (grey-listing).",
    "deferred": "The mail server cannot take the message now.",
    "refused": "The recipient's mail server refuses messages from us.",
    UNRECOGNISED: "The mail server refused the message with a reply that no row of the table knows.",
    "unreadable": "The mail server answered with something that is no SMTP reply.",
}

_ENHANCED: Final = re.compile(r"^\s{0,9}#?([245]\.\d{1,3}\.\d{1,3})\b|\(#([245]\.\d{1,3}\.\d{1,3})\)", re.MULTILINE)
_NOT_THEIRS: Final = re.compile(r"<[^<>\s]{1,320}>|[^\s<>\"'(),:;]{1,64}@[\w.-]{1,255}|https?://\S{1,500}")
"""Addresses, arguments that a server repeats, and URLs. `<DATA>` and `<END-OF-MESSAGE>` carry no needed information."""

_NO_UTF_8: Final = re.compile("[\udc80-\udcff]")
_MOST_READ: Final = 1000
"""Characters of a reply that are searched."""


def classify(stage: Stage, reply: int, text: str, at: float | None = None) -> Failure:
    """Classify a reply at a stage, by the table.

    `at` is the time (seconds since the epoch, by the database's clock): a daily limit ends with the day it is in;
    None: a day later.
    """
    came = {"reply": reply, "text": redact_people(_readable(text))}
    if not 400 <= reply <= 599:
        # A success where none is possible, or no number at all.
        reason = SENTENCES["unreadable"]
        if stage is Stage.BODY:
            return Unknown("unreadable", f"{reason} Nobody knows whether it took the message.", came)
        return Transient("unreadable", reason, answer=came)
    rule = rule_of(stage, reply, text)
    reason = SENTENCES[rule.code]
    wait = _until_tomorrow(at) if rule.wait == TOMORROW else rule.wait
    if rule.kind is Systemic:
        return Systemic(rule.code, reason, Scope.INBOX, wait, rule.by_words, came)
    if rule.kind is Throttled:
        return Throttled(rule.code, reason, Scope.INBOX, 60.0 if wait is None else wait, came)
    if rule.kind is Permanent:
        return Permanent(rule.code, reason, came)
    return Transient(rule.code, reason, SOON if wait is None else wait, answer=came)


def rule_of(stage: Stage, reply: int, text: str) -> Rule:
    """Return the first rule that matches a refusal, 400 to 599."""
    text = _readable(text)
    enhanced = _ENHANCED.search(text[:_MOST_READ])
    number = f"{reply} {(enhanced[1] or enhanced[2]) if enhanced else '-'}"
    words = " ".join(_NOT_THEIRS.sub("…", text[:_MOST_READ]).split())
    return next(rule for rule in RULES if rule.matches(stage, number, words))


def _readable(text: str) -> str:
    """Decode a reply whose bytes are not UTF-8 (a server that uses Latin-1)."""
    if text.isascii() or text.isprintable():
        return text
    return text.encode("utf-8", "surrogateescape").decode("latin-1") if _NO_UTF_8.search(text) else text


def _until_tomorrow(at: float | None) -> float:
    if at is None:
        return 24 * HOUR
    now = datetime.fromtimestamp(at, ZoneInfo(DEFAULT_ZONE))
    midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), now.tzinfo)
    return max(HOUR, (midnight - now).total_seconds())
