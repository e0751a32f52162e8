"""Real models' answers: what is sent, which rule refuses what, and that no text takes long."""

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.core import address, numbers
from campaign_pipeline.core.contacts import KnownContacts
from campaign_pipeline.core.context import LeadContext
from campaign_pipeline.core.generation import (
    check_subject,
    first_contact_prompt,
    parse_variables,
    read_email,
    read_message,
    split_prompt,
)
from campaign_pipeline.core.splitting import accept_proposal, cluster_starts, parse_proposal, split_text
from campaign_pipeline.core.text_checks import NOTHING_KNOWN, Known
from campaign_pipeline.core.text_cleaning import Markup
from campaign_pipeline.core.text_rules import LONGEST_ANSWER, TextProblem
from campaign_pipeline.core.window import SendingWindow

CASES = Path(__file__).parent.parent / "cases"
ANSWERS = json.loads((CASES / "model_answers.json").read_text(encoding="utf-8"))
CLEAN = json.loads((CASES / "clean_texts.json").read_text(encoding="utf-8"))
WELL = "Olá, Ana! Vi que a Padaria Aurora abriu uma segunda loja. Podemos conversar?"


def known_of(case: Mapping[str, Any]) -> Known:
    lead = case.get("lead") or {}
    fields = [field["value"] for field in lead.get("custom_fields", [])]
    named = [lead.get(name, "") for name in ("client_name", "company", "phone", "email")]
    return Known.of([case.get("instructions", "")], [*named, *lead.get("tags", []), *fields])


def outcome(raw: str, known: Known = NOTHING_KNOWN, markup: Markup = Markup.WHATSAPP) -> str:
    """Return the text that is sent, or the rule that refuses the answer."""
    try:
        return read_message(raw, 4000, known, markup).text
    except TextProblem as problem:
        return problem.code


@pytest.mark.parametrize("case", ANSWERS, ids=[case["name"] for case in ANSWERS])
def test_an_answer_becomes_the_message_alone_or_is_refused_by_its_rule(case: Mapping[str, Any]) -> None:
    got = outcome(case["completion"], known_of(case))
    assert got in case.get("refused", [case.get("text")])


@pytest.mark.parametrize("text", CLEAN["texts"])
def test_a_good_text_is_sent_as_it_was_written(text: str) -> None:
    assert outcome(text, known_of(CLEAN)) == text
    assert read_message(text, 4000, known_of(CLEAN)).changed == ()


@pytest.mark.parametrize("case", [case for case in ANSWERS if "text" in case], ids=lambda case: case["name"])
def test_a_cleaned_text_is_not_changed_again(case: Mapping[str, Any]) -> None:
    text = outcome(case["completion"], known_of(case))
    again = read_message(text, 4000, known_of(case))
    assert (again.text, again.changed) == (text, ())


def kept_case(name: str) -> Mapping[str, Any]:
    (path,) = CASES.glob(f"{name}-*.json")
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", ["10", "11", "12", "14", "16", "17"])
def test_reasoning_of_the_kept_cases_is_cut_off(name: str) -> None:
    assert outcome(kept_case(name)["input"]["completion"]) == WELL


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("20", f"*{WELL}*"),
        ("22", "Olá, *Ana*! Vi que a *Padaria Aurora* abriu uma segunda loja."),
        ("24", "*Proposta*\nOlá, Ana! Veja nosso site: https://exemplo.com.br."),
        ("25", 'Olá, *Ana*!\n\nTudo bem? "Oi"'),
        ("26", WELL),
        ("28", "refusal"),
        ("30", "placeholder"),
        ("31", "options"),
    ],
)
def test_the_kept_cases_are_cleaned_or_refused(name: str, expected: str) -> None:
    assert outcome(kept_case(name)["input"]["completion"]) == expected


