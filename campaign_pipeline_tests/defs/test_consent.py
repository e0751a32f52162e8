"""Consent and number checks on the real queue, over real HTTP: what is not sent, and where it is sent instead."""

import json
import os
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pandas as pd
import pytest

from campaign_pipeline.core.ports import Envelope, Prompt
from campaign_pipeline.defs import io
from campaign_pipeline.defs.io import PrivateFiles, UnreachableFilesError
from campaign_pipeline_tests.defs.test_shard import FIRST, SECOND, TWO_PARTS, Play, Rig, Watch, inbox_of, play
from campaign_pipeline_tests.defs.test_spending import local_noon
from campaign_pipeline_tests.factories import World

__all__ = ["play"]  # the fixture

CASES = Path(__file__).parents[1] / "cases"

PHONE, TWIN = "5511988887777", "551188887777"


def opts_out(world: World, lead: UUID, times: int = 1) -> Callable[[object], None]:
    """The lead answers SAIR, as the CRM stores it, at the given call."""
    calls = iter(range(1, 1000))

    def reply(_: object) -> None:
        if next(calls) == times:
            workspace = world.value("SELECT workspace_id FROM leads WHERE id = %s", lead)
            talk = world.insert("conversations", workspace_id=workspace, lead_id=lead, channel="whatsapp")
            world.insert("messages", conversation_id=talk, message_type="incoming", text_content="SAIR")

    return reply


# Opting out -----------------------------------------------------------------------------------------------------------


def test_a_lead_that_opts_out_while_its_text_is_written_gets_nothing_and_the_reason_is_shown(
    world: World, play: Play
) -> None:
    workspace, _, run = inbox_of(world)
    lead = world.lead(workspace)
    message, other = world.due_message(run, lead), world.due_message(run)

    async def scenario(rig: Rig) -> None:
        def only_theirs(prompt: Prompt) -> None:
            if prompt.reference == str(message):
                reply(prompt)

        reply = opts_out(world, lead)
        (report,) = await rig.batch(Watch(after_generation=only_theirs))
        assert (report.sent, report.skipped, report.reasons["skipped: suppressed"]) == (1, 1, 1)
        assert (rig.sends(), rig.message(other)["status"]) == (1, "sent")
        row = rig.message(message)
        assert (row["status"], row["error_code"]) == ("skipped", "suppressed")
        assert "suppressed" in row["error_message"]
        assert rig.parts(message) == ["planned"]
        assert await rig.batch() == []

    play(scenario)
    logged = world.all("SELECT level, details FROM campaign_logs WHERE message_id = %s", message)
    assert ("warning", "suppressed") in {(row["level"], row["details"].get("code")) for row in logged}


def test_a_lead_that_opts_out_after_the_first_part_does_not_get_the_second(world: World, play: Play) -> None:
    workspace = world.workspace()
    run = world.run(world.campaign(workspace, world.inbox(workspace), split_messages=True))
    world.insert("ai_message_splitter_config", min_chars_to_split=10, delay_between_messages=0)
    lead = world.lead(workspace)
    message = world.due_message(run, lead, generated_message=TWO_PARTS)

    async def scenario(rig: Rig) -> None:
        await rig.batch(Watch(after_send=opts_out(world, lead)))
        row = rig.message(message)
        assert (row["status"], row["error_class"], row["error_code"]) == ("failed", "permanent", "suppressed")
        assert "after a part had gone out" in row["error_message"]
        assert (rig.arrived(), rig.parts(message)) == ([FIRST], ["sent", "planned"])
        # Once the lead opts in again, a person may have the rest sent.
        world.do("SELECT campaign_lift(NULL, NULL, NULL, %s, 'Rui')", lead)
        assert len(world.all("SELECT campaign_requeue_failed(%s)", [message])) == 1
        await rig.batch()
        assert (rig.arrived(), rig.message(message)["status"]) == ([FIRST, SECOND], "sent")

    play(scenario)


