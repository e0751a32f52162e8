"""Personal data is removed from providers' answers."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.core.context import LeadContext
from campaign_pipeline.core.model import Lead, LeasedMessage
from campaign_pipeline.core.personal_data import personal_values, without_values

MESSAGE = LeasedMessage(
    "m-1",
    "run",
    "config",
    "workspace",
    "inbox",
    "lead",
    "+55 (11) 98765-4321",
    "Olá, Ana! Vi a Padaria São João.",
    0,
    (),
)
LEAD = Lead(
    "lead",
    "+55 11 98765-4321",
    LeadContext(
        client_name="Ana Cristina Souza",
        company="Padaria São João",
        custom_fields=(("CPF", "123.456.789-09"), ("Nascimento", "12/03/1980")),
    ),
    "ana.souza@example.com",
)


def hidden(said: str, *texts: str) -> str:
    return str(without_values({"body": said}, personal_values(MESSAGE, LEAD, texts))["body"])


@pytest.mark.parametrize(
    "said",
    [
        "invalid prompt: Ana Cristina Souza (ana.souza@example.com), CPF 12345678909",
        "ana cristina  SOUZA",
        "to 5511987654321@s.whatsapp.net",
        "CPF 123 456 789 09 of +55 11 98765 4321",
        "the company 'padaria são joão', born 12/03/1980",
        "Nome: Ana; E-mail: ANA.SOUZA@EXAMPLE.COM",
        "Vi a Padaria São João",
    ],
)
def test_no_value_of_the_lead_remains_in_any_spelling(said: str) -> None:
    left = hidden(said, MESSAGE.text or "").casefold()
    for value in ("ana", "souza", "cristina", "padaria", "joão", "example.com", "98765", "123", "1980"):
        assert value not in left, (value, left)


def test_the_words_of_the_provider_stay() -> None:
    assert hidden("Content blocked: banana for Ana.") == "Content blocked: banana for ***."


@given(st.recursive(st.text(max_size=8), lambda inner: st.lists(inner, max_size=3), max_leaves=5), st.text(max_size=8))
def test_answers_and_values_of_any_shape_are_taken(said: Any, value: str) -> None:
    assert set(without_values({"body": said}, [value])) == {"body"}


def test_many_long_values_take_no_time() -> None:
    started = time.process_time()
    without_values({"body": "a- " * 200}, ["a-" * 150 + str(number) for number in range(300)])
    assert time.process_time() - started < 1