def test_each_change_reports_its_rule() -> None:
    changes = {
        "<think>x</think>": "reasoning_cut",
        "```\n%s\n```": "unwrapped",
        '{"mensagem": "%s"}': "json_read",
        "<p>%s</p>": "html_converted",
        "Segue a mensagem:\n\n%s": "preamble_cut",
        "%s\n\nQuer que eu ajuste o tom?": "closing_cut",
        "**%s**": "markdown_converted",
    }
    for shape, rule in changes.items():
        raw = shape % WELL if "%s" in shape else shape + WELL
        assert read_message(raw, 1000).changed == (rule,), raw


def test_no_sentence_of_a_refusal_quotes_the_text() -> None:
    for case in ANSWERS:
        if "refused" in case:
            with pytest.raises(TextProblem, match=r"^(?!.*(Ana|Aurora)).*$"):
                read_message(case["completion"], 4000, known_of(case))


def test_plain_text_has_no_markup_of_whatsapp() -> None:
    raw = "## Proposta\n\nOlá, **Ana**! Veja *isto* e <b>isto</b>."
    assert outcome(raw, markup=Markup.PLAIN) == "Proposta\n\nOlá, Ana! Veja isto e isto."


# Contacts ---------------------------------------------------------------------------------------------------------


# Without 99999-9999, which stands for a number that was not filled in.
mobiles = st.builds("{}{}9{:08d}".format, st.integers(1, 9), st.integers(1, 9), st.integers(10_000_000, 99_999_998))


@given(mobiles, st.sampled_from(range(6)), st.sampled_from(range(6)))
def test_a_number_is_known_in_every_spelling(digits: str, given_as: int, written_as: int) -> None:
    area, first, last = digits[:2], digits[2:7], digits[7:]
    spellings = [
        digits,
        f"+55{digits}",
        f"({area}) {first}-{last}",
        f"+55 {area} {first}-{last}",
        f"{area} {first} {last}",
        f"55 {area} {first}.{last}",
    ]
    known = Known.of([], [spellings[given_as]])
    text = f"Olá, Ana! Posso ligar no {spellings[written_as]} amanhã?"
    assert outcome(text, known) == text


@given(
    mobiles,
    mobiles,
    st.sampled_from(["{}", "+55{}", "55{}"]),
)
def test_another_number_than_the_known_one_is_refused(digits: str, other: str, shape: str) -> None:
    if digits[-8:] != other[-8:]:
        known = Known.of([f"Ligue {digits}"], [])
        assert outcome(f"Olá, Ana! Ligue {shape.format(other)} hoje.", known) == "unknown_number"


@given(st.integers(0, 10**9), st.sampled_from(["R$ {:,.2f}", "{:,} clientes", "R${}", "{} reais", "{:,.0f} pães"]))
def test_prices_and_quantities_are_no_numbers_to_call(value: int, shape: str) -> None:
    written = shape.format(value).translate(str.maketrans(",.", ".,"))
    text = f"Olá, Ana! São {written} por ano para a padaria."
    assert outcome(text, Known.of([], [])) == text


@given(st.dates(), st.sampled_from(["%d/%m/%Y", "%Y-%m-%d", "%d/%m/%y", "%d.%m.%Y", "%d-%m-%Y"]), st.times())
def test_dates_and_times_are_no_numbers_to_call(day: Any, shape: str, hour: Any) -> None:
    text = f"Olá, Ana! Que tal {day.strftime(shape)} às {hour:%H:%M}, ou às {hour:%Hh%M}?"
    assert outcome(text, Known.of([], [])) == text


# E-mail -----------------------------------------------------------------------------------------------------------

BODY = "Olá, Ana! Vi a sua padaria."


