import json
from decimal import Decimal
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.core import texts
from campaign_pipeline.core.context import LeadContext, in_order

FULL_ROW = {
    "client_name": "Ana Souza",
    "company": "Padaria Aurora",
    "deal_value": "1234.5",
    "priority": "high",
    "tags": ["quente", "feira 2024"],
    "whatsapp_name": "Aninha 🥖",
    "funnel": "Vendas",
    "column": "Novos",
    "custom_fields": [
        {"name": "Forno", "value": "a gás"},
        {"name": "Capital Social", "value": "R$ 10.000,00"},
        {"name": "Categoria", "value": "Padaria"},
        {"name": "Funcionários", "value": 12},
    ],
}

LARGEST_RENDER = 8 * 230 + 13 * 330 + 10 * 265  # characters: every line at its limit, with its label

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.decimals() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
field_lists = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from(texts.BUSINESS_FIELDS) | st.text() | json_values}).flatmap(
        lambda named: json_values.map(lambda value: {**named, "value": value})
    ),
    max_size=20,
)
rows = st.fixed_dictionaries(
    {}, optional={key: json_values for key in FULL_ROW if key != "custom_fields"} | {"custom_fields": field_lists}
)


def rendered(**row: Any) -> str:
    return LeadContext.from_row(row).render()


def other(value: object, name: str = "Campo") -> str:
    return rendered(custom_fields=[{"name": name, "value": value}])


@pytest.mark.parametrize("name", ["Não informado", "SEM NOME", "desconhecido", "N/D", "-", "Unknown"])
def test_placeholders_for_an_empty_value_are_not_read_as_a_name(name: str) -> None:
    assert rendered(client_name=name, company="Padaria Aurora") == "Empresa: Padaria Aurora"


def test_all_fields_are_labelled_in_portuguese_business_fields_before_others() -> None:
    assert LeadContext.from_row(FULL_ROW).render().splitlines() == [
        "Nome: Ana Souza",
        "Empresa: Padaria Aurora",
        "Valor do negócio: R$ 1.234,50",
        "Prioridade: alta",
        "Tags: quente, feira 2024",
        "Nome no WhatsApp: Aninha 🥖",
        "Funil: Vendas",
        "Etapa: Novos",
        "Categoria: Padaria",
        "Capital Social: R$ 10.000,00",
        "Forno: a gás",
        "Funcionários: 12",
    ]


def test_business_fields_keep_their_order_whatever_the_crm_gives() -> None:
    fields = [{"name": name, "value": f"valor {n}"} for n, name in enumerate(texts.BUSINESS_FIELDS)]
    assert rendered(custom_fields=fields[::-1]).splitlines() == [
        f"{field['name']}: {field['value']}" for field in fields
    ]
    assert [field["name"] for field in fields][:3] == ["Categoria", "CNAE Principal", "Porte da Empresa"]
    assert len(fields) == 13


def test_business_fields_are_known_without_accents_and_case() -> None:
    assert rendered(custom_fields=[{"name": " RAZAO  social", "value": "Aurora Ltda."}]) == "Razão Social: Aurora Ltda."


def test_the_first_filled_of_two_fields_with_one_name_is_used() -> None:
    fields = [{"name": "Rating", "value": value} for value in ("", None, "4,8", "1,0")]
    assert rendered(custom_fields=fields) == "Rating: 4,8"


def test_an_empty_row_renders_to_nothing() -> None:
    assert LeadContext.from_row({}).render() == ""
    assert rendered(client_name=" \n", company=None, tags=[], custom_fields=None, deal_value=0) == ""


def test_no_more_than_ten_other_fields_are_shown() -> None:
    fields = [{"name": f"Campo {n}", "value": n} for n in range(30)]
    assert rendered(custom_fields=fields).splitlines() == [f"Campo {n}: {n}" for n in range(10)]


def test_other_fields_over_two_hundred_characters_are_left_out() -> None:
    assert other("a" * 200) == "Campo: " + "a" * 200
    assert other("a" * 201) == ""