def test_a_suppressed_lead_costs_no_text(world: World, play: Play) -> None:
    workspace, _, run = inbox_of(world)
    lead = world.lead(workspace)
    message = world.due_message(run, lead)
    opts_out(world, lead)(None)

    async def scenario(rig: Rig) -> None:
        assert await rig.batch() == []
        assert (rig.generations(), rig.sends()) == (0, 0)
        assert rig.message(message)["error_code"] == "suppressed"

    play(scenario)


# One number, several leads --------------------------------------------------------------------------------------------


def test_four_leads_with_one_number_get_one_message(world: World, play: Play) -> None:
    workspace, _, run = inbox_of(world)
    world.do("UPDATE workspaces SET number_rest_hours = 24 WHERE id = %s", workspace)
    phones = json.loads((CASES / "70-same-number-twice.json").read_text())["input"]["phones"]
    for phone in phones:
        world.due_message(run, world.lead(workspace, phone=phone))

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        assert (rig.sends(), rig.statuses()) == (1, Counter(sent=1, pending=3))
        world.move_clock(timedelta(minutes=2))
        assert await rig.batch() == []
        assert (rig.sends(), rig.statuses()) == (1, Counter(sent=1, skipped=3))
        assert world.wrong_counters() == []

    play(scenario)


# One message a day ----------------------------------------------------------------------------------------------------


def test_of_two_campaigns_one_writes_to_a_lead_today_and_the_other_tomorrow(world: World, play: Play) -> None:
    noon = local_noon(world, "America/Sao_Paulo")  # no midnight passes between the batch and the question for it
    world.move_clock(noon)
    workspace, inbox, run = inbox_of(world)
    world.do("UPDATE workspaces SET one_message_per_lead_per_day = true WHERE id = %s", workspace)
    other = world.run(world.campaign(workspace, inbox))
    leads = [world.lead(workspace) for _ in range(3)]
    for one in (run, other):
        for lead in leads:
            world.due_message(one, lead, generated_message=f"Olá! Aqui é a campanha {one}, para {lead}.")

    async def scenario(rig: Rig) -> None:
        rig.later_by = noon
        await rig.batch()
        assert rig.statuses() == Counter(sent=3, pending=3)
        waiting = [row for row in world.messages() if row["status"] == "pending"]
        assert {row["lead_id"] for row in waiting} == set(leads)
        assert {row["error_code"] for row in waiting} == {"contacted_today"}
        midnight = world.value(
            """SELECT ((campaign_now() AT TIME ZONE 'America/Sao_Paulo')::date + 1)::timestamp
                      AT TIME ZONE 'America/Sao_Paulo'"""
        )
        for row in waiting:
            assert midnight <= row["next_attempt_at"] < midnight + timedelta(minutes=1)
        assert await rig.batch() == []
        now = world.value("SELECT campaign_now()")
        rig.later(seconds=(midnight - now).total_seconds() + 10)
        await rig.batch()
        assert rig.statuses() == Counter(sent=6)

    play(scenario)


# Numbers --------------------------------------------------------------------------------------------------------------


def checks(rig: Rig) -> int:
    return len(rig.sandbox.record.where(kind="number_check"))


@pytest.fixture
def reachable(world: World) -> tuple[UUID, UUID]:
    """A message and its lead."""
    workspace, _, run = inbox_of(world)
    lead = world.lead(workspace, phone="+55 11 98888-7777")
    return world.due_message(run, lead, generated_message="Olá! Podemos conversar por dez minutos?"), lead