@pytest.mark.parametrize(
    "raw",
    [
        *kept_case("32")["input"]["completions"],
        '{"assunto": "Uma ideia", "mensagem": "Olá, Ana! Vi a sua padaria."}',
        '{"título": "Uma ideia", "conteúdo": "Olá, Ana! Vi a sua padaria."}',
        '{"email": {"subject": "Uma ideia", "body": "Olá, Ana! Vi a sua padaria."}}',
        '{"assunto_do_email": "Uma ideia", "corpo_do_email": "Olá, Ana! Vi a sua padaria."}',
        '{"subject": "Uma ideia", "body": ["Olá, Ana! Vi a sua padaria."]}',
        '{"subject": "Uma ideia", "body": "<p>Olá, <b>Ana</b>! Vi a sua padaria.</p>"}',
        '{"subject": "**Uma ideia**", "body": "Olá, **Ana**! Vi a sua padaria."}',
        '{"subject": "Assunto: Uma ideia", "body": "Olá, Ana! Vi a sua padaria.",}',
        "{“subject”: “Uma ideia”, “body”: “Olá, Ana! Vi a sua padaria.”}",
        '<think>e-mail curto</think>\n```json\n{"subject": "Uma ideia", "body": "Olá, Ana! Vi a sua padaria."}\n```',
        '{\\"subject\\": \\"Uma ideia\\", \\"body\\": \\"Olá, Ana! Vi a sua padaria.\\"}',
        '"{\\"subject\\": \\"Uma ideia\\", \\"body\\": \\"Olá, Ana! Vi a sua padaria.\\"}"',
        "Assunto: Uma ideia\n\nOlá, Ana! Vi a sua padaria.",
        "**Asunto:** Uma ideia\n\nOlá, Ana! Vi a sua padaria.",
        "<assunto>Uma ideia</assunto>\n<corpo>Olá, Ana! Vi a sua padaria.</corpo>",
        '[{"subject": "Uma ideia", "body": "Olá, Ana! Vi a sua padaria."}]',
        '{"subject": "Uma ideia", "body": "{\\"subject\\": \\"x\\", \\"body\\": \\"Olá, Ana! Vi a sua padaria.\\"}"}',
    ],
)
def test_an_email_is_read_under_any_usual_key_quoting_or_fence(raw: str) -> None:
    message = read_email(raw, 1000)
    assert message.text == BODY
    assert message.subject in {"Uma ideia", "x"}


@pytest.mark.parametrize(
    "raw",
    [
        kept_case("33")["input"]["completion"][:-6],
        '{"assunto": "Uma ideia", "corpo": "Olá, Ana! Vi a sua',
        "{'subject': 'Uma ideia'",
        '{"Subject": "Uma ideia"}',
        '{"tema": "Uma ideia", "tom": "leve"}',
    ],
)
def test_raw_json_is_never_the_body_of_an_email(raw: str) -> None:
    with pytest.raises(TextProblem) as caught:
        read_email(raw, 1000)
    assert caught.value.code == "malformed"


def test_an_email_that_was_escaped_twice_is_read() -> None:
    with pytest.raises(TextProblem) as caught:  # its body has nine characters
        read_email(kept_case("33")["input"]["completion"], 1000)
    assert caught.value.code == "too_short"


@pytest.mark.parametrize(
    ("subject", "rule"),
    [("Olá, (seu nome)", "placeholder"), ("Oi, None", "empty_value"), ("Veja www.inventado.com.br", "unknown_link")],
)
def test_a_subject_is_held_to_the_same_rules(subject: str, rule: str) -> None:
    with pytest.raises(TextProblem) as caught:
        read_email(json.dumps({"subject": subject, "body": BODY}), 1000, Known.of([], ["Ana"]))
    assert caught.value.code == rule


@pytest.mark.parametrize(("value", "rule"), [("(seu nome)", "placeholder"), ("null", "empty_value")])
def test_a_variable_of_a_template_is_held_to_the_same_rules(value: str, rule: str) -> None:
    with pytest.raises(TextProblem) as caught:
        parse_variables(json.dumps({"variavel_1": value}), 1)
    assert caught.value.code == rule


def test_a_variable_of_a_template_is_cleaned_of_markup() -> None:
    assert parse_variables('{"variavel_1": "**Ana**"}', 1) == ("Ana",)


