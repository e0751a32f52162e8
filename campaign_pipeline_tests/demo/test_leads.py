import math
import re
import statistics

import phonenumbers
import pytest

from campaign_pipeline.demo.leads import LONG_NOTE_CHARS, TROUBLE_EVERY, make_leads
from campaign_pipeline.leads import BUSINESS_FIELDS, PRIORITIES, Lead

BATCH = make_leads(2_000, seed=7)


def digits_of(text: str) -> str:
    return "".join(re.findall("[0-9]", text))


def has_plain_phone(lead: Lead) -> bool:
    return lead.phone is not None and not re.search("[^0-9 ()+-]", lead.phone)


def test_the_same_seed_makes_the_same_leads() -> None:
    assert make_leads(100, seed=3) == make_leads(100, seed=3)


def test_another_seed_makes_other_leads() -> None:
    assert make_leads(100, seed=3) != make_leads(100, seed=4)


@pytest.mark.parametrize("count", [0, 1, TROUBLE_EVERY, 333])
def test_a_longer_batch_begins_with_the_shorter_one(count: int) -> None:
    assert make_leads(count, seed=7) == BATCH[:count]


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="count must be 0 or more, not -1"):
        make_leads(-1, seed=1)


def test_a_batch_of_many_has_no_number_twice() -> None:
    leads = make_leads(20_000, seed=11)
    phones = [digits_of(lead.phone)[-11:] for lead in leads if lead.phone and has_plain_phone(lead)]
    assert len(phones) > 19_000
    assert len(set(phones)) == len(phones)
    assert len({lead.cnpj for lead in leads}) == len(leads)


def test_phones_are_mobile_numbers_of_the_city_that_the_lead_is_in() -> None:
    # The library's own word for a few cities; it knows most area codes by their state.
    area_codes = {
        "São Paulo/SP": "11",
        "Recife/PE": "81",
        "Manaus/AM": "92",
        "Santa Maria/RS": "55",
        "Brasília/DF": "61",
    }
    seen = set()
    for lead in filter(has_plain_phone, BATCH):
        number = phonenumbers.parse(lead.phone or "", "BR")
        assert phonenumbers.is_valid_number(number), lead.phone
        assert phonenumbers.number_type(number) == phonenumbers.PhoneNumberType.MOBILE, lead.phone
        city = lead.custom_fields["Cidade/UF"]
        if city in area_codes:
            assert str(number.national_number).startswith(area_codes[city] + "9")
            seen.add(city)
    assert seen == area_codes.keys()


def test_all_area_codes_of_brazil_occur() -> None:
    codes = {digits_of(lead.phone)[-11:-9] for lead in BATCH if lead.phone and has_plain_phone(lead)}
    # ANATEL's plan: 67 codes, none of which ends in 0.
    gaps = {"23", "25", "26", "29", "36", "39", "52", "56", "57", "58", "59", "72", "76", "78"}
    assert codes == {str(code) for code in range(11, 100) if code % 10} - gaps


def test_big_cities_have_more_leads_than_small_ones() -> None:
    cities = [lead.custom_fields["Cidade/UF"] for lead in BATCH]
    assert cities.count("São Paulo/SP") > 4 * cities.count("Bauru/SP") > 0


@pytest.mark.parametrize(
    "pattern",
    [r"\(\d\d\) 9\d{4}-\d{4}", r"\+55 \d\d 9\d{8}", r"\d\d9\d{8}", r"\d\d 9\d{4}-\d{4}", r"55\d\d9\d{8}"],
)
def test_phones_are_written_in_each_common_format(pattern: str) -> None:
    share = sum(bool(re.fullmatch(pattern, lead.phone or "")) for lead in BATCH) / len(BATCH)
    assert share > 0.05


def test_deal_values_are_log_normal_around_the_median_of_the_trade() -> None:
    values = [
        float(lead.deal_value)
        for lead in make_leads(20_000, seed=5)
        if lead.deal_value is not None and lead.custom_fields.get("Categoria") == "Restaurante"
    ]
    logs = [math.log(value) for value in values]
    assert len(logs) > 1_000
    assert statistics.median(values) == pytest.approx(2_900, rel=0.1)
    assert statistics.mean(logs) == pytest.approx(math.log(2_900), abs=0.1)
    assert statistics.stdev(logs) == pytest.approx(0.8, abs=0.06)


def test_deal_values_have_cents_and_some_leads_have_none_yet() -> None:
    values = [lead.deal_value for lead in BATCH]
    assert 0.05 < values.count(None) / len(values) < 0.15
    assert all(value.as_tuple().exponent == -2 and value > 0 for value in values if value is not None)


def test_priorities_all_occur_and_are_known_words() -> None:
    assert {lead.priority for lead in BATCH} == set(PRIORITIES)


def test_people_have_accents_and_several_names() -> None:
    assert all(" " in lead.client_name for lead in BATCH)
    assert sum(bool(re.search("[áâãçéêíóôõúÁÉÍÓÚ]", lead.client_name)) for lead in BATCH) > len(BATCH) / 4
    assert len({lead.client_name for lead in BATCH}) > len(BATCH) * 0.9


def test_business_fields_all_occur_and_other_fields_too() -> None:
    names = {name for lead in BATCH for name in lead.custom_fields}
    assert set(BUSINESS_FIELDS) < names
    assert all(value.strip() for lead in BATCH for value in lead.custom_fields.values())


def test_no_lead_s_mail_or_site_can_reach_anybody() -> None:
    sites = [lead.custom_fields.get("Website Principal", "") for lead in BATCH]
    mails = [lead.custom_fields.get("Email", "") for lead in BATCH]
    hosts = [site.removeprefix("https://") for site in sites if site] + [mail.split("@")[1] for mail in mails if mail]
    assert len(hosts) > len(BATCH)
    assert all(host.endswith(".example") for host in hosts)
    assert all(re.fullmatch(r"(?!-)[a-z0-9-]{1,63}(?<!-)", label) for host in hosts for label in host.split("."))


def test_one_lead_of_each_block_is_troublesome_and_the_kinds_take_turns() -> None:
    def troubles(lead: Lead) -> list[str]:
        return [
            kind
            for kind, found in (
                ("no phone", lead.phone is None),
                ("letters", lead.phone is not None and not has_plain_phone(lead)),
                ("emoji", any(ord(char) > 0x2000 for char in lead.client_name)),
                ("long note", len(lead.notes or "") >= LONG_NOTE_CHARS),
            )
            if found
        ]

    blocks = [BATCH[start : start + TROUBLE_EVERY] for start in range(0, len(BATCH), TROUBLE_EVERY)]
    found = [[kind for lead in block for kind in troubles(lead)] for block in blocks]
    assert found == [["no phone"], ["letters"], ["emoji"], ["long note"]] * (len(blocks) // 4)
    places = {next(index for index, lead in enumerate(block) if troubles(lead)) for block in blocks}
    assert len(places) > TROUBLE_EVERY / 2