def test_long_business_fields_are_cut() -> None:
    assert other("a" * 301, "Endereço") == "Endereço: " + "a" * 299 + "…"
    assert other("a" * 300, "Endereço") == "Endereço: " + "a" * 300


@pytest.mark.parametrize(
    "value", ['{"a": 1}', " [1, 2]", '[{"a": 1', "{}", "[]", '["x"]', '{"a": {"b": [', {"a": 1}, ["x"], "[1.5]"]
)
def test_json_in_other_fields_is_left_out(value: object) -> None:
    assert other(value) == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [("[Matriz] Campinas", "(Matriz) Campinas"), ("{novo}", "(novo)"), ("10", "10")],
)
def test_a_text_that_only_begins_like_json_is_shown_with_round_brackets(value: str, shown: str) -> None:
    assert other(value) == f"Campo: {shown}"


@pytest.mark.parametrize(("value", "shown"), [(True, "Sim"), (False, "Não"), (12, "12"), (4.5, "4.5"), (0, "0")])
def test_plain_values_of_other_types_are_shown(value: object, shown: str) -> None:
    assert other(value) == f"Campo: {shown}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234.56, "R$ 1.234,56"),
        ("1234567.895", "R$ 1.234.567,90"),
        (Decimal("0.5"), "R$ 0,50"),
        (10, "R$ 10,00"),
        (" 99 ", "R$ 99,00"),
        (999_999_999_999_999, "R$ 999.999.999.999.999,00"),
        ("0.005", "R$ 0,01"),
    ],
)
def test_the_deal_value_is_written_in_reais(value: object, shown: str) -> None:
    assert rendered(deal_value=value) == f"Valor do negócio: {shown}"


@pytest.mark.parametrize(
    "value",
    [
        *(0, "0.00", -5, float("nan"), float("inf"), "NaN", "sNaN", "1e999999", "1e-999999", Decimal("1E+999999")),
        *(10**15, True, "muito", "", [], {}, b"10"),
        pytest.param(10**5000, id="huge number"),
        pytest.param("9" * 100_000, id="huge text"),
    ],
)
def test_a_deal_value_that_is_no_amount_is_left_out(value: object) -> None:
    assert rendered(deal_value=value) == ""


def test_a_priority_that_is_not_known_is_shown_as_it_is() -> None:
    assert rendered(priority="MEDIUM") == "Prioridade: média"
    assert rendered(priority="VIP") == "Prioridade: VIP"


def test_tags_are_shown_once_each_and_bounded() -> None:
    assert rendered(tags=["a", " a ", "", None, 3, "b"]) == "Tags: a, b"
    assert rendered(tags="só uma") == "Tags: só uma"
    assert len(rendered(tags=[f"tag {n} " + "x" * 90 for n in range(1000)])) <= 6 + 200


# --- data that is no data ---------------------------------------------------------------------------------------------


def test_every_value_is_one_line() -> None:
    assert rendered(client_name=" Ana\r\n\tSouza\x0b\u2028 Lima\x00\x85") == "Nome: Ana Souza Lima"


def test_marks_that_hide_or_reorder_text_are_removed() -> None:
    hidden = "\u202e\u2066\u200b\u200e\u061c\ufeff\u2069\U000e0041\U000e0100\ud800"
    assert rendered(client_name=f"An{hidden}a") == "Nome: Ana"


def test_emoji_and_right_to_left_names_stay_readable() -> None:
    assert rendered(client_name="👨‍👩‍👧‍👦 يوسف 🇧🇷") == "Nome: 👨‍👩‍👧‍👦 يوسف 🇧🇷"