# Run time ---------------------------------------------------------------------------------------------------------

KNOWN = Known.of(["Ligue (11) 3456-7890 ou veja https://exemplo.com.br"], ["Ana", "Padaria Aurora"])


def _window(text: str) -> None:
    SendingWindow.parse(text, text, text, text)


FUNCTIONS: Mapping[str, Callable[[str], object]] = {
    "read_message": lambda text: read_message(text, 10**6, KNOWN),
    "read_message as plain text": lambda text: read_message(text, 10**6, KNOWN, Markup.PLAIN),
    "read_email": lambda text: read_email(text, 10**6, KNOWN),
    "check_subject": lambda text: check_subject(text, "Olá, Ana!", KNOWN),
    "parse_variables": lambda text: parse_variables(json.dumps({"variavel_1": text}), 1, KNOWN),
    "contacts": lambda text: KnownContacts.of([text]),
    "split_text": lambda text: split_text(text, 5, 10**6),
    "split_text into small parts": lambda text: split_text(text, 5, len(text) // 4),
    "parse_proposal": parse_proposal,
    "accept_proposal": lambda text: accept_proposal(text, [text], 5, 10**6),
    "split_prompt": lambda text: split_prompt(text, 3),
    "cluster_starts": cluster_starts,
    "lead context": lambda text: LeadContext.from_row(
        {"client_name": text, "company": text, "tags": [text], "custom_fields": [{"name": text, "value": text}]}
    ).render(),
    "prompt": lambda text: first_contact_prompt(text, LeadContext(client_name=text)),
    "normalize_phone": address.normalize_phone,
    "normalize_email": address.normalize_email,
    "masked": address.masked,
    "phones_among": lambda text: numbers.phones_among([{"name": text, "value": text}]),
    "window": _window,
}
UNITS = json.loads((CASES / "repeated_units.json").read_text(encoding="utf-8"))


LINEAR_BUT_DEAR = {"split_text into small parts", "split_text", "read_email", "parse_variables", "check_subject"}
"""Functions that are tried with a fifth of the units: what they have in common with `read_message` is tried there."""


def seconds_for(function: Callable[[str], object], text: str) -> float:
    started = process_time()
    with contextlib.suppress(ValueError):  # refused: that is an answer too
        function(text)
    return process_time() - started


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_time_of_a_text_function_grows_with_its_text_and_no_faster(name: str) -> None:
    """Uses processor time, so that a busy machine does not matter; four times the text takes four times the time."""
    slow = []
    units = UNITS[::5] if name in LINEAR_BUT_DEAR else UNITS
    for unit in units:
        for shape in ("{}", "Olá, Ana! {} fim"):
            small, large = (shape.replace("{}", unit * (size // len(unit))) for size in (1_500, 6_000))
            if (taken := seconds_for(FUNCTIONS[name], large)) > 0.02:
                before = min(seconds_for(FUNCTIONS[name], small) for _ in range(2))
                if min(taken, seconds_for(FUNCTIONS[name], large)) > 8 * before:
                    slow.append((unit, shape, taken))
    assert slow == []


def test_a_hyphenated_text_of_twenty_thousand_characters_is_checked_at_once() -> None:
    assert seconds_for(FUNCTIONS["read_message"], "a-" * 10_000) < 1.0


def test_an_answer_that_is_too_long_is_not_read() -> None:
    assert outcome("a " * LONGEST_ANSWER) == "too_long"


@given(
    st.lists(
        st.sampled_from(
            [*UNITS, "<think>", "</think>", "<b>", "</b>", "**", "Mensagem:", "---\n", "\n", "Ana", " ", "`"]
        ),
        max_size=25,
    ),
    st.sampled_from(Markup),
)
def test_a_text_made_of_traps_settles_or_is_refused(pieces: list[str], markup: Markup) -> None:
    text = outcome("".join(pieces), KNOWN, markup)
    assert outcome(text, KNOWN, markup) in {text, "too_short"}