def test_a_number_is_asked_for_once_just_before_its_first_message(
    world: World, play: Play, reachable: tuple[UUID, UUID]
) -> None:
    message, lead = reachable
    seen: list[int] = []

    async def scenario(rig: Rig) -> None:
        await rig.batch(Watch(before_send=lambda _: seen.append(checks(rig))))
        assert (rig.message(message)["status"], seen, checks(rig)) == ("sent", [1], 1)
        run = rig.message(message)["run_id"]
        world.due_message(run, lead, generated_message="Olá de novo! Podemos conversar?")
        await rig.batch()
        assert checks(rig) == 1
        rig.later(days=31)
        world.due_message(run, lead, generated_message="Olá, depois de um mês! Podemos conversar?")
        await rig.batch()
        assert checks(rig) == 2

    play(scenario, CAMPAIGN_NUMBER_CHECK_DAYS="30")
    row = world.one('SELECT provider, number, "exists" FROM campaign_number_checks')
    assert row == {"provider": "evolution", "number": PHONE, "exists": True}
    found = world.one("SELECT whatsapp_valid, whatsapp_jid FROM leads WHERE id = %s", lead)
    assert found["whatsapp_valid"] is True
    assert found["whatsapp_jid"].endswith("@s.whatsapp.net")


def test_no_number_is_asked_for_unless_it_is_wanted(world: World, play: Play, reachable: tuple[UUID, UUID]) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.batch()
        assert (rig.message(reachable[0])["status"], checks(rig)) == ("sent", 0)

    play(scenario)


def test_the_number_that_works_is_the_one_used_and_stored(
    world: World, play: Play, reachable: tuple[UUID, UUID]
) -> None:
    message, lead = reachable
    to: list[Envelope] = []

    async def scenario(rig: Rig) -> None:
        await rig.batch(Watch(before_send=to.append))
        assert rig.message(message)["status"] == "sent"

    play(scenario, f"number_check:not_on_whatsapp:phone={PHONE}", CAMPAIGN_NUMBER_CHECK_DAYS="30")
    assert [envelope.address for envelope in to] == [TWIN]
    row = world.one("SELECT address, address_kind, phone_normalized FROM campaign_messages WHERE id = %s", message)
    assert row == {"address": TWIN, "address_kind": "phone", "phone_normalized": TWIN}
    part = world.one(
        "SELECT address, address_kind, attempts FROM campaign_message_parts WHERE message_id = %s", message
    )
    assert part == {"address": TWIN, "address_kind": "phone", "attempts": 2}
    assert world.value("SELECT whatsapp_valid FROM leads WHERE id = %s", lead) is True


def test_another_number_of_the_lead_is_tried_last(world: World, play: Play, reachable: tuple[UUID, UUID]) -> None:
    message, lead = reachable
    field = world.insert("custom_fields", name="Telefone do sócio", position=1)
    world.insert("lead_custom_values", lead_id=lead, custom_field_id=field, value="(21) 3333-4444")

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        assert (rig.message(message)["status"], rig.message(message)["address"]) == ("sent", "552133334444")

    faults = [f"number_check:not_on_whatsapp:phone={number}" for number in (PHONE, TWIN)]
    play(scenario, *faults, CAMPAIGN_NUMBER_CHECK_DAYS="30")


def test_a_lead_without_any_account_fails_and_the_crm_learns_it(
    world: World, play: Play, reachable: tuple[UUID, UUID]
) -> None:
    message, lead = reachable

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        row = rig.message(message)
        assert (row["status"], row["error_class"], row["error_code"]) == ("failed", "permanent", "not_on_whatsapp")
        again = world.due_message(row["run_id"], lead)
        await rig.batch()
        assert rig.message(again)["error_code"] == "not_on_whatsapp"
        assert (rig.sends(), rig.generations(), checks(rig)) == (0, 0, 2)

    play(scenario, "number_check:not_on_whatsapp", CAMPAIGN_NUMBER_CHECK_DAYS="30")
    assert world.value("SELECT whatsapp_valid FROM leads WHERE id = %s", lead) is False


@pytest.mark.parametrize("fault", ["server_error_500", "malformed_json", "proxy_html_502"])
def test_a_question_without_an_answer_is_neither_yes_nor_no(
    world: World, play: Play, reachable: tuple[UUID, UUID], fault: str
) -> None:
    message, lead = reachable

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        assert rig.message(message)["status"] == "sent"

    play(scenario, f"number_check:{fault}", CAMPAIGN_NUMBER_CHECK_DAYS="30")
    assert world.value("SELECT count(*) FROM campaign_number_checks") == 0
    assert world.value("SELECT whatsapp_valid FROM leads WHERE id = %s", lead) is None


