"""Address and key of an inbox; no key of the environment is sent to an address of a row."""

from typing import Any

import pytest

from campaign_pipeline.adapters.connection import endpoint, environment_endpoint, model_url, variables_of
from campaign_pipeline.adapters.environment import Environment, SettingError
from campaign_pipeline.adapters.inbox_connection import InboxConnection

COMMON = {"EVOLUTION_API_URL": "https://evolution.example/api/", "EVOLUTION_API_KEY": "the-key-of-all"}


@pytest.fixture(autouse=True)
def no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like production; nothing connects here."""
    for name in ("CAMPAIGN_ONLY_HOSTS", "CAMPAIGN_ALLOWED_HOSTS", "CAMPAIGN_SANDBOX"):
        monkeypatch.delenv(name, raising=False)


def reached(variables: dict[str, str] = COMMON, **row: Any) -> tuple[str, str]:
    found = endpoint(InboxConnection(**row), variables, "EVOLUTION_API_URL", "EVOLUTION_API_KEY")
    return found.url, found.key


@pytest.mark.parametrize("column", ["provider_config", "settings"])
def test_a_key_of_the_environment_is_not_sent_where_a_row_says(column: str) -> None:
    with pytest.raises(LookupError, match="EVOLUTION_API_KEY is only sent to the address of EVOLUTION_API_URL"):
        reached(**{column: {"base_url": "https://thief.example"}})


def test_a_row_that_names_an_address_is_served_with_its_own_key() -> None:
    assert reached(provider_config={"base_url": "https://own.example/"}, instance_token="own") == (
        "https://own.example",
        "own",
    )


@pytest.mark.parametrize("url", ["https://evolution.example/api", "https://evolution.example/api/"])
def test_a_row_that_names_the_environments_address_may_have_its_key(url: str) -> None:
    assert reached(provider_config={"base_url": url}) == ("https://evolution.example/api", "the-key-of-all")


@pytest.mark.parametrize(
    "url",
    [
        "https://evolution.example/api/../other",
        "https://evolution.example:8443/api",
        "https://evolution.example.thief.example/api",
        "https://EVOLUTION.example/api2",
    ],
)
def test_another_path_or_port_is_another_address(url: str) -> None:
    with pytest.raises(LookupError, match="is only sent to"):
        reached(provider_config={"base_url": url})


@pytest.mark.parametrize(
    "url",
    [
        "https://evolution.example/api#",
        "https://evolution.example/#/x",
        "https://evolution.example?x=",
        "https://user:secret@evolution.example",
        "https://evolution.example\\@thief.example",
        "https://evolution.example/ x",
        "https://evolution.example/\nx",
        "ftp://evolution.example",
        "https://",
        "https://[::1",
        "https://x:99999",
        "//evolution.example",
        "https://évolution.example",
    ],
)
@pytest.mark.parametrize("of_row", [True, False])
def test_an_invalid_base_address_is_refused_without_being_quoted(url: str, of_row: bool) -> None:
    row = {"provider_config": {"base_url": url}} if of_row else {}
    variables = {} if of_row else {"EVOLUTION_API_URL": url}
    with pytest.raises(LookupError, match=r"base URL \(.*(EVOLUTION_API_URL|base_url).*\) must be .*\.$") as refused:
        reached(variables, instance_token="own", **row)
    assert "secret" not in str(refused.value)
    with pytest.raises(SettingError, match="OPENROUTER_BASE_URL"):
        model_url(Environment.read({"OPENROUTER_BASE_URL": url}))


@pytest.mark.parametrize(
    "url", ["http://evolution.example", "https://10.0.0.7", "https://169.254.169.254/latest", "http://evolution:8080"]
)
@pytest.mark.parametrize("of_row", [True, False])
def test_an_address_that_may_not_be_reached_is_refused_unless_it_is_allowed(
    monkeypatch: pytest.MonkeyPatch, url: str, of_row: bool
) -> None:
    row = {"provider_config": {"base_url": url}} if of_row else {}
    variables = {} if of_row else {"EVOLUTION_API_URL": url}
    with pytest.raises(LookupError, match=r"cannot be used: .*CAMPAIGN_ALLOWED_HOSTS.*\.$"):
        reached(variables, instance_token="own", **row)
    monkeypatch.setenv("CAMPAIGN_ALLOWED_HOSTS", "evolution.example, 10.0.0.0/8, 169.254.169.254, evolution:8080")
    assert reached(variables, instance_token="own", **row) == (url, "own")


def test_the_functions_key_only_goes_to_the_environments_project() -> None:
    variables = {"SUPABASE_URL": "https://crm.supabase.co", "SUPABASE_SERVICE_ROLE_KEY": "role"}
    assert environment_endpoint(variables, "SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY").key == "role"
    for missing in variables:
        rest = {name: value for name, value in variables.items() if name != missing}
        with pytest.raises(LookupError, match=f"^{missing} is not set"):
            environment_endpoint(rest, "SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY")


def test_no_key_is_shown() -> None:
    assert "the-key-of-all" not in repr(endpoint(InboxConnection(), COMMON, "EVOLUTION_API_URL", "EVOLUTION_API_KEY"))


def test_an_inbox_may_name_its_own_key_which_goes_where_the_usual_one_goes() -> None:
    row: dict[str, Any] = {"provider_config": {"key_variable": "EVOLUTION_API_KEY_SALES"}}
    variables = variables_of(InboxConnection(**row), "evolution", {**COMMON, "EVOLUTION_API_KEY_SALES": "of-sales"})
    assert reached(dict(variables), **row) == ("https://evolution.example/api", "of-sales")
    with pytest.raises(LookupError, match="EVOLUTION_API_KEY_SALES is not set"):
        variables_of(InboxConnection(**row), "evolution", COMMON)


@pytest.mark.parametrize("name", ["CLOUD_API_TOKEN", "SUPABASE_SERVICE_ROLE_KEY"])
def test_an_inbox_cannot_name_the_secret_of_another_system(name: str) -> None:
    with pytest.raises(LookupError, match="must begin with EVOLUTION_"):
        variables_of(InboxConnection(provider_config={"key_variable": name}), "evolution", {name: "secret"})
