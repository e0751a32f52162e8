"""One parser for every spelling of a phone number, and for every kind of damage."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from campaign_pipeline.core.phone_reading import (
    AREA_CODES,
    NotANumber,
    alternatives,
    canonical_address,
    canonical_number,
    read_phone,
)

CASES = Path(__file__).parents[1] / "cases"
NUMBER = "5511987654321"

area_codes = st.sampled_from([code for code in map(str, range(100)) if re.fullmatch(AREA_CODES, code)])
mobiles = st.builds("{}9{:08d}".format, area_codes, st.integers(0, 99_999_999))
old_mobiles = st.builds("{}{}{:07d}".format, area_codes, st.integers(6, 9), st.integers(0, 9_999_999))
landlines = st.builds("{}{}{:07d}".format, area_codes, st.integers(2, 5), st.integers(0, 9_999_999))
nationals = mobiles | old_mobiles | landlines


def fault(raw: str | None) -> str:
    with pytest.raises(NotANumber) as caught:
        read_phone(raw)
    return str(caught.value)


def readings(raw: str) -> set[str]:
    """Return the possible readings of a text: none, or one number."""
    try:
        return {read_phone(raw).digits}
    except NotANumber:
        return set()


def spelled(national: str, form: str) -> str:
    area, subscriber = national[:2], national[2:]
    return form.format(n=national, a=area, s=subscriber, l=subscriber[:-4], r=subscriber[-4:])


FORMS = (
    *(
        "{n}",
        "55{n}",
        "+55{n}",
        "0055{n}",
        "0{n}",
        "055{n}",
        "+55 0{n}",
        "550{n}",
        "0 {a} {s}",
        "0 15 {a} {l}-{r}",
        "+55 0 21 {a} {l} {r}",
    ),
    *(
        "({a}) {l}-{r}",
        "(015) {a} {l}-{r}",
        "0 41 ({a}) {s}",
        "(0{a}) {l}-{r}",
        "0xx{a}{s}",
        "(0xx{a}) {l}-{r}",
        "0XX{a} {s}",
        "0**{a} {s}",
        "+55 (0xx{a}) {s}",
    ),
    *(
        "+55 (0) {a} {l}-{r}",
        "+55 (0{a}) {s}",
        "(+55) {a} {l}-{r}",
        "{a}.{l}.{r}",
        "{a} {l} {r}",
        "\u202a+55 {a} {l}\u2011{r}\u202c",
    ),
    *("tel:+55{n}", "tel:0{n}", "p:+55{n}", "Tel.: ({a}) {l}-{r}", "Celular: {n}", "WhatsApp: +55 {n}", "sms:+55{n}"),
    *(
        "https://wa.me/55{n}",
        "wa.me/+55{n}",
        "http://www.wa.me/55{n}?text=Ol%C3%A1%2C%20tudo%3F",
        "https://wa.me/55{n}/",
    ),
    *("https://api.whatsapp.com/send?phone=55{n}", "https://api.whatsapp.com/send/?phone=%2B55{n}&text=oi&type=x"),
    *("https://web.whatsapp.com/send?text=a&phone=55{n}", "whatsapp://send?phone=55{n}"),
    *("{n} (Ana)", "+55 {a} {l}-{r} (Ana Maria, sócia)", "(Ana) {n}", "{n} [recado]", "{n} whatsapp", "{n} - fixo"),
    *("'{n}", "'+55{n}", '="{n}"', "55{n}@s.whatsapp.net", "55{n}:12@s.whatsapp.net", "55{n}@c.us", "55{n}:3"),
    *("{n}.0", "{n}.00", "{n},0", "{n},00", "55{n}.0", "+55{n}.0", "55{n},00"),
)
"""Ways to write a number that have exactly one reading, in life or as a spreadsheet leaves it."""


@given(nationals, st.sampled_from(FORMS))
def test_every_spelling_of_a_brazilian_number_is_that_number(national: str, form: str) -> None:
    assert read_phone(spelled(national, form)).digits == f"55{national}"


@given(nationals, st.sampled_from(FORMS))
def test_every_spelling_and_its_twin_compare_equal(national: str, form: str) -> None:
    canonical = canonical_number(f"55{national}")
    assert canonical_address(spelled(national, form)) == canonical
    assert {canonical_address(twin) for twin in alternatives(f"55{national}")} == {canonical}
    assert canonical_address(canonical) == canonical


def test_numbers_as_people_paste_them_are_read() -> None:
    phones = json.loads((CASES / "72-phone-spellings.json").read_text())["input"]["phones"]
    assert [read_phone(phone).digits for phone in phones] == [NUMBER] * 5


def test_the_land_line_beside_a_mobile_number_is_kept_as_a_further_number() -> None:
    assert read_phone("11 3333-4444 / 11 98765-4321").others == ("551133334444",)


# Damage ---------------------------------------------------------------------------------------------------------------


@given(nationals, st.sampled_from(["", "55", "+55"]), st.sampled_from([".", ","]), st.integers(1, 99))
def test_a_fraction_is_refused(national: str, prefix: str, mark: str, cents: int) -> None:
    assert "fraction" in fault(f"{prefix}{national}{mark}{cents:02d}")
    assert "fraction" in fault(f"{prefix}{national}{mark}{cents % 9 + 1}")


@given(nationals, st.sampled_from(["", "55"]), st.sampled_from([".", ","]), st.sampled_from(["0", "00"]))
def test_a_whole_number_written_as_an_amount_never_gets_a_digit_more(
    national: str, prefix: str, mark: str, zeros: str
) -> None:
    grouped = f"{int(prefix + national):,}".replace(",", "," if mark == "." else ".")
    for raw in (f"{prefix}{national}{mark}{zeros}", f"{grouped}{mark}{zeros}", grouped):
        assert readings(raw) == {f"55{national}"}


@given(nationals, st.sampled_from(["", "55"]), st.integers(1, 12), st.sampled_from([".", ","]), st.sampled_from("eE"))
def test_an_exponent_is_read_with_all_its_digits_only(
    national: str, prefix: str, kept: int, mark: str, letter: str
) -> None:
    digits = prefix + national
    assume(kept < len(digits))
    power = f"{letter}+{len(digits) - 1}"
    assert readings(f"{digits[0]}{mark}{digits[1:]}{power}") == {f"55{national}"}
    assert "scientific notation" in fault(f"{digits[0]}{mark}{digits[1:kept]}{power}")


@given(nationals, st.sampled_from(["-{n}", "- {n}", "-55{n}", "{n}-", "−{n}"]))
def test_a_sign_is_refused(national: str, form: str) -> None:
    assert "minus sign" in fault(form.format(n=national))


@given(mobiles, st.sampled_from(["", "55", "+55", "0"]), st.integers(0, 9), st.integers(0, 12))
def test_a_digit_too_many_is_refused_and_read_as_nobody_else(
    national: str, prefix: str, digit: int, place: int
) -> None:
    place = min(place, len(national))
    assume((digit, place) != (0, 0))  # a trunk zero
    assume(not national.startswith("55"))  # with a digit more, as good as any number with its country code
    damaged = national[:place] + str(digit) + national[place:]
    found = readings(prefix + damaged)
    # The rest is a number of another country only if it does not begin with a Brazilian one.
    assert all(prefix == "" and place < 11 and number == damaged for number in found)
    assert not found or not re.fullmatch(rf"(?:{AREA_CODES})9.{{9}}", damaged)


@given(nationals, st.sampled_from(["0", "00"]))
def test_zeros_at_the_end_of_a_number_make_it_no_number_of_another_country(national: str, zeros: str) -> None:
    """`14998764403.0` without its dot; with area code 91 it would be a mobile number in India."""
    assume(len(national + zeros) > 11 and not national.startswith("55"))
    assert readings(national + zeros) == set()
    assert readings(f"55{national}{zeros}") <= {f"55{national}{zeros}"} - {f"55{national}0", f"55{national}00"}


@given(mobiles | landlines, st.sampled_from(["", "55", "+55"]), st.integers(1, 10))
def test_too_few_digits_are_refused(national: str, prefix: str, kept: int) -> None:
    cut = national[:kept]
    assume(len(cut) < 10)
    assume(not re.fullmatch(rf"(?:{AREA_CODES})(?:9\d{{8}}|[2-9]\d{{7}})", prefix.strip("+") + cut) or prefix == "+55")
    assert readings(prefix + cut) == set()


@pytest.mark.parametrize("written", ["+55 11 98765-432", "(11) 98765 432", "11 98765.432", "tel:+55-11-98765-432"])
def test_a_number_whose_last_digit_is_lost_is_not_taken_for_an_old_one(written: str) -> None:
    """Its ten digits would have a twin with a ninth digit, which belongs to somebody else."""
    assert "lost a digit" in fault(written)
    assert readings("(11) 9876-5432") == {"551198765432"}
    assert readings("+43 664 98765 432") == {"4366498765432"}


@given(mobiles, mobiles, st.sampled_from([" / ", ",", ";", "|", "\n", " e ", " ou ", "/"]))
def test_two_mobile_numbers_in_one_cell_are_refused(one: str, other: str, between: str) -> None:
    assume(one != other)
    assert "2 numbers" in fault(f"{one}{between}+55{other}")


@given(mobiles | old_mobiles, landlines, st.sampled_from([" / ", ", ", "; ", "|", "\n"]), st.booleans())
def test_of_a_mobile_number_and_a_land_line_the_mobile_number_is_meant(
    mobile: str, landline: str, between: str, first: bool
) -> None:
    cell = between.join((mobile, landline) if first else (landline, mobile))
    assert readings(cell) == {f"55{mobile}"}


@given(mobiles, st.sampled_from(["{n} ramal 5", "{n};ext=5", "{n}x5", "{n}#5", "{n} / 4322", "{n} e o outro"]))
def test_unrecognised_text_beside_a_number_refuses_it(national: str, form: str) -> None:
    assert readings(form.format(n=national)) == set()


@given(mobiles, st.integers(2, 10), st.sampled_from("OolIxX*#_?"))
def test_a_character_in_the_place_of_a_digit_refuses_the_number(national: str, place: int, char: str) -> None:
    assert readings(national[:place] + char + national[place + 1 :]) == set()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("98765-4321", "has 9 digits, too few for a number with its area code"),
        ("119876543210", "has 12 digits, which no number of its country has"),
        ("20 98765-4321", "begins with 20, which is no Brazilian area code"),
        ("11 88765-4321", "is no Brazilian number"),
        ("+5511 88765-4321", "is no Brazilian number"),
        ("+11987654321", "does not exist in the numbering plan of its country (+1)"),
        ("0011987654321", "does not exist in the numbering plan of its country (+1)"),
        ("+44 020 7946 0000", "does not exist in the numbering plan of its country (+44)"),
        ("https://wa.me/34912345678", "may be a Brazilian number or one of another country"),
        ("https://wa.me/message/ABCDEF", "has characters that are no part of a phone number"),
        ("ver com o sócio", "has characters that are no part of a phone number"),
        ("1" * 201, "has 201 characters, which is no number"),
        ("", "is empty"),
        (None, "is empty"),
    ],
)
def test_a_refusal_says_what_is_wrong(raw: str | None, said: str) -> None:
    assert said in fault(raw)


@pytest.mark.parametrize("raw", ["+351 912 345 678", "351912345678", "00351912345678", "https://wa.me/351912345678"])
def test_a_number_of_another_country_is_read_with_and_without_its_plus(raw: str) -> None:
    assert read_phone(raw).digits == canonical_address(raw) == "351912345678"


def test_a_zero_in_brackets_is_not_dialled_from_abroad() -> None:
    assert read_phone("+44 (0)20 7946 0000").digits == canonical_address("+44 (0)20 7946 0000") == "442079460000"


# Any text -------------------------------------------------------------------------------------------------------------


@given(st.text() | st.text("0123456789+-() .:@/xeE,'", max_size=30))
def test_the_canonical_spelling_of_a_number_is_that_of_its_digits(raw: str) -> None:
    for digits in readings(raw):
        assert re.fullmatch("[1-9][0-9]{6,14}", digits)
        assert read_phone(digits if digits.startswith("55") else f"+{digits}").digits == digits
        assert canonical_address(raw) in {canonical_number(digits), None}  # None: a list, of which one was meant


@given(st.text("0123456789", min_size=8, max_size=15), st.sampled_from(["{}", "+{}", "00{}", "{}.0", "tel:{}", "0{}"]))
def test_no_reading_has_digits_that_its_text_does_not_have(digits: str, form: str) -> None:
    for found in readings(form.format(digits)):
        assert found.removeprefix("55") in digits


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        (" Ana@Example.COM ", "ana@example.com"),
        ("123456@lid", "123456@lid"),
        ("BR.1A2bC", "BR.1A2bC"),
        ("sem número", None),
        ("5,51499E+12", None),
        ("", None),
        (None, None),
    ],
)
def test_a_text_that_is_no_number_has_its_own_spelling_or_none(written: str | None, canonical: str | None) -> None:
    assert canonical_address(written) == canonical


@settings(max_examples=settings().max_examples // 4)
@given(st.sampled_from(["(", "9", " ", "a", "1.", "wa.me/", "(a", "0xx", "tel:"]), st.integers(1, 40_000))
def test_a_long_text_is_refused_at_once(piece: str, times: int) -> None:
    raw = piece * times
    if len(raw) > 200:
        assert "characters, which is no number" in fault(raw) or raw.strip() == ""
    if len(raw) > 320:
        assert canonical_address(raw) is None
