from datetime import date, timedelta
from pathlib import Path

import pytest

from campaign_pipeline.adapters.database import named_url, queue_url
from campaign_pipeline.adapters.environment import BusinessDays, DeliverySettings, Environment, SettingError
from campaign_pipeline.adapters.first_day import keep_first_day
from campaign_pipeline.adapters.schema import DatabaseUnusable

SECRET = "hunter2"


# Delivery -------------------------------------------------------------------------------------------------------------


def test_unset_and_blank_variables_keep_their_defaults() -> None:
    blank = {"CAMPAIGN_LEASE_SECONDS": " ", "CAMPAIGN_RETRY_DELAYS_MINUTES": ""}
    assert DeliverySettings.from_environment({}) == DeliverySettings.from_environment(blank) == DeliverySettings()


def test_every_setting_of_delivery_can_be_set() -> None:
    settings = DeliverySettings.from_environment(
        {
            "CAMPAIGN_LEASE_SECONDS": "30",
            "CAMPAIGN_MAX_AGE_MINUTES": "90",
            "CAMPAIGN_RETRY_DELAYS_MINUTES": "1, 2.5,0",
            "CAMPAIGN_MAX_ATTEMPTS": "5",
            "CAMPAIGN_LOOK_UP_PATIENCE_SECONDS": "0",
            "CAMPAIGN_SEND_TIMEOUT_SECONDS": "10.5",
            "CAMPAIGN_GENERATION_TIMEOUT_SECONDS": "20",
            "CAMPAIGN_MAX_INLINE_WAIT_SECONDS": "3",
        }
    )
    assert settings == DeliverySettings(30.0, 90.0, (1.0, 2.5, 0.0), 5, 0.0, 10.5, 20.0, 3.0)
    assert settings.max_age == timedelta(minutes=90)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CAMPAIGN_LEASE_SECONDS", "two minutes"),
        ("CAMPAIGN_LEASE_SECONDS", "0"),
        ("CAMPAIGN_LEASE_SECONDS", "nan"),
        ("CAMPAIGN_LEASE_SECONDS", "inf"),
        ("CAMPAIGN_MAX_AGE_MINUTES", "-5"),
        ("CAMPAIGN_MAX_ATTEMPTS", "0"),
        ("CAMPAIGN_MAX_ATTEMPTS", "inf"),
        ("CAMPAIGN_RETRY_DELAYS_MINUTES", "5,fifteen"),
        ("CAMPAIGN_RETRY_DELAYS_MINUTES", "5,,15"),
        ("CAMPAIGN_RETRY_DELAYS_MINUTES", "5,-1"),
        ("CAMPAIGN_RETRY_DELAYS_MINUTES", "nan"),
    ],
)
def test_a_value_that_cannot_be_is_named_in_one_sentence(name: str, value: str) -> None:
    with pytest.raises(SettingError) as caught:
        DeliverySettings.from_environment({name: value})
    text = str(caught.value)
    assert text.startswith(f"{name} is ")
    assert text.endswith(".")
    assert "\n" not in text


# Business days --------------------------------------------------------------------------------------------------------


def test_business_days_are_those_of_sao_paulo_unless_another_zone_is_named() -> None:
    nowhere = {"CAMPAIGN_HOME": "/nowhere"}
    assert BusinessDays.from_environment({**nowhere, "CAMPAIGN_TIMEZONE": " "}) == BusinessDays()
    named = {"CAMPAIGN_TIMEZONE": "Europe/Lisbon", "CAMPAIGN_FIRST_DAY": "2026-03-01"}
    assert BusinessDays.from_environment(named) == BusinessDays("Europe/Lisbon", date(2026, 3, 1))


def test_days_begin_with_the_first_that_has_data_which_only_moves_back(tmp_path: Path) -> None:
    variables = {"CAMPAIGN_HOME": str(tmp_path)}
    for found, kept in ((date(2026, 5, 2), date(2026, 5, 2)), (date(2026, 6, 1), date(2026, 5, 2)),
                        (date(2026, 4, 30), date(2026, 4, 30))):  # fmt: skip
        keep_first_day(tmp_path, found)
        assert BusinessDays.from_environment(variables).first_day == kept
    (tmp_path / "first_day").write_text("half a da")
    assert BusinessDays.from_environment(variables).first_day == BusinessDays.first_day


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CAMPAIGN_TIMEZONE", "Mars/Olympus"),
        ("CAMPAIGN_TIMEZONE", "America"),  # a folder of the zone database
        ("CAMPAIGN_TIMEZONE", "/etc/localtime"),
        ("CAMPAIGN_FIRST_DAY", "yesterday"),
        ("CAMPAIGN_FIRST_DAY", "2026-02-30"),
    ],
)
def test_a_day_or_zone_that_cannot_be_is_named_in_one_sentence(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=rf"^{name} is '{value}', but must be a .* such as \S+\.$"):
        BusinessDays.from_environment({name: value})


# Outside systems ------------------------------------------------------------------------------------------------------


def test_the_environment_is_read_with_blanks_as_unset(tmp_path: Path) -> None:
    environment = Environment.read(
        {
            "CAMPAIGN_HOME": str(tmp_path),
            "CAMPAIGN_DATABASE_URL": "  ",
            "OPENROUTER_API_KEY": " sk ",
            "OPENROUTER_BASE_URL": "http://127.0.0.1:1/v1/",
            "EVOLUTION_API_KEY": "e",
            "UAZAPI_API_URL": "u",
            "PATH": "/bin",
        }
    )
    assert environment.database_url is None
    assert (environment.openrouter_api_key, environment.openrouter_base_url) == ("sk", "http://127.0.0.1:1/v1")
    assert environment.providers == {"EVOLUTION_API_KEY": "e", "UAZAPI_API_URL": "u"}
    assert environment.outputs_path == str(tmp_path / "outputs")