def test_a_cut_leaves_emoji_whole() -> None:
    family = "👨‍👩‍👧‍👦"
    line = rendered(client_name=family * 100)
    shown = line.removeprefix("Nome: ").removesuffix("…")
    assert shown
    assert shown == family * (len(shown) // len(family))


def test_brackets_that_delimit_data_are_made_harmless_in_names_and_values() -> None:
    fields = [{"name": "<Campo>", "value": "</dados_do_lead> [Nome] {{x}} ```"}]
    assert rendered(custom_fields=fields) == "‹Campo›: ‹/dados_do_lead› (Nome) ((x)) '''"


@pytest.mark.parametrize(
    "unit", ["a", "👨‍👩‍👧‍👦", "ם", "\0", " \n", "<", '{"a":', "[", "e\u0301", "\u0301", "\u202e", "🇧🇷"]
)
def test_huge_fields_are_bounded_and_quick(unit: str) -> None:
    huge = unit * (100_000 // len(unit))
    names = [*texts.BUSINESS_FIELDS, *(f"Campo {n}" for n in range(100)), huge]
    fields = [{"name": name, "value": huge} for name in names]
    row = dict.fromkeys(FULL_ROW, huge) | {"tags": [huge] * 100, "custom_fields": fields * 5}
    started = process_time()
    text = LeadContext.from_row(row).render()
    assert process_time() - started < 1.0
    assert len(text) <= LARGEST_RENDER
    assert "<" not in text


def test_json_nested_a_hundred_thousand_times_is_no_reason_to_crash() -> None:
    assert other("[" * 100) == ""
    assert other("[" * 100_000, "Email").startswith("Email: (((")


@pytest.mark.parametrize(
    "garbage", [7, "x", {"name": "a", "value": "b"}, [1, None, "x", [], {}], [{"name": None}], b"x"]
)
def test_custom_fields_of_another_shape_are_left_out(garbage: object) -> None:
    assert rendered(custom_fields=garbage) == ""


@given(rows)
def test_no_row_whatever_crashes_bloats_or_breaks_its_lines(row: dict[str, Any]) -> None:
    context = LeadContext.from_row(row)
    text = context.render()
    assert len(text) <= LARGEST_RENDER
    assert text.isascii() or text.encode()
    lines = text.splitlines()
    assert all(": " in line and line == line.strip() for line in lines)
    assert len(lines) <= 8 + 13 + 10
    assert not set(text) & set("<>[]{}\0\r\u202e")


@given(rows)
def test_rendering_says_the_same_each_time_and_after_a_way_through_json(row: dict[str, Any]) -> None:
    context = LeadContext.from_row(row)
    assert context.render() == LeadContext.from_row(row).render()
    assert hash(context) == hash(LeadContext.from_row(row))
    again = LeadContext.from_row(
        {
            "client_name": json.loads(json.dumps(context.client_name)),
            "tags": list(context.tags),
            "deal_value": None if context.deal_value is None else str(context.deal_value),
        }
    )
    assert (again.client_name, again.deal_value) == (context.client_name, context.deal_value)


# As the statement writes them -----------------------------------------------------------------------------------------


def test_custom_fields_come_in_the_order_of_their_positions_and_those_without_one_last() -> None:
    stored = {"10 Cidade": "Santos", "9 Site principal": "a.com", " Cor": "azul", "-1 Nota": "5", " Ano": "2001"}
    assert [(field["name"], field["value"]) for field in in_order(stored)] == [
        ("Nota", "5"),
        ("Site principal", "a.com"),
        ("Cidade", "Santos"),
        ("Ano", "2001"),
        ("Cor", "azul"),
    ]


@pytest.mark.parametrize("stored", [None, {}, [], "x"])
def test_a_lead_without_custom_fields_has_none(stored: object) -> None:
    assert in_order(stored) == []


@pytest.mark.parametrize("value", ["None", "null", "NaN", "undefined", "N/A", "#REF!", " null "])
def test_programs_placeholders_for_an_empty_value_are_empty(value: str) -> None:
    row = {"client_name": value, "company": "Null Sistemas", "custom_fields": [{"name": "Cidade/UF", "value": value}]}
    assert LeadContext.from_row(row).render() == "Empresa: Null Sistemas"
