import json
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.core.address import (
    InvalidAddress,
    address_kind,
    alternatives,
    business_scoped_id,
    email_among,
    masked,
    normalize_email,
    normalize_phone,
)
from campaign_pipeline.core.phone_reading import AREA_CODES

CASE_64 = Path(__file__).parents[1] / "cases" / "64-cloud-bsuid.json"

area_codes = st.sampled_from([code for code in map(str, range(100)) if re.fullmatch(AREA_CODES, code)])
mobiles = st.builds("{}9{:08d}".format, area_codes, st.integers(0, 99_999_999))
landlines = st.builds("{}{}{:07d}".format, area_codes, st.integers(2, 5), st.integers(0, 9_999_999))


def problem(raw: str | None) -> InvalidAddress:
    with pytest.raises(InvalidAddress) as caught:
        normalize_phone(raw)
    return caught.value


@pytest.mark.parametrize(
    "raw",
    [
        "5511987654321",
        "+5511987654321",
        "+55 (11) 98765-4321",
        "(+55) 11 98765-4321",
        "55 11 98765.4321",
        "11987654321",
        "(11) 98765-4321",
        "(11) 98765–4321",
        "011 98765-4321",
        "0 (11) 98765-4321",
        "0 15 11 98765-4321",
        "00 55 11 98765-4321",
        "005511987654321",
        "+55 011 98765-4321",
        "  11\u00a098765\t4321\n",
        "\u202a+55 11 98765-4321\u202c",
        "５５１１９８７６５４３２１",
        "5511987654321@s.whatsapp.net",
        "5511987654321:12@s.whatsapp.net",
        "5511987654321:12",
        "5511987654321@c.us",
    ],
)
def test_a_brazilian_mobile_is_understood_however_it_is_written(raw: str) -> None:
    assert normalize_phone(raw) == "5511987654321"


@pytest.mark.parametrize(
    ("raw", "digits"),
    [
        ("1133334444", "551133334444"),
        ("551187654321", "551187654321"),
        ("(55) 99999-8888", "5555999998888"),
        ("5533334444", "555533334444"),
        ("5555999998888", "5555999998888"),
        ("0800 591 0000", "558005910000"),
    ],
)
def test_other_brazilian_numbers_keep_all_their_digits(raw: str, digits: str) -> None:
    """Area code 55 (Santa Maria) looks like the country code."""
    assert normalize_phone(raw) == digits


@pytest.mark.parametrize(
    ("raw", "digits"),
    [
        ("+1 415-555-2671", "14155552671"),
        ("+351 912 345 678", "351912345678"),
        ("351912345678", "351912345678"),
        ("00351912345678", "351912345678"),
        ("+54 9 11 2345-6789", "5491123456789"),
        ("+39 06 6982 1234", "390669821234"),
        ("14155552671@s.whatsapp.net", "14155552671"),
    ],
)
def test_numbers_of_other_countries_keep_their_code(raw: str, digits: str) -> None:
    assert normalize_phone(raw) == digits


@pytest.mark.parametrize("raw", [None, "", "   ", "\u200b\u200e", "\n"])
def test_no_number_is_said_to_be_none(raw: str | None) -> None:
    found = problem(raw)
    assert (found.code, str(found)) == ("no_phone", "The lead has no phone number.")


@pytest.mark.parametrize(
    "raw",
    [
        "0800 FLOWERS",
        "11 98765-4321 ramal 5",
        "11 98765-4321 ext. 5",
        "11 98765-432l",
        "a definir",
        "ana@exemplo.com",
        "11 98765-4321 / 11 91234-5678",
        "3333-4444/55",
        "11 12345-6789",
        "11987654321;3333-4444",
        "11987654321#12",
        "5511 98765++4321",
        "55+11987654321",
        "123456789012345678@g.us",
        "123456789012345@lid",
        "5511987654321:x@s.whatsapp.net",
        "٥٥١١٩٨٧٦٥٤٣٢١ ش",
        "²²²²²²²²²²",
        "1" * 101,
        "98765-4321",
        "3333-4444",
        "4004-0001",
        "190",
        "1",
        "+",
        "()-",
        "+55",
        "0",
        "00",
        "00000000000",
        "+00000000000",
        "119876543210",
        "551198765432100",
        "+5511",
        "+999 12345678",
        "+55 98765-4321",
        "1234567890123456",
    ],
)
def test_an_invalid_number_is_refused_in_one_sentence(raw: str) -> None:
    found = problem(raw)
    assert found.code == "invalid_phone"
    assert str(found).startswith("The phone number ")
    assert str(found).endswith(".")


def test_the_refusal_does_not_tell_the_number() -> None:
    assert "119876543210" not in str(problem("119876543210"))
    assert "1198****3210" in str(problem("119876543210"))


def test_a_refusal_survives_the_way_to_another_process() -> None:
    found = pickle.loads(pickle.dumps(problem("1")))  # noqa: S301 - our own bytes
    assert (type(found), found.code) == (InvalidAddress, "invalid_phone")


@given(mobiles | landlines, st.sampled_from(["", "55", "+55", "0055", "+55 "]), st.booleans())
def test_a_normalized_brazilian_number_stays_as_it_is(national: str, prefix: str, jid: bool) -> None:
    digits = normalize_phone(prefix + national)
    assert digits == f"55{national}"
    assert normalize_phone(digits + "@s.whatsapp.net" * jid) == digits


@given(st.text() | st.text("0123456789+-() .:@/x", max_size=25))
def test_any_text_is_a_number_or_a_refusal(raw: str) -> None:
    try:
        digits = normalize_phone(raw)
    except InvalidAddress as found:
        assert raw.strip() == "" or found.code in {"no_phone", "invalid_phone"}  # noqa: PT017 - both are allowed
        return
    assert digits.isascii()
    assert digits.isdigit()
    assert 4 <= len(digits) <= 17


