"""The variables of an approved template: requested, read, adapted to Meta's limits, and filled in."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.core.context import LeadContext
from campaign_pipeline.core.generation import (
    LONGEST_VARIABLE,
    parse_variables,
    template_prompt,
    template_schema,
)
from campaign_pipeline.core.model import TemplateSettings
from campaign_pipeline.core.text_rules import TextProblem

PURPOSES = ("primeiro nome do lead", "uma frase sobre a empresa")


def test_the_model_is_told_what_each_variable_is_for_and_what_the_template_says() -> None:
    system, user = template_prompt("Venda café.", LeadContext(client_name="Ana"), PURPOSES, "Olá, {{1}}! {{2}}")
    assert "- variavel_1: primeiro nome do lead" in system
    assert "- variavel_2: uma frase sobre a empresa" in system
    assert "O modelo diz:\nOlá, {{1}}! {{2}}" in system
    assert '"variavel_1", "variavel_2"' in system
    assert "[Nome] ou {{empresa}}" in system
    assert "Ana" in user
    assert "Ana" not in system


def test_the_schema_has_a_required_key_for_each_variable() -> None:
    schema = template_schema(PURPOSES)["schema"]
    assert schema["required"] == list(schema["properties"]) == ["variavel_1", "variavel_2"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["variavel_1"]["description"] == PURPOSES[0]


@pytest.mark.parametrize(
    "raw",
    [
        '{"variavel_1": "Ana", "variavel_2": "Vi que a Acme cresceu."}',
        '```json\n{"variavel_2": "Vi que a Acme cresceu.", "variavel_1": "Ana"}\n```',
        'Aqui está:\n{"variavel_1": "Ana", "variavel_2": "Vi que a Acme cresceu.", "extra": 7}',
        '{"variavel_1": " \\"Ana\\"\\n", "variavel_2": "Vi que\\n\\ta    Acme\\u2028cresceu."}',
    ],
)
def test_variables_are_read_in_their_order_as_one_line_each(raw: str) -> None:
    assert parse_variables(raw, 2) == ("Ana", "Vi que a Acme cresceu.")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("Olá, Ana!", "malformed"),
        ('{"variavel_1": "Ana"}', "malformed"),
        ('{"variavel_1": "Ana", "variavel_2": 7}', "malformed"),
        ('["Ana", "Vi que"]', "malformed"),
        ('{"variavel_1": "Ana", "variavel_2": "Vi', "malformed"),
        ('{"variavel_1": "Ana", "variavel_2": " \\n "}', "empty"),
        ('{"variavel_1": "Ana", "variavel_2": ">"}', "empty"),
        ('{"variavel_1": "Ana", "variavel_2": "Assunto: "}', "empty"),
        ('{"variavel_1": "[Nome]", "variavel_2": "x"}', "placeholder"),
        ('{"variavel_1": "{{nome}}", "variavel_2": "x"}', "placeholder"),
    ],
)
def test_forbidden_variables_are_refused(raw: str, code: str) -> None:
    with pytest.raises(TextProblem) as problem:
        parse_variables(raw, 2)
    assert problem.value.code == code


@given(st.text(max_size=3000))
def test_whatever_the_model_writes_a_variable_is_fit_for_meta_or_refused(text: str) -> None:
    try:
        (value,) = parse_variables(json.dumps({"variavel_1": text}), 1)
    except TextProblem:
        return
    assert 0 < len(value) <= LONGEST_VARIABLE
    assert not re.search(r"[\n\r\t\u2028\u2029]| {2,}", value)
    assert value == value.strip()


def test_a_variable_that_is_too_long_is_cut_between_words() -> None:
    (value,) = parse_variables(json.dumps({"variavel_1": "palavra " * 300}), 1)
    assert len(value) <= LONGEST_VARIABLE
    assert value.endswith("palavra…")
    (endless,) = parse_variables(json.dumps({"variavel_1": "á" * 3000}), 1)
    assert len(endless) == LONGEST_VARIABLE


def test_the_lead_reads_the_template_with_its_variables_filled_in() -> None:
    template = TemplateSettings("oi", "pt_BR", PURPOSES, "Olá, {{1}}! {{ 2 }} Até, {{1}}. {{3}}")
    assert template.fill(("Ana", "Vi {{1}}.")) == "Olá, Ana! Vi {{1}}. Até, Ana. {{3}}"
    assert TemplateSettings("oi", "pt_BR", PURPOSES).fill(("Ana", "Vi.")) == "[oi]\nAna\nVi."


@pytest.mark.parametrize("row", [None, {}, {"name": None}, {"name": ""}])
def test_no_name_is_no_template(row: dict[str, object] | None) -> None:
    assert TemplateSettings.from_json(row) is None


def test_a_template_without_a_language_is_in_portuguese() -> None:
    found = TemplateSettings.from_json({"name": "oi", "language": None, "variables": None, "body": None})
    assert found == TemplateSettings("oi", "pt_BR")
