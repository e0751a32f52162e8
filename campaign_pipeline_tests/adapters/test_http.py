"""Whether a request left, proven with raw servers; keys, Retry-After and bodies of any shape."""

import asyncio
import base64
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
import pytest
import uvloop
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from campaign_pipeline.adapters import http
from campaign_pipeline.adapters.http import Answer, NoAnswer, at, http_client
from campaign_pipeline.adapters.redaction import MAX_KEPT_CHARS, hide_text, redact
from campaign_pipeline_tests.adapters.wire import Serve, answering, read_request, response, serving

KEY = "sk-or-v1-0123456789abcdef"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


async def post_to(url: str, timeout: float = 5.0, headers: dict[str, str] | None = None) -> Answer | NoAnswer:
    async with http_client(connections=2) as client:
        return await http.post(client, url, {"number": "5511987654321"}, headers or {"apikey": KEY}, timeout)


def post(serve: Serve, timeout: float = 5.0) -> Answer | NoAnswer:
    """POST something to such a server over HTTP."""

    async def run() -> Answer | NoAnswer:
        async with serving(serve) as place:
            return await asyncio.wait_for(post_to(f"http://{place}/x", timeout), 20)

    return asyncio.run(run())


def answered(serve: Serve) -> Answer:
    answer = post(serve)
    assert isinstance(answer, Answer), answer
    return answer


def unanswered(serve: Serve, timeout: float = 5.0) -> NoAnswer:
    answer = post(serve, timeout)
    assert isinstance(answer, NoAnswer), answer
    return answer


# The last instant -----------------------------------------------------------------------------------------------------


def test_a_process_that_stops_right_after_it_was_told_to_go_has_written_its_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # If kept until the end of a loop iteration, as uvloop once did, it would leave on waking.
    arrived, in_time = threading.Event(), list[bool]()
    listener = socket.create_server(("127.0.0.1", 0))

    def take() -> None:
        connection, _ = listener.accept()
        with connection:
            if connection.recv(65536).startswith(b"POST /x"):
                arrived.set()
            connection.sendall(response(b"{}"))

    write_bytes = aiohttp.ClientRequest.write_bytes

    async def write_and_stop(*args: Any) -> None:
        await write_bytes(*args)
        in_time.append(arrived.wait(3))  # nothing else happens in this process meanwhile

    async def run() -> Answer | NoAnswer:
        async with http_client(connections=1) as client:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
            return await http.post(client, url, {"a": 1}, {}, 15.0, may_leave=lambda: True)

    monkeypatch.setattr(aiohttp.ClientRequest, "write_bytes", write_and_stop)
    server = threading.Thread(target=take)
    server.start()
    try:
        assert isinstance(uvloop.run(run()), Answer)
        assert in_time == [True]
    finally:
        server.join()
        listener.close()


# Nothing left ---------------------------------------------------------------------------------------------------------


def test_a_refused_connection_let_nothing_leave() -> None:
    async def run() -> Answer | NoAnswer:
        async with serving(answering(b"")) as place:
            pass  # closed again: nothing listens there now
        return await post_to(f"http://{place}/x")

    answer = asyncio.run(run())
    assert isinstance(answer, NoAnswer)
    assert not answer.may_have_left
    assert "cannot be reached" in answer.reason


def test_a_name_that_does_not_resolve_let_nothing_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    monkeypatch.delenv("CAMPAIGN_ONLY_HOSTS")
    answer = asyncio.run(post_to("https://nowhere.invalid/x"))
    assert isinstance(answer, NoAnswer)
    assert not answer.may_have_left
    assert "nowhere.invalid" in answer.reason


def test_a_server_that_speaks_no_tls_let_nothing_leave() -> None:
    taken: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(await reader.read(100))
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def run() -> Answer | NoAnswer:
        async with serving(serve) as place:
            return await post_to(f"https://{place}/x")

    answer = asyncio.run(run())
    assert taken, "the connection was made"
    assert isinstance(answer, NoAnswer)
    assert not answer.may_have_left


def test_an_untrusted_certificate_lets_nothing_leave(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject, *files],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))

    async def run() -> Answer | NoAnswer:
        asyncio.get_running_loop().set_exception_handler(lambda _, __: None)  # the server's side of the refusal
        async with serving(serve, context) as place:
            return await post_to(f"https://{place}/x")

    answer = asyncio.run(run())
    assert isinstance(answer, NoAnswer)
    assert not answer.may_have_left
    assert requests == []