# --- the ninth digit --------------------------------------------------------------------------------------------------


def test_a_mobile_has_a_twin_without_the_ninth_digit_and_comes_first_itself() -> None:
    assert alternatives("5511987654321") == ("5511987654321", "551187654321")
    assert alternatives("551187654321") == ("551187654321", "5511987654321")


@pytest.mark.parametrize(
    "digits",
    ["551133334444", "5511933334444", "14155552671", "351912345678", "5501987654321", "", "abc", "55119876543211"],
)
def test_land_lines_and_other_countries_have_no_twin(digits: str) -> None:
    assert alternatives(digits) == (digits,)


@given(mobiles)
def test_twins_are_each_others_twins(national: str) -> None:
    digits = f"55{national}"
    both = alternatives(digits)
    assert both[0] == digits
    assert len(set(both)) == len(both)
    assert all(set(alternatives(twin)) == set(both) and alternatives(twin)[0] == twin for twin in both)


# --- what logs may show -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("5511987654321", "5511*****4321"),
        ("551187654321", "5511****4321"),
        ("5511987654321@s.whatsapp.net", "5511*****4321@s.whatsapp.net"),
        ("ana.souza@exemplo.com", "a***@exemplo.com"),
        ("@exemplo.com", "***@exemplo.com"),
        ("12345678", "******78"),
        ("1234", "****"),
        ("", ""),
    ],
)
def test_the_middle_of_an_address_is_hidden(address: str, shown: str) -> None:
    assert masked(address) == shown


@given(st.text("0123456789", min_size=5, max_size=20))
def test_at_least_a_third_of_every_number_is_hidden(digits: str) -> None:
    assert masked(digits).count("*") >= len(digits) / 3
    assert len(masked(digits)) == len(digits)


# E-mail ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("ana@example.com", "ana@example.com"),
        ("  Ana.Souza+crm@Example.COM.BR ", "Ana.Souza+crm@example.com.br"),
        ("mailto:ana@example.com", "ana@example.com"),
        ("\u200bana@example.com\u200e", "ana@example.com"),
        ("ana@pão.com.br", "ana@xn--po-sia.com.br"),
        ("o'brien@example.com", "o'brien@example.com"),
    ],
)
def test_an_email_address_is_given_as_servers_take_it(raw: str, expected: str) -> None:
    assert normalize_email(raw) == expected
    assert normalize_email(expected) == expected


@pytest.mark.parametrize(
    "raw",
    [
        "ana",
        "ana@",
        "@example.com",
        "ana@localhost",
        "ana@example",
        "ana@@example.com",
        "ana souza@example.com",
        "ana.@example.com",
        ".ana@example.com",
        "ana..s@example.com",
        "ana@-example.com",
        "ana@example..com",
        "ana@10.0.0.1",
        "ana@[10.0.0.1]",
        '"ana souza"@example.com',
        "Ana <ana@example.com>",
        "ana@example.com, bia@example.com",
        "ana@example.com;bia@example.com",
        "ana@example.com\r\nRCPT TO:<x@y.example>",
        "ana\x00@example.com",
        "joão@example.com",
        f"{'a' * 65}@example.com",
        f"ana@{'a.' * 130}com",
        f"ana@{'ã' * 300}.com",
    ],
)
def test_an_address_that_no_server_accepts_is_refused_and_not_repeated(raw: str) -> None:
    with pytest.raises(InvalidAddress) as raised:
        normalize_email(raw)
    assert raised.value.code == "invalid_email"
    assert raw.strip() not in str(raised.value)


@pytest.mark.parametrize("raw", [None, "", "  ", "\u200b"])
def test_a_missing_email_address_is_named_as_missing(raw: str | None) -> None:
    with pytest.raises(InvalidAddress) as raised:
        normalize_email(raw)
    assert raised.value.code == "no_email"


@given(st.text(max_size=300) | st.emails())
def test_an_email_address_that_passes_has_one_at_and_nothing_that_steers_a_server(raw: str) -> None:
    try:
        address = normalize_email(raw)
    except InvalidAddress:
        return
    assert re.fullmatch(r"[!-?A-~]+@[a-z0-9.-]+", address)
    assert normalize_email(address) == address


@pytest.mark.parametrize("name", ["Email", "E-mail", " email ", "EMAIL PRINCIPAL", "e-mail comercial"])
def test_the_crms_field_for_the_address_is_known_by_its_name(name: str) -> None:
    fields = [{"name": "Rating", "value": "5"}, {"name": name, "value": ""}, {"name": name, "value": "ana@example.com"}]
    assert email_among(fields) == "ana@example.com"


def test_a_field_that_only_speaks_of_email_is_none() -> None:
    assert email_among([{"name": "Aceita email?", "value": "sim"}, {"name": None, "value": None}, {}]) is None


# Business-scoped ids --------------------------------------------------------------------------------------------------


def test_a_business_scoped_id_is_an_address_of_its_own_kind_and_no_number() -> None:
    (raw,) = json.loads(CASE_64.read_text())["input"].values()
    assert business_scoped_id(f" {raw}\u200b") == raw
    assert address_kind(raw) == "bsuid"
    assert problem(raw).code == "invalid_phone"


@pytest.mark.parametrize("raw", [None, "", "BR", "BR.", "br.1A2B", "BRA.12", "BR.12 34", "5511987654321", "BR.12@lid"])
def test_other_texts_are_no_business_scoped_id(raw: str | None) -> None:
    assert business_scoped_id(raw) is None
