"""Connecting to the database through a pooler, with TLS, and from afar."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from benchmarks.wire import DistantProxy
from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.adapters.queue_connection import connect, connect_rows, is_pooled
from campaign_pipeline.adapters.schema import DatabaseUnusable
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.pooler import folder_for_all, refuses_session_state, run_pooler


def test_a_pooler_is_known_by_its_process_ids(database_url: str, pooled_url: str) -> None:
    with connect(database_url) as direct, connect(pooled_url) as pooled:
        assert [is_pooled(direct), is_pooled(pooled)] == [False, True]
    assert refuses_session_state(pooled_url)  # else the tests through it prove nothing


def test_a_tick_leaves_no_setting_behind_on_the_connections_that_others_share(world: World, pooled_url: str) -> None:
    with Operations(pooled_url) as operations:
        assert operations.look().is_due is False
        assert operations.now() is not None
    with connect(pooled_url, autocommit=True) as other:
        found = {other.execute("SELECT current_setting('statement_timeout')").fetchone() for _ in range(10)}
    assert found == {("0",)}


@pytest.mark.parametrize("zone", ["UTC", "America/Sao_Paulo", "Asia/Kolkata", "Africa/Monrovia"])
def test_times_of_all_years_arrive_in_utc_from_sessions_of_any_zone(database_url: str, zone: str) -> None:
    with connect_rows(database_url) as connection:
        connection.execute("SELECT set_config('timezone', %s, false)", [zone])
        found = connection.execute(
            "SELECT t.at, (EXTRACT(epoch FROM t.at) * 1000000)::bigint AS microseconds FROM (SELECT"
            # Until 1972, offsets have seconds.
            " timestamptz '0002-01-01 00:00:00.5Z' + g * interval '1000 days 01:02:03.004005' AS at"
            " FROM generate_series(0, 3600) AS g) t"
        ).fetchall()
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert [row["at"] for row in found] == [epoch + timedelta(microseconds=row["microseconds"]) for row in found]
    assert {row["at"].tzinfo for row in found} == {UTC}


@pytest.mark.parametrize("written", ["infinity", "0044-03-15 BC", "10000-01-01"])
def test_a_time_that_python_cannot_hold_is_refused(database_url: str, written: str) -> None:
    with connect_rows(database_url) as connection, pytest.raises(psycopg.DataError):
        connection.execute("SELECT %s::timestamptz", [written]).fetchone()


# TLS ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificates:
    """The server's own certificate, and a foreign one."""

    key: Path
    certificate: Path
    other: Path


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    with folder_for_all() as folder:
        yield folder


@pytest.fixture(scope="module")
def certificates(open_folder: Path) -> Certificates:
    folder = open_folder
    for name in ("server", "other"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", "/CN=database.test", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"],
            check=True, capture_output=True,
        )  # fmt: skip
    (folder / "server.key").chmod(0o644)  # read by the pooler's own user; it is of no account
    return Certificates(folder / "server.key", folder / "server.crt", folder / "other.crt")


@pytest.fixture(scope="module")
def tls_port(server: EmbeddedServer, certificates: Certificates) -> Iterator[int]:
    """A port that accepts only TLS."""
    more = (
        "client_tls_sslmode = require\n"
        f"client_tls_key_file = {certificates.key}\nclient_tls_cert_file = {certificates.certificate}\n"
    )
    with folder_for_all() as folder, run_pooler(server.url("postgres"), folder, more=more) as pooler:
        yield pooler.port


@pytest.mark.parametrize("mode", ["require", "verify-ca&sslrootcert={own}", "verify-full&sslrootcert={own}"])
def test_a_connection_is_encrypted_as_the_url_says(
    tls_port: int, database_url: str, certificates: Certificates, mode: str
) -> None:
    name = database_url.rpartition("/")[2].partition("?")[0]
    url = f"postgresql://postgres@127.0.0.1:{tls_port}/{name}?sslmode={mode.format(own=certificates.certificate)}"
    schema.check(url)
    with connect(url) as connection:
        assert connection.pgconn.ssl_in_use


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("disable", "SSL required"),
        ("verify-full&sslrootcert={other}", "certificate verify failed"),
        ("verify-ca&sslrootcert={other}", "certificate verify failed"),
        ("verify-full&sslrootcert=/nowhere/ca.crt", "root certificate file"),
    ],
)
def test_an_unsupported_url_option_is_reported_before_connecting(
    tls_port: int, certificates: Certificates, mode: str, reason: str
) -> None:
    url = f"postgresql://postgres@127.0.0.1:{tls_port}/postgres?sslmode={mode.format(other=certificates.other)}"
    with pytest.raises(DatabaseUnusable, match=reason):
        schema.check(url)


def test_a_server_without_tls_is_refused_where_the_url_requires_it(pooled_url: str) -> None:
    with pytest.raises(DatabaseUnusable, match="server does not support SSL, but SSL was required"):
        schema.check(f"{pooled_url}?sslmode=require")


# Distance -------------------------------------------------------------------------------------------------------------


def test_a_schedule_ticks_on_a_database_that_is_far_away(world: World, tmp_path: Path) -> None:
    with DistantProxy(world.url, tmp_path / "far", 0.08) as far:
        with psycopg.connect(far.url, autocommit=True) as connection:
            started = _server_clock(connection)
            assert _server_clock(connection) - started >= 0.08  # else the distance is none
        with Operations(far.url) as operations:
            assert operations.look().is_due is False


def _server_clock(connection: "psycopg.Connection[tuple[float]]") -> float:
    row = connection.execute("SELECT EXTRACT(epoch FROM clock_timestamp())::float8").fetchone()
    assert row is not None
    return row[0]