def test_a_handshake_that_never_ends_is_given_up_with_nothing_left() -> None:
    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async def run() -> Answer | NoAnswer:
        async with serving(serve) as place:
            return await asyncio.wait_for(post_to(f"https://{place}/x", timeout=0.3), 20)

    answer = asyncio.run(run())
    assert isinstance(answer, NoAnswer)
    assert not answer.may_have_left


@pytest.mark.parametrize(
    "url", ["ftp://example.com/x", "example.com/x", "http://exa mple.com/x", "http://[::1/x", "http://x:99999999/", ""]
)
def test_a_url_that_is_none_let_nothing_leave(url: str) -> None:
    answer = asyncio.run(post_to(url))
    assert isinstance(answer, NoAnswer)
    assert not answer.may_have_left


@pytest.mark.parametrize("key", ["chave-secreta-ção", "secret-key\nwith-a-line", "secret\x00key"])
def test_a_key_that_no_header_can_bear_let_nothing_leave_and_is_not_quoted(key: str) -> None:
    answer = asyncio.run(post_to("http://127.0.0.1:9/x", headers={"apikey": key}))
    assert isinstance(answer, NoAnswer)
    assert not answer.may_have_left
    assert "secret" not in answer.reason
    assert "key has characters" in answer.reason


# It may have left -----------------------------------------------------------------------------------------------------


def test_a_server_that_takes_the_request_and_hangs_up_may_have_it() -> None:
    taken: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        taken.append(await read_request(reader))

    answer = unanswered(serve)
    assert b"5511987654321" in taken[0]
    assert answer.may_have_left
    assert "lost after POST was sent" in answer.reason


def test_a_server_that_hangs_up_before_it_reads_may_have_it() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    assert unanswered(serve).may_have_left


def test_a_reset_after_the_request_may_have_it() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        transport = writer.transport
        transport.abort()

    assert unanswered(serve).may_have_left


def test_a_read_timeout_may_have_it_and_names_the_patience() -> None:
    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read(-1)

    answer = unanswered(serve, timeout=0.2)
    assert answer.may_have_left
    assert "did not answer POST within 0.2 seconds" in answer.reason


def test_half_a_body_may_have_it() -> None:
    assert unanswered(answering(response(b'{"key": {"id": "3EB0"}}')[:-5])).may_have_left


