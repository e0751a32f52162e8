"""E-mail: every refusal of the contract over real SMTP, what arrives, and what is never reported as sent."""

import asyncio
import base64
import re
import ssl
import subprocess
import time
import unicodedata
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from campaign_pipeline.adapters import smtp
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.adapters.mail_message import compose, message_id
from campaign_pipeline.adapters.mailbox import Mailbox
from campaign_pipeline.adapters.smtp import Smtp, from_connection
from campaign_pipeline.adapters.smtp_replies import RULES, Stage, classify, rule_of
from campaign_pipeline.core.ports import (
    Attempt,
    Envelope,
    LookUp,
    LookUpFailed,
    Outcome,
    Permanent,
    Sent,
    Systemic,
    Throttled,
    Transient,
    Unknown,
)
from campaign_pipeline.core.text_rules import TextProblem
from campaign_pipeline_tests.adapters.mail_server import HANG_UP, MailServer, mail_server, mailbox_of
from campaign_pipeline_tests.adapters.wire import differences, samples, serving

TEXT = (
    "Olá, Ana!\n\nVi que a Padaria São João cresceu.\nPodemos conversar? https://acme.example/café?a=1&b=2.\n.\nAbraço"
)
ENVELOPE = Envelope(
    "m-1", 1, TEXT, "ana@example.com", subject="Café à vista ☕", contact_name="Ana Souza", attempted_at=1.8e9
)
MAILBOX = Mailbox(
    "mail.acme.example",
    587,
    "starttls",
    "vendas@acme.example",
    from_name="Loja do João",
    domain="acme.example",
    unsubscribe_url="https://acme.example/sair?m={message_id}",
    unsubscribe_mailto="mailto:sair@acme.example?subject={message_id}",
)
SAMPLES = samples("smtp.json")
CLIENT = httpx.AsyncBaseTransport()  # for HTTP: of no use here
Use = Callable[[Smtp], Awaitable[Any]]


def with_server(server: MailServer, use: Use, timeout: float = 5.0, **given: Any) -> Any:
    """Run something with the channel of a mail server."""

    async def inside() -> Any:
        async with mail_server(server):
            token = given.pop("instance_token", None)
            async with from_connection(CLIENT, mailbox_of(server, token, **given), {}, timeout) as channel:
                return await asyncio.wait_for(use(channel), 20)

    return asyncio.run(inside())


def with_raw(serve: Any, use: Use, timeout: float = 5.0, **given: Any) -> Any:
    """Run something with the channel of a server that does exactly what a test says."""

    async def inside() -> Any:
        async with serving(serve) as place, from_connection(CLIENT, mailbox_of(place, **given), {}, timeout) as channel:
            return await asyncio.wait_for(use(channel), 20)

    return asyncio.run(inside())


async def send_once(channel: Smtp) -> Outcome:
    return await channel.send(ENVELOPE)


# Refusals -------------------------------------------------------------------------------------------------------------


def refusal(sample: Mapping[str, Any]) -> Any:
    """Send to a server that refuses like a sample."""
    said = f"{sample['reply']} {sample['text']}"
    if sample["stage"] == "connect":

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(f"{said}\r\n".encode())
            await writer.drain()

        return with_raw(greet, send_once)
    if sample["stage"] == "login":
        server = MailServer(password="right", refusal_of_login=said)
        return with_server(server, send_once, username="loja", instance_token="wrong")
    return with_server(MailServer({sample["stage"]: lambda: said}), send_once)


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample["name"] for sample in SAMPLES])
def test_each_refusal_has_its_class(sample: Mapping[str, Any]) -> None:
    outcome = refusal(sample)
    assert differences(outcome, sample["expect"]) == {}
    reason = getattr(outcome, "reason", "")
    assert sample["text"] not in reason, "what a server says stays out of reasons"
    assert "@" not in reason


def test_the_samples_cover_every_row_of_the_table() -> None:
    stages = {name: Stage[name.upper()] for name in ("connect", "login", "mail", "rcpt")} | {"data": Stage.BODY}
    used = {rule_of(stages[sample["stage"]], sample["reply"], sample["text"]) for sample in SAMPLES}
    assert [rule for rule in RULES if rule not in used] == []


