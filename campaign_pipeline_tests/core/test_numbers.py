"""The choice of a lead's number, and the provider's check before it is used."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.core.context import LeadContext
from campaign_pipeline.core.model import Lead, ShardReport
from campaign_pipeline.core.numbers import MOST_NUMBERS, KnownNumber, candidate_numbers, phones_among
from campaign_pipeline.core.ports import (
    BeginPart,
    Envelope,
    NumberCheck,
    NumberExists,
    NumberMissing,
    NumberNotChecked,
    Outcome,
    Permanent,
)
from campaign_pipeline.core.shard_context import DeliveryPolicy
from campaign_pipeline_tests.core.stand_ins import Channel, Model, Queue, Store, StoredPart, in_no_time, shard_of

FIRST, TWIN = "5511987654321", "551187654321"
OTHER, OTHER_TWIN = "5521992345678", "552192345678"
LAND_LINE = "551133334444"
MISSING = NumberMissing("The number is not on WhatsApp.")


# Candidates -----------------------------------------------------------------------------------------------------------


def test_a_number_and_its_twin_come_before_the_next_number() -> None:
    assert candidate_numbers(FIRST, ["(21) 99234-5678", "11 3333-4444", "nenhum", "11 98765-4321"]) == (
        FIRST,
        TWIN,
        OTHER,
        OTHER_TWIN,
        LAND_LINE,
    )


mobiles = st.builds("{}{}9{}".format, st.integers(1, 9), st.integers(1, 9), st.integers(60_000_000, 99_999_999))


@given(st.lists(st.text(max_size=20) | mobiles))
def test_whatever_the_crm_has_the_first_is_first_none_comes_twice_and_they_are_few(others: list[str]) -> None:
    found = candidate_numbers(FIRST, others)
    assert found[0] == FIRST
    assert len(set(found)) == len(found) <= MOST_NUMBERS
    assert all(number.isdigit() for number in found)


@pytest.mark.parametrize(
    ("name", "is_phone"),
    [
        ("Telefone 2", True),
        ("CELULAR", True),
        ("WhatsApp do sócio", True),
        ("Fone comercial", True),
        ("telefones_extra", True),
        ("Mobile phone", True),
        ("Email", False),
        ("Microfone", False),
        ("Cidade/UF", False),
        ("", False),
    ],
)
def test_custom_fields_are_numbers_by_their_name(name: str, is_phone: bool) -> None:
    assert phones_among([{"name": name, "value": "11 98765-4321"}]) == (("11 98765-4321",) if is_phone else ())


def test_a_custom_field_without_name_or_value_is_none() -> None:
    assert phones_among([{"name": None, "value": "1"}, {"name": "Telefone", "value": None}]) == ()


# A message's life with checks -----------------------------------------------------------------------------------------


def work(
    queue: Queue, channel: Channel, others: tuple[str, ...] = (), days: float = 30.0, **columns: Any
) -> tuple[ShardReport, list[str]]:
    """Deliver a queue; return the report and the addresses of the intents, in order."""
    addresses: list[str] = []

    def note(begin: BeginPart) -> None:
        addresses.append(begin.address)

    async def run() -> ShardReport:
        policy = DeliveryPolicy(number_check_days=days)
        lead = Lead("lead", FIRST, LeadContext(client_name="Ana"), other_phones=others)
        return await shard_of(Store(queue, beginning=note), Model(), channel, policy, lead=lead).run(1)

    return in_no_time(run()), addresses


def answering(answers: dict[str, NumberCheck]) -> Channel:
    return Channel(number_check=True, numbers=lambda number: answers[number])


def test_a_number_that_exists_is_asked_for_once_and_remembered() -> None:
    channel = answering({FIRST: NumberExists(TWIN, f"{TWIN}@s.whatsapp.net", "77@lid")})
    queue = Queue.of(3)
    report, addresses = work(queue, channel)
    assert (report.sent, channel.checked, set(addresses)) == (3, [FIRST], {FIRST})
    (note,) = queue.notes
    assert note.known == KnownNumber(FIRST, True, TWIN, f"{TWIN}@s.whatsapp.net", "77@lid")
    assert (note.lead_id, note.reachable) == ("lead", True)


def test_no_number_is_checked_unless_configured_and_supported() -> None:
    for channel, days in ((Channel(number_check=True), 0.0), (Channel(number_check=False), 30.0)):
        queue = Queue.of(1)
        report, _ = work(queue, channel, days=days)
        assert (report.sent, channel.checked, queue.notes) == (1, [], [])


def test_a_number_that_is_known_is_not_asked_for() -> None:
    channel, queue = Channel(number_check=True), Queue.of(1)
    queue.numbers[FIRST] = KnownNumber(FIRST, True)
    report, _ = work(queue, channel)
    assert (report.sent, channel.checked) == (1, [])


def test_a_failed_number_check_stops_no_message_and_is_not_cached() -> None:
    channel, queue = answering({FIRST: NumberNotChecked("The provider did not answer.")}), Queue.of(1)
    report, _ = work(queue, channel)
    assert (report.sent, len(channel.asked), queue.notes) == (1, 1, [])
    assert any("could not be checked" in line["message"] for line in queue.log)


def test_a_failed_number_check_is_tried_once_per_shard() -> None:
    channel, queue = answering({FIRST: NumberNotChecked("The provider did not answer.")}), Queue.of(3)
    report, _ = work(queue, channel)
    assert (report.sent, channel.checked) == (3, [FIRST])


def test_a_missing_number_is_followed_by_the_leads_next_ones_in_order() -> None:
    channel = answering({FIRST: MISSING, TWIN: MISSING, OTHER: NumberExists(OTHER)})
    queue = Queue.of(1)
    report, addresses = work(queue, channel, others=("(21) 99234-5678",))
    assert (report.sent, report.failed) == (1, 0)
    assert channel.checked == addresses == [FIRST, TWIN, OTHER]
    assert len(channel.asked) == 1
    assert queue.messages["m0000"].parts[0].address == OTHER
    assert [(note.known.number, note.known.exists, note.reachable) for note in queue.notes] == [
        (FIRST, False, None),
        (TWIN, False, None),
        (OTHER, True, True),
    ]


def test_a_lead_without_an_existing_number_fails_and_nothing_is_sent() -> None:
    channel = Channel(number_check=True, numbers=lambda _: MISSING)
    queue = Queue.of(1)
    report, _ = work(queue, channel)
    stored = queue.messages["m0000"]
    assert (stored.status, stored.code, stored.error_class) == ("failed", "not_on_whatsapp", "permanent")
    assert (report.failed, channel.asked, queue.parts()) == (1, [], [["failed"]])
    assert [note.reachable for note in queue.notes] == [None, False]


def test_a_lead_with_only_missing_numbers_costs_neither_a_text_nor_a_check() -> None:
    channel, queue = Channel(number_check=True), Queue.of(1)
    queue.numbers = {number: KnownNumber(number, False) for number in (FIRST, TWIN)}
    report, _ = work(queue, channel)
    assert queue.messages["m0000"].code == "not_on_whatsapp"
    assert (report.tokens, channel.checked, channel.asked) == (0, [], [])


def test_a_number_that_is_known_as_missing_is_passed_over() -> None:
    channel, queue = Channel(number_check=True), Queue.of(1)
    queue.numbers[FIRST] = KnownNumber(FIRST, False)
    report, addresses = work(queue, channel)
    assert (report.sent, channel.checked, addresses) == (1, [TWIN], [TWIN])


def test_a_send_that_is_refused_for_its_number_is_followed_by_the_next_number() -> None:
    def refuse(envelope: Envelope) -> Outcome | None:
        return Permanent("not_on_whatsapp", "No account.") if envelope.address == FIRST else None

    channel, queue = Channel(answers=refuse), Queue.of(1)
    report, addresses = work(queue, channel)
    assert (report.sent, addresses) == (1, [FIRST, TWIN])
    assert [note.known for note in queue.notes] == [KnownNumber(FIRST, False)]


def test_a_message_with_a_sent_part_keeps_its_number_without_a_check() -> None:
    parts = [StoredPart("Um", "sent", 1, 0.0, OTHER), StoredPart("Dois")]
    channel, queue = Channel(number_check=True, numbers=lambda _: MISSING), Queue.of(1, parts=parts, text="Um Dois")
    report, addresses = work(queue, channel)
    assert (report.sent, channel.checked, addresses) == (1, [], [OTHER])