# Step outputs ---------------------------------------------------------------------------------------------------------


def test_a_leads_rows_are_taken_out_of_every_table_of_every_run(tmp_path: Path) -> None:
    files = PrivateFiles(str(tmp_path))
    tables = {
        "run1/fetch_lead_contexts/lead_contexts.parquet": pd.DataFrame({"lead_id": ["a", "b"], "phone": ["1", "2"]}),
        "run2/fetch_lead_contexts/lead_contexts.parquet": pd.DataFrame({"lead_id": ["b"], "phone": ["2"]}),
        "run2/other.parquet": pd.DataFrame({"day": ["2026-11-23"], "sent": [1]}),
    }
    for name, table in tables.items():
        path = files.path(name)
        files.write(path, b"")
        table.to_parquet(path, index=False)
    assert files.forget_lead("a") == 1
    assert files.forget_lead("a") == 0
    left = [pd.read_parquet(files.path(name)).to_dict("list") for name in tables]
    assert left == [
        {"lead_id": ["b"], "phone": ["2"]},
        {"lead_id": ["b"], "phone": ["2"]},
        {"day": ["2026-11-23"], "sent": [1]},
    ]


def test_a_table_of_one_lead_keeps_its_columns_when_it_is_emptied(tmp_path: Path) -> None:
    files = PrivateFiles(str(tmp_path))
    of_one_lead, after_it = files.path("run1/lead_contexts.parquet"), files.path("run2/lead_contexts.parquet")
    for path, leads in ((of_one_lead, ["a"]), (after_it, ["a", "b"])):
        files.write(path, b"")
        pd.DataFrame({"lead_id": leads, "retry_count": [0] * len(leads)}).to_parquet(path, index=False)
    assert files.forget_lead("a") == 2
    assert files.forget_lead("a") == 0
    assert pd.read_parquet(of_one_lead).dtypes.astype(str).to_dict() == {"lead_id": "str", "retry_count": "int64"}
    assert list(pd.read_parquet(after_it)["lead_id"]) == ["b"]


def test_drafts_of_dead_processes_are_deleted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "DRAFT_SECONDS", 0.2)
    files = PrivateFiles(str(tmp_path))
    drafts = [Path(files.path(f"run/{name}.parquet.{number}.part")) for number, name in enumerate(("old", "fresh"))]
    for draft in drafts:
        draft.parent.mkdir(exist_ok=True)
        draft.write_bytes(b"PAR1 Zen")
    os.utime(drafts[0], (0, 0))
    assert files.forget_lead("a") == 2
    assert not any(draft.exists() for draft in drafts)


def test_a_draft_that_becomes_a_file_while_it_is_waited_for_is_visited_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = PrivateFiles(str(tmp_path))
    path = files.path("run/lead_contexts.parquet")
    files.write(path, b"")
    pd.DataFrame({"lead_id": ["a", "b"]}).to_parquet(path, index=False)
    draft = Path(f"{path}.4711.part")
    Path(path).replace(draft)
    monkeypatch.setattr("time.sleep", lambda seconds: draft.replace(path))
    assert files.forget_lead("a") == 1
    assert list(pd.read_parquet(path)["lead_id"]) == ["b"]


def test_a_file_that_cannot_be_read_is_named_and_keeps_no_other_from_being_visited(tmp_path: Path) -> None:
    files = PrivateFiles(str(tmp_path))
    broken, sound = files.path("run1/a.parquet"), files.path("run2/b.parquet")
    files.write(broken, b"no table at all")
    files.write(sound, b"")
    pd.DataFrame({"lead_id": ["a"]}).to_parquet(sound, index=False)
    with pytest.raises(UnreachableFilesError, match=r"1 output files may still hold lead a.*run1/a\.parquet"):
        files.forget_lead("a")
    assert pd.read_parquet(sound).empty