def test_a_limit_of_a_day_ends_with_the_day_in_the_campaigns_usual_zone() -> None:
    said = "5.4.5 Daily user sending limit exceeded"
    at_noon = datetime(2026, 11, 25, 15, 0, tzinfo=UTC).timestamp()  # noon in São Paulo
    late = datetime(2026, 11, 26, 2, 50, tzinfo=UTC).timestamp()  # ten minutes before midnight there
    waits = [getattr(classify(Stage.BODY, 550, said, at), "retry_after", 0) for at in (at_noon, late, None)]
    assert waits == [43200, 3600, 86400]


@pytest.mark.parametrize(("reply", "kind"), [("250 Ok", Sent), ("251 Forwarded", Sent), ("299 Taken", Sent)])
def test_any_success_after_the_message_says_that_it_was_taken(reply: str, kind: type[object]) -> None:
    assert isinstance(with_server(MailServer({"data": lambda: reply}), send_once), kind)


@given(stage=st.sampled_from(Stage), reply=st.integers(400, 599), text=st.text(max_size=60))
def test_every_refusal_has_a_class_and_none_is_taken_for_sent(stage: Stage, reply: int, text: str) -> None:
    outcome = classify(stage, reply, text)
    assert isinstance(outcome, Permanent | Transient | Throttled | Systemic)
    assert outcome.reason.endswith(".")


@given(
    stage=st.sampled_from([Stage.RCPT, Stage.DATA, Stage.BODY]),
    reply=st.integers(400, 599),
    enhanced=st.sampled_from(["", "4.7.0 ", "4.7.1 ", "5.7.1 ", "5.4.5 ", "5.7.26 ", "5.7.606 ", "5.4.6 ", "5.2.0 "]),
    words=st.sampled_from([
        "Message sending quota exceeded", "too many emails", "exceeded the max emails per hour", "Ratelimit exceeded",
        "daily sending limit exceeded", "Client host blocked using zen.spamhaus.org", "SPF check failed",
        "Sender address rejected", "Relay access denied",
    ]),
)  # fmt: skip
def test_a_refusal_of_us_costs_no_lead_its_message(stage: Stage, reply: int, enhanced: str, words: str) -> None:
    assert isinstance(classify(stage, reply, enhanced + words), Throttled | Systemic)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("O limite di\udce1rio de envios foi atingido", "daily_limit"),  # a server that speaks Latin-1
        ("O limite diário de envios foi atingido", "daily_limit"),
        ("The address\nthat you wrote to\n5.1.1 does not exist", "hard_bounce"),  # the code in the last line
    ],
)
def test_a_reply_is_read_in_any_encoding_and_line(said: str, code: str) -> None:
    outcome = classify(Stage.RCPT, 550, said)
    assert isinstance(outcome, Throttled | Permanent)
    assert outcome.code == code
    assert "\udce1" not in str(outcome.answer)


def test_no_reply_takes_long_to_read() -> None:
    for piece in ("too many ", "sender ip ", "user ", "a-", "(#5.", "<a", "@" * 9, "messages per "):
        started = time.process_time()
        classify(Stage.RCPT, 550, piece * 20_000)
        assert time.process_time() - started < 0.5, piece


def test_a_refusal_costs_no_connection_and_no_neighbour() -> None:
    answers = iter(["550 5.1.1 User unknown"])
    server = MailServer({"rcpt": lambda: next(answers, "250 Ok")})

    async def use(channel: Smtp) -> list[Outcome]:
        return [await channel.send(ENVELOPE), await channel.send(ENVELOPE)]

    first, second = with_server(server, use)
    assert (first.code, type(second)) == ("hard_bounce", Sent)
    assert server.connections == 1


# Lost answers ---------------------------------------------------------------------------------------------------------