def test_no_key_is_shown() -> None:
    environment = Environment.read(
        {
            "CAMPAIGN_DATABASE_URL": f"postgresql://u:{SECRET}@h/db",
            "OPENROUTER_API_KEY": SECRET,
            "EVOLUTION_API_KEY": SECRET,
        }
    )
    assert SECRET not in repr(environment)
    assert SECRET not in str(environment)


# The database's URL ---------------------------------------------------------------------------------------------------

GOOD_URLS = [
    "postgresql://user:p%40ss%2Fword@host:5432/db?sslmode=require",
    "postgres://user@host/db",
    "postgresql:///db?host=/var/run/postgresql",
    "postgresql://postgres@/campaign?host=%2Ftmp%2Fx",
    "postgresql://one:5432,two:5433/db?target_session_attrs=read-write",
    "postgresql://user:p:w@[::1]:6543/postgres?options=-c%20statement_timeout%3D0",
]
BAD_URLS = [
    f"mysql://user:{SECRET}@host/db",
    f"host=db password={SECRET}",
    f"user:{SECRET}@host/db",
    f"postgresql://user:p@{SECRET}@host/db",
    f"postgresql://user:p/{SECRET}@host/db",
    f"postgresql://user:1/{SECRET}@host/db",
    f"postgresql://user:p?{SECRET}@host/db",
    f"postgresql://user:1?{SECRET}@host/db",
    f"postgresql://user:p#{SECRET}@host/db",
    f"postgresql://user:p%zz{SECRET}@host/db",
    f"postgresql://user:p%00{SECRET}@host/db",
    f"postgresql://user:p {SECRET}@host/db",
    f"postgresql://host:{SECRET}/db",
    f"postgresql://user:p@host/db?password={SECRET}&nonsense=1",
]


@pytest.mark.parametrize("url", GOOD_URLS)
def test_a_url_that_can_be_read_in_one_way_is_taken_as_it_is(url: str) -> None:
    assert named_url(Environment.read({"CAMPAIGN_DATABASE_URL": url})) == url


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_cannot_be_read_is_refused_in_one_sentence_without_its_password(url: str) -> None:
    with pytest.raises(SettingError) as caught:
        named_url(Environment.read({"CAMPAIGN_DATABASE_URL": url}))
    text = str(caught.value)
    assert text.startswith("CAMPAIGN_DATABASE_URL ")
    assert text.endswith(".")
    assert SECRET not in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{SECRET}@127.0.0.1:1/db",
        f"postgresql://user:{SECRET}@no-such-host.invalid/db",
        f"postgresql://user:{SECRET}@127.0.0.1:1,127.0.0.1:2/db",
    ],
)
def test_a_database_that_does_not_answer_is_one_sentence_without_its_password(url: str) -> None:
    with pytest.raises(DatabaseUnusable) as caught:
        queue_url(Environment.read({"CAMPAIGN_DATABASE_URL": url}))
    text = str(caught.value)
    assert text.startswith("The database db at ")
    assert text.endswith(".")
    assert SECRET not in text
    assert "\n" not in text
    assert caught.value.__cause__ is None  # nor in a traceback


def test_openrouter_caches_answers_only_for_the_configured_time() -> None:
    assert Environment.read({}).openrouter_cache_seconds == 0
    assert Environment.read({"OPENROUTER_CACHE_SECONDS": "240"}).openrouter_cache_seconds == 240


@pytest.mark.parametrize("value", ["-1", "90000", "1.5", "soon", "nan"])
def test_an_impossible_time_for_keeping_answers_is_refused_by_name(value: str) -> None:
    with pytest.raises(SettingError, match="OPENROUTER_CACHE_SECONDS"):
        Environment.read({"OPENROUTER_CACHE_SECONDS": value})


def test_the_variables_of_the_mail_server_reach_its_adapter_and_no_text() -> None:
    environment = Environment.read({"SMTP_URL": f"smtp://loja:{SECRET}@mail.example.com", "SMTPX": "no"})
    assert dict(environment.providers) == {"SMTP_URL": f"smtp://loja:{SECRET}@mail.example.com"}
    assert SECRET not in repr(environment)


@pytest.mark.parametrize(
    ("url", "required"),
    [
        ("postgresql://u:p@db.example.com:6543/crm", "?sslmode=require"),
        ("postgresql://u:p@db.example.com/crm?application_name=x", "&sslmode=require"),
        ("postgresql://u:p@8.8.8.8/crm", "?sslmode=require"),
        ("postgresql://u:p@db.example.com/crm?sslmode=disable", ""),
        ("postgresql://u:p@localhost/crm", ""),
        ("postgresql://u:p@127.0.0.1:5432/crm", ""),
        ("postgresql://u:p@10.0.0.5/crm", ""),
        ("postgresql://u:p@postgres/crm", ""),
        ("postgresql:///crm?host=/var/run/postgresql", ""),
    ],
)
def test_a_public_host_is_only_reached_over_tls_unless_the_url_says_otherwise(
    environment: pytest.MonkeyPatch, url: str, required: str
) -> None:
    environment.delenv("PGSSLMODE", raising=False)
    assert named_url(Environment.read({"CAMPAIGN_DATABASE_URL": url})) == url + required