def test_half_a_chunked_body_may_have_it() -> None:
    assert unanswered(answering(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{")).may_have_left


def test_half_a_head_may_have_it() -> None:
    assert unanswered(answering(b"HTTP/1.1 201 Crea")).may_have_left


def test_an_answer_that_is_no_http_may_have_it() -> None:
    assert unanswered(answering(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")).may_have_left


def test_a_body_that_is_not_compressed_as_it_says_may_have_it() -> None:
    assert unanswered(answering(response(b"not gzip at all", "Content-Encoding: gzip"))).may_have_left


def test_a_trickling_answer_ends_too() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        loop = asyncio.get_running_loop()
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            dropped = loop.create_future()
            loop.call_later(0.05, dropped.set_result, None)
            await dropped

    answer = unanswered(serve, timeout=0.2)
    assert answer.may_have_left
    assert "within 0.2 seconds" in answer.reason


# Answers --------------------------------------------------------------------------------------------------------------


def test_an_answer_has_status_and_body() -> None:
    answer = answered(answering(response(b'{"a": [1]}', status="201 Created")))
    assert (answer.status, answer.body, answer.text, answer.retry_after) == (201, {"a": [1]}, '{"a": [1]}', None)


@pytest.mark.parametrize("body", [b"", b"<html>502</html>", b'{"a": ', b"\xff\xfe", b'{"a": NaN}', b'"\\ud800"'])
def test_a_body_that_is_no_json_is_none(body: bytes) -> None:
    assert answered(answering(response(body))).body is None


def test_blanks_before_the_json_are_no_harm() -> None:
    assert answered(answering(response(b'\n   \n\n{"a": 1}\n'))).body == {"a": 1}


def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    answer = answered(answering(response(b"", "Location: https://example.com/", status="301 Moved Permanently")))
    assert answer.status == 301


def test_the_same_body_is_the_same_bytes() -> None:
    taken: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append((await read_request(reader)).split(b"\r\n\r\n")[1])
        writer.write(response(b"{}"))

    post(serve)
    post(serve)
    assert taken == [b'{"number":"5511987654321"}'] * 2


# Keys -----------------------------------------------------------------------------------------------------------------


def test_a_key_that_a_provider_quotes_is_in_neither_body_nor_text() -> None:
    said = f'{{"error": {{"message": "no such key {KEY}", "deep": ["{KEY}"]}}}}'
    answer = answered(answering(response(said.encode(), status="401 Unauthorized")))
    assert KEY not in str(answer)
    assert at(answer.body, "error", "message") == "no such key ***"


def test_a_bearer_key_that_a_provider_quotes_is_taken_out_without_its_scheme() -> None:
    async def run() -> Answer | NoAnswer:
        async with serving(answering(response(b"user opaque-value-1 unknown", status="401 Unauthorized"))) as place:
            return await post_to(f"http://{place}/x", headers={"Authorization": "Bearer opaque-value-1"})

    answer = asyncio.run(run())
    assert isinstance(answer, Answer)
    assert answer.text == "user *** unknown"


def test_the_password_of_a_url_is_in_no_reason() -> None:
    for url in ("http://admin:hunter2secret@127.0.0.1:1/x", "http://admin:hunter2secret@exa mple/x"):
        answer = asyncio.run(post_to(url))
        assert isinstance(answer, NoAnswer)
        assert "hunter2" not in answer.reason


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {KEY}",
        f"Bearer {KEY}",
        f"apikey={KEY}",
        f'{{"api_key": "{KEY}"}}',
        f"https://host/?token={KEY}&x=1",
        f"secret: '{KEY}'",
        f"password={KEY}",
        KEY,
    ],
)
def test_strings_that_look_like_a_key_are_redacted(text: str) -> None:
    assert KEY not in redact(text)
    assert "0123456789abcdef" not in redact(text)


def in_base64(before: str, text: str = KEY) -> str:
    return base64.b64encode((before + text).encode()).decode()


MANGLED = {
    "whole": KEY,
    "cut at its end": KEY[:14],
    "cut at its beginning": KEY[-9:],
    "a piece": KEY[4:17],
    "over two lines": f"{KEY[:11]}\n{KEY[11:]}",
    "over two lines near its beginning": f"{KEY[:3]}\r\n  {KEY[3:]}",
    "over two lines of a JSON text": f"{KEY[:20]}\\n{KEY[20:]}",
    "over two lines of a mail": f"{KEY[:16]}=\r\n{KEY[16:]}",
    "in base64": in_base64(""),
    "in base64 after a user": in_base64("u:"),
    "in base64 after a longer user": in_base64("\0loja\0"),
    "in base64 over two lines": f"{in_base64('u:')[:16]}\r\n{in_base64('u:')[16:]}",
    "percent-encoded": quote(KEY, safe=""),
    "percent-encoded as a whole": "".join(f"%{byte:02x}" for byte in KEY.encode()),
}


@pytest.mark.parametrize("form", MANGLED)
def test_a_known_key_is_taken_out_however_it_was_mangled(form: str) -> None:
    said = f"no such key: {MANGLED[form]}, sorry"
    clean = hide_text(said, KEY)
    assert "***" in clean
    first = 8 if "after" in form else 0  # what the user's name makes of base64 may stay
    assert not any(MANGLED[form][at : at + 6] in clean for at in range(first, len(MANGLED[form]) - 5)), clean
    assert clean.startswith("no such key: ")
    assert clean.endswith(", sorry")
    assert hide_text(said.replace(MANGLED[form], "an innocent word"), KEY).endswith("an innocent word, sorry")


def test_a_key_in_pieces_is_in_no_answer() -> None:
    said = f'{{"error": "{KEY[:12]}", "at": "{in_base64("apikey:")}", "phone": "5501234567890"}}'
    answer = answered(answering(response(said.encode(), status="401 Unauthorized")))
    assert answer.body == {"error": "***", "at": answer.body["at"], "phone": "5501234567890"}
    assert KEY[4:10] not in str(answer)
    assert "ZWY=" not in answer.body["at"].replace("***ZWY=", "")


@given(st.text(max_size=300), st.text(alphabet="abcXYZ019-_.", min_size=12, max_size=60), st.text(max_size=300))
def test_a_whole_key_never_survives_and_the_rest_does(before: str, key: str, after: str) -> None:
    assume(key not in before + after)
    clean = hide_text(f"{before}{key}{after}", key)
    assert key not in clean
    assert "***" in clean


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"Basic {in_base64('loja:')}", "Basic ***"),
        (f"https://x/?api_key%3D{KEY}%26b=1", "https://x/?api_key%3D***%26b=1"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYW5vbiJ9.c2ln", "***"),
        ("o token da loja venceu", "o token da loja venceu"),
    ],
)
def test_strings_that_look_like_an_encoded_key_are_redacted_too(text: str, left: str) -> None:
    assert redact(text) == left


# Evidence of unrecognised answers -------------------------------------------------------------------------------------


def test_only_error_fields_are_kept_as_evidence() -> None:
    body = {
        "error": {"code": 131, "message": "ana@example.com at +55 (11) 98765-4321 has no session", "trace": "x" * 900},
        "lead": {"name": "Ana", "message": "Olá"},
        "internal": "10.0.0.7 admin",
        "status": 500,
    }
    answer = answered(answering(response(orjson.dumps(body), status="500 Oops")))
    assert answer.evidence == {
        "error.code": 131,
        "error.message": "*** at *** has no session",
        "status": 500,
    }


def test_of_a_page_its_first_words_are_kept_as_evidence() -> None:
    page = b"<html><head><title>502 Bad Gateway</title></head><body><script>" + b"x" * 5000 + b"</script>"
    answer = answered(answering(response(page, status="502 Bad Gateway")))
    assert answer.evidence["text"].startswith("502 Bad Gateway")
    assert len(answer.evidence["text"]) <= 200


@settings(max_examples=settings().max_examples // 3)
@given(JSON)
def test_evidence_of_any_body_is_small(body: object) -> None:
    kept = Answer(500, body, orjson.dumps(str(body)), None).evidence
    assert len(kept) <= 12
    assert all(len(str(value)) <= 200 for value in kept.values())


@given(st.text(max_size=2000))
def test_redacting_never_fails_cuts_and_leaves_one_line(text: str) -> None:
    clean = redact(text)
    assert len(clean) <= MAX_KEPT_CHARS
    assert "\x00" not in clean
    assert "\n" not in clean


# Retry-After ----------------------------------------------------------------------------------------------------------

DATE = "Date: Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("0", 0.0),
        ("-3", 0.0),
        ("999999", 3600.0),
        ("inf", 3600.0),
        ("nan", 0.0),
        ("Wed, 21 Oct 2026 07:29:30 GMT", 90.0),
        ("Wed, 21 Oct 2026 07:00:00 GMT", 0.0),
        ("Wed, 21 Oct 2027 07:00:00 GMT", 3600.0),
        ("Wed, 21 Oct 2026 07:29:30", None),  # without a zone: cannot be compared
        ("Wed, 99 Foo 2026 07:29:30 GMT", None),
        ("Wed, 21 Oct 99999999999 07:29:30 GMT", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_against_the_servers_own_clock(value: str, seconds: float | None) -> None:
    answer = answered(answering(response(b"{}", f"Retry-After: {value}", DATE, status="429 Too Many Requests")))
    assert answer.retry_after == seconds


def test_a_date_in_retry_after_is_nothing_without_the_servers_date() -> None:
    value = "Retry-After: Wed, 21 Oct 2026 07:29:30 GMT"
    assert answered(answering(response(b"{}", value))).retry_after is None


# Paths ----------------------------------------------------------------------------------------------------------------


@given(JSON, st.lists(st.text() | st.integers(0, 3), max_size=4))
def test_any_path_into_any_body_is_safe(body: object, path: list[str | int]) -> None:
    at(body, *path)


def test_a_path_returns_its_value_and_none_elsewhere() -> None:
    body = {"a": [{"b": 1}]}
    assert at(body, "a", 0, "b") == 1
    assert [at(body, "a", 1, "b"), at(body, 0), at(body, "a", "b"), at(None, "a")] == [None] * 4