def test_a_connection_that_is_lost_before_the_message_left_is_tried_again() -> None:
    outcome = with_server(MailServer({"rcpt": lambda: HANG_UP}), send_once)
    assert isinstance(outcome, Transient)
    assert outcome.code == "connection_lost"


def test_a_connection_that_is_lost_at_the_data_command_is_tried_again() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.test\r\n")
        while not (line := await reader.readline()).startswith(b"DATA"):
            assert line
            writer.write(b"250 Ok\r\n")

    outcome = with_raw(serve, send_once)
    assert isinstance(outcome, Transient)
    assert outcome.code == "connection_lost"


def test_a_message_whose_time_is_over_is_not_handed_over_and_its_connection_is_closed() -> None:
    async def use(channel: Smtp) -> tuple[Outcome, Outcome]:
        return await channel.send(replace(ENVELOPE, may_leave=lambda: False)), await channel.send(ENVELOPE)

    server = MailServer()
    late, sent = with_server(server, use)
    assert isinstance(late, Transient)
    assert late.code == "too_late"
    assert isinstance(sent, Sent)
    assert (len(server.taken), server.connections) == (1, 2)


def test_a_connection_that_is_lost_after_the_message_left_is_unknown() -> None:
    server = MailServer({"data": lambda: HANG_UP})
    outcome = with_server(server, send_once)
    assert isinstance(outcome, Unknown)
    assert outcome.code == "no_answer"
    assert len(server.taken) == 1, "nobody knows here, but it had gone out"


def test_an_answer_to_the_message_that_does_not_come_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    monkeypatch.setattr(smtp, "DATA_PATIENCE", 0.05)  # all other answers have their usual time
    assert isinstance(with_server(MailServer({"data": never}), send_once), Unknown)


def test_an_answer_to_the_recipient_that_does_not_come_is_tried_again() -> None:
    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    outcome = with_server(MailServer({"rcpt": never}), send_once, timeout=0.1)
    assert isinstance(outcome, Transient)


def test_an_answer_to_the_message_that_is_no_reply_is_unknown() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.test\r\n")
        while line := await reader.readline():
            if line == b"DATA\r\n":
                writer.write(b"354 Go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                writer.write(b"<html>502 Bad Gateway</html>\r\n")
            else:
                writer.write(b"250 Ok\r\n")

    outcome = with_raw(serve, send_once)
    assert isinstance(outcome, Unknown)
    assert outcome.code == "unreadable"


def test_a_server_that_is_away_is_transient_and_after_three_times_the_inboxs_trouble() -> None:
    async def inside() -> list[Outcome]:
        async with serving(_close) as place:
            pass  # nothing listens there any more
        async with from_connection(CLIENT, mailbox_of(place), {}, 5.0) as channel:
            return [await channel.send(ENVELOPE) for _ in range(3)]

    outcomes = asyncio.run(inside())
    assert [type(outcome) for outcome in outcomes] == [Transient, Transient, Systemic]
    assert [getattr(outcome, "code", None) for outcome in outcomes] == [
        "unreachable",
        "unreachable",
        "server_unreachable",
    ]


async def _close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


ENDLESS = {"lines": b"250-and more\r\n" * 500, "one line": b"x" * 5000}


@pytest.mark.parametrize("piece", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize(("stage", "kind"), [("MAIL", Transient), ("DATA", Unknown)])
def test_a_reply_without_end_is_cut_off_before_it_costs_anything(piece: bytes, stage: str, kind: type[Outcome]) -> None:
    written = 0

    async def forever(writer: asyncio.StreamWriter) -> None:
        nonlocal written
        while True:
            writer.write(piece)
            written += len(piece)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        while line := await reader.readline():
            if line.startswith(b"DATA"):
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
            if line.startswith(stage.encode()):
                await forever(writer)
            writer.write(b"250 ok\r\n")

    outcome = with_raw(serve, send_once, security="none")
    assert isinstance(outcome, kind), outcome
    assert written < 20_000_000


def test_nothing_can_be_looked_up() -> None:
    async def use(channel: Smtp) -> object:
        assert channel.traits.look_up is LookUp.NONE
        return await channel.find_accepted(Attempt(ENVELOPE, 0.0))

    assert isinstance(with_server(MailServer(), use), LookUpFailed)


# Connections ----------------------------------------------------------------------------------------------------------


def test_connections_are_few_and_used_again() -> None:
    server = MailServer()

    async def use(channel: Smtp) -> list[Outcome]:
        return await asyncio.gather(*(channel.send(Envelope(f"m-{n}", 1, TEXT, "ana@example.com")) for n in range(30)))

    outcomes = with_server(server, use, max_connections="3")
    assert [type(outcome) for outcome in outcomes] == [Sent] * 30
    assert server.connections == server.most_at_once == 3
    assert server.open == []


def test_a_connection_is_closed_after_so_many_messages() -> None:
    server = MailServer()

    async def use(channel: Smtp) -> None:
        for n in range(5):
            assert isinstance(await channel.send(Envelope(f"m-{n}", 1, TEXT, "ana@example.com")), Sent)

    with_server(server, use, max_connections="1", messages_per_connection="2")
    assert server.connections == 3


def test_a_connection_that_died_while_it_was_idle_is_replaced() -> None:
    server = MailServer()

    async def use(channel: Smtp) -> list[Outcome]:
        first = await channel.send(ENVELOPE)
        await server.hang_up_on_all()
        return [first, await channel.send(ENVELOPE)]

    assert [type(outcome) for outcome in with_server(server, use)] == [Sent, Sent]
    assert server.connections == 2


def test_a_server_that_ends_an_idle_connection_with_421_is_asked_anew() -> None:
    answers = iter(["250 Ok", "421 4.4.2 Idle for too long"])
    server = MailServer({"mail": lambda: next(answers, "250 Ok")})

    async def use(channel: Smtp) -> list[Outcome]:
        return [await channel.send(ENVELOPE), await channel.send(ENVELOPE)]

    assert [type(outcome) for outcome in with_server(server, use)] == [Sent, Sent]


def test_a_send_that_is_cancelled_leaves_no_connection_in_the_middle_of_a_message() -> None:
    reached, taken = asyncio.Event(), MailServer()

    async def stuck() -> str:
        reached.set()
        await asyncio.Event().wait()
        return ""

    server = MailServer({"rcpt": stuck})

    async def use(channel: Smtp) -> Outcome:
        sending = asyncio.create_task(channel.send(ENVELOPE))
        await reached.wait()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        server.answers = taken.answers
        return await asyncio.wait_for(channel.send(ENVELOPE), 2)

    assert isinstance(with_server(server, use), Sent)
    assert (server.connections, len(server.taken)) == (2, 1)


def test_the_connection_that_was_asked_for_its_state_is_the_first_to_send() -> None:
    server = MailServer(password="right")

    async def use(channel: Smtp) -> None:
        assert await channel.check_connection() is None
        assert isinstance(await channel.send(ENVELOPE), Sent)

    with_server(server, use, username="loja", instance_token="right")
    assert server.connections == 1


@pytest.mark.parametrize("code", ["535 5.7.8", "454 4.7.0", "599"])
def test_a_password_that_the_server_quotes_in_base64_is_kept_nowhere(code: str) -> None:
    password = "correct-horse-battery"
    told = base64.b64encode(f"\0loja\0{password}".encode()).decode()
    server = MailServer(password="right", refusal_of_login=f"{code} Cannot decode {told}, nor {password[:12]}")

    async def use(smtp: Smtp) -> Any:
        return await smtp.check_connection()

    refusal = with_server(server, use, username="loja", instance_token=password)
    assert told[12:20] not in str(refusal)
    assert password[:8] not in str(refusal)


def test_a_wrong_password_is_found_before_anything_is_written() -> None:
    async def use(channel: Smtp) -> object:
        return await channel.check_connection()

    refusal = with_server(MailServer(password="right"), use, username="loja", instance_token="wrong")
    assert isinstance(refusal, Systemic)
    assert refusal.code == "bad_credentials"
    assert "wrong" not in refusal.reason


# TLS ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    folder = tmp_path_factory.mktemp("tls")
    pem, key = folder / "certificate.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(pem)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject, *files],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    return pem, context


def sent_over_tls(server: MailServer, ca_file: Path | None) -> Outcome:
    async def inside() -> Outcome:
        variables = {"SMTP_CA_FILE": str(ca_file)} if ca_file else {}
        async with mail_server(server):
            given = mailbox_of(server, "right", security="starttls", username="loja")
            async with from_connection(CLIENT, given, variables, 5.0) as channel:
                return await channel.send(ENVELOPE)

    return asyncio.run(inside())


def test_starttls_comes_before_the_password(certificate: tuple[Path, ssl.SSLContext]) -> None:
    pem, context = certificate
    server = MailServer(password="right", tls=context)
    assert isinstance(sent_over_tls(server, pem), Sent)


def test_an_untrusted_certificate_ends_the_connection(certificate: tuple[Path, ssl.SSLContext]) -> None:
    server = MailServer(password="right", tls=certificate[1])
    outcome = sent_over_tls(server, None)
    assert isinstance(outcome, Systemic)
    assert outcome.code == "untrusted_certificate"
    assert server.taken == []


def test_a_server_without_starttls_gets_no_password() -> None:
    server = MailServer(password="right")
    outcome = sent_over_tls(server, None)
    assert isinstance(outcome, Systemic)
    assert outcome.code == "no_tls"
    assert server.asked == {}


# Contents -------------------------------------------------------------------------------------------------------------


def bodies(message: EmailMessage) -> tuple[str, str]:
    plain, rich = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None
    assert rich is not None
    return plain.get_content(), rich.get_content()


def test_a_message_arrives_unchanged_with_its_headers() -> None:
    server = MailServer()
    outcome = with_server(
        server,
        send_once,
        from_name="Loja do João",
        reply_to="joao@acme.example",
        unsubscribe_url=MAILBOX.unsubscribe_url,
        unsubscribe_mailto=MAILBOX.unsubscribe_mailto,
    )
    (message,) = server.taken
    assert server.recipients == ["ana@example.com"]
    assert message["Subject"] == "Café à vista ☕"
    assert message["From"] == "Loja do João <vendas@acme.example>"
    assert message["To"] == "Ana Souza <ana@example.com>"
    assert message["Reply-To"] == "joao@acme.example"
    assert message["List-Unsubscribe"] == ("<https://acme.example/sair?m=m-1>, <mailto:sair@acme.example?subject=m-1>")
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Feedback-ID"] == "campaign:0f8fad5b:email:acme.example"
    assert parsedate_to_datetime(message["Date"]).timestamp() == ENVELOPE.attempted_at
    assert outcome == Sent(message["Message-ID"].strip("<>"), {"reply": "2.0.0 Ok: queued as 0001"})
    plain, rich = bodies(message)
    assert plain.replace("\r\n", "\n").startswith(f"{TEXT}\n\n-- \n")
    assert "https://acme.example/sair?m=m-1" in plain
    assert '<a href="https://acme.example/café?a=1&amp;b=2">https://acme.example/café?a=1&amp;b=2</a>.' in rich
    assert rich.count("<p>") == 2


def test_a_message_without_a_way_to_unsubscribe_says_nothing_of_it() -> None:
    message = parsed(Mailbox("h", 25, "none", "vendas@acme.example", domain="acme.example"), ENVELOPE)
    assert message["List-Unsubscribe"] is message["List-Unsubscribe-Post"] is None
    assert bodies(message)[0].replace("\r\n", "\n").rstrip("\n") == TEXT


def test_an_unsubscribe_address_by_mail_alone_promises_no_click() -> None:
    mailbox = Mailbox(
        "h", 25, "none", "vendas@acme.example", domain="acme.example", unsubscribe_mailto="mailto:sair@acme.example"
    )
    message = parsed(mailbox, ENVELOPE)
    assert (message["List-Unsubscribe"], message["List-Unsubscribe-Post"]) == ("<mailto:sair@acme.example>", None)


def test_a_long_unsubscribe_address_is_sent_in_one_piece() -> None:
    url = f"https://acme.example/{'sair/' * 60}"
    content = compose(replace(MAILBOX, unsubscribe_url=url), ENVELOPE)
    assert f"\r\nList-Unsubscribe: <{url}>, <".encode() in content


def test_a_part_has_the_same_message_id_at_every_attempt_and_no_other_part_has_it() -> None:
    later = Envelope("m-1", 1, "Outro texto.", "bia@example.com", attempted_at=1.9e9)
    assert message_id(MAILBOX, ENVELOPE) == message_id(MAILBOX, later)
    assert message_id(MAILBOX, ENVELOPE) != message_id(MAILBOX, Envelope("m-2", 1, TEXT, "ana@example.com"))
    assert re.fullmatch(r"<[0-9a-f-]{36}@acme\.example>", message_id(MAILBOX, ENVELOPE))


def parsed(mailbox: Mailbox, envelope: Envelope) -> EmailMessage:
    content = compose(mailbox, envelope)
    assert re.search(rb"\r(?!\n)|(?<!\r)\n", content) is None, "only whole line ends"
    assert max(map(len, content.split(b"\r\n"))) < 998
    assert max(map(len, re.findall(rb"=\?utf-8\?\S+", content)), default=0) <= 75, "RFC 2047, of an encoded word"
    message = message_from_bytes(content, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


EXPECTED = {
    "From", "To", "Subject", "Date", "Message-ID", "List-Unsubscribe", "List-Unsubscribe-Post", "Auto-Submitted",
    "Feedback-ID", "MIME-Version", "Content-Type",
}  # fmt: skip
NASTY = st.text(st.characters(exclude_categories=["Cs"]), max_size=200) | st.sampled_from(
    [
        "Oi\r\nBcc: todos@example.com",
        "Oi\nBcc: x@y.z\n\nCorpo",
        "=?utf-8?q?Oi=0D=0ABcc:_x?=",
        "Ana\u2028Bcc: x",
        'Ana" <x@y.z>, "',
        "Ana <x@y.z>",
        "a" * 400,
        "é" * 400,
    ]
)


@settings(deadline=None)  # the machine does other things too
@given(subject=NASTY, name=NASTY, sender=NASTY, body=NASTY.filter(lambda text: any(c.isalnum() for c in text)))
def test_whatever_a_model_or_a_lead_is_called_no_header_is_added(
    subject: str, name: str, sender: str, body: str
) -> None:
    mailbox = Mailbox(**{**vars(MAILBOX), "from_name": sender})
    text = body.replace("\r", "")
    envelope = Envelope("m-1", 1, f"Oi. {text}", "ana@example.com", subject=subject, contact_name=name)
    try:
        message = parsed(mailbox, envelope)
    except TextProblem:
        reject()  # such as a subject with a field that was not filled in
    assert set(message.keys()) == EXPECTED
    assert [address.addr_spec for address in message["To"].addresses] == ["ana@example.com"]
    assert [address.addr_spec for address in message["From"].addresses] == ["vendas@acme.example"]
    assert not {unicodedata.category(char) for char in message["Subject"]} & {"Cc", "Zl", "Zp"}
    plain, rich = bodies(message)
    assert plain.replace("\r\n", "\n").startswith(f"Oi. {text}\n\n-- \n")
    assert "<script" not in rich.lower()


def test_markup_in_a_text_is_text() -> None:
    message = parsed(MAILBOX, Envelope("m-1", 1, "Oi <b>Ana</b> <script>x()</script> & cia", "ana@x.com", subject="Oi"))
    assert "Oi &lt;b&gt;Ana&lt;/b&gt; &lt;script&gt;x()&lt;/script&gt; &amp; cia" in bodies(message)[1]


def test_lines_that_begin_with_dots_arrive_and_end_nothing() -> None:
    server, text = MailServer(), "Olá, Ana! Tudo bem?\n.\n..\n.com é o nosso domínio.\n. Abraço"

    async def use(channel: Smtp) -> Outcome:
        return await channel.send(Envelope("m-1", 1, text, "ana@example.com"))

    assert isinstance(with_server(server, use), Sent)
    assert bodies(server.taken[0])[0].replace("\r\n", "\n").rstrip("\n") == text


@pytest.mark.parametrize(
    "address", ["", "ana", "ana@", "ana@@example.com", "ana@example.com\r\nRCPT TO:<x@y.z>", "a@b"]
)
def test_an_address_that_is_none_is_refused_and_nothing_is_asked(address: str) -> None:
    server = MailServer()

    async def use(channel: Smtp) -> Outcome:
        return await channel.send(Envelope("m-1", 1, TEXT, address, subject="Oi"))

    outcome = with_server(server, use)
    assert isinstance(outcome, Permanent)
    assert server.connections == 0


# Settings -------------------------------------------------------------------------------------------------------------


def built(given: InboxConnection, **variables: str) -> Mailbox:
    return from_connection(CLIENT, given, variables, 5.0)._mailbox


def test_a_mailbox_may_come_from_the_environment_alone() -> None:
    empty = replace(mailbox_of("x:1"), provider_config={}, settings=None)
    mailbox = built(
        empty,
        SMTP_URL="smtps://loja%40acme.example:p%2Fw@mail.acme.example",
        SMTP_FROM="Loja do João <vendas@acme.example>",
        SMTP_REPLY_TO="joao@acme.example",
        SMTP_DOMAIN="envio.acme.example",
    )
    assert (mailbox.host, mailbox.port, mailbox.security) == ("mail.acme.example", 465, "tls")
    assert (mailbox.username, mailbox.password) == ("loja@acme.example", "p/w")
    assert (mailbox.from_name, mailbox.from_address) == ("Loja do João", "vendas@acme.example")
    assert (mailbox.reply_to, mailbox.domain) == ("joao@acme.example", "envio.acme.example")
    assert "p/w" not in repr(mailbox)


def test_a_host_of_the_row_never_gets_the_environments_password() -> None:
    mailbox = built(
        mailbox_of("mail.other.example:587", security="starttls"), SMTP_URL="smtp://loja:secret@mail.acme.example"
    )
    assert (mailbox.host, mailbox.username, mailbox.password) == ("mail.other.example", None, None)


@pytest.mark.parametrize(
    ("given", "variables", "names"),
    [
        ({"host": None}, {}, "SMTP_URL"),
        ({"host": None}, {"SMTP_URL": "mail.acme.example"}, "SMTP_URL"),
        ({"host": None}, {"SMTP_URL": "smtp://h:x"}, "SMTP_URL"),
        ({"from_address": None}, {}, "SMTP_FROM"),
        ({"from_address": "vendas"}, {}, "from_address"),
        ({"reply_to": "joao"}, {}, "reply_to"),
        ({"port": "smtp"}, {}, "port"),
        ({"port": "70000"}, {}, "port"),
        ({"security": "ssl"}, {}, "security"),
        ({"domain": "acme example"}, {}, "domain"),
        ({"unsubscribe_url": "http://acme.example/sair"}, {}, "unsubscribe_url"),
        ({"unsubscribe_url": "https://acme.example/{lead}"}, {}, "unsubscribe_url"),
        ({"unsubscribe_url": "https://acme.example/a b"}, {}, "unsubscribe_url"),
        ({"unsubscribe_mailto": "sair@acme.example"}, {}, "unsubscribe_mailto"),
        ({"max_connections": "0"}, {}, "max_connections"),
        ({"max_connections": "many"}, {}, "max_connections"),
    ],
)
def test_a_bad_setting_is_named_in_one_sentence(given: dict[str, Any], variables: dict[str, str], names: str) -> None:
    with pytest.raises(LookupError, match=names) as raised:
        built(mailbox_of("127.0.0.1:25", **given), **variables)
    assert "\n" not in str(raised.value)


def test_a_password_is_not_sent_in_the_open() -> None:
    with pytest.raises(LookupError, match="starttls"):
        built(mailbox_of("mail.acme.example:25", "secret"))
