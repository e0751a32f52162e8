"""Provider answers from public bug reports, played to whole batches: duplicates and suppressions are counted."""

# ruff: noqa: F811 (the fixture is imported, and named by the tests)

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from campaign_pipeline.adapters.queue import Queue
from campaign_pipeline.sandbox import Behaviour, Fault, InstanceState, Kind
from campaign_pipeline_tests.adapters.mail_server import MailServer, mail_server
from campaign_pipeline_tests.adapters.wire import Playback, response, serving
from campaign_pipeline_tests.defs.test_shard import Play, Rig, inbox_of, play  # noqa: F401
from campaign_pipeline_tests.factories import World

CASES = Path(__file__).parent.parent / "cases"


def case(number: str) -> Mapping[str, Any]:
    """Return the input of a stored case."""
    (file,) = CASES.glob(f"{number}-*.json")
    return dict(orjson.loads(file.read_bytes())["input"])


def scripted(answer: Mapping[str, Any], **more: Any) -> Behaviour:
    """Answer every send like this."""
    return Behaviour(faults=(Fault(Kind.SEND, "scripted", status=answer["status"], body=answer["body"], **more),))


# Sent, and not stored -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["01", "04"])
def test_a_part_that_its_provider_sent_but_did_not_store_is_sent_once(world: World, play: Play, number: str) -> None:
    message = world.due_message(world.run())

    async def scenario(rig: Rig) -> None:
        rig.sandbox.set_behaviour(scripted(case(number)["send answer"], accepts=True, saves=False))
        for _ in range(3):
            await rig.batch()
            rig.later(minutes=40)
        row = rig.message(message)
        assert (row["status"], row["provider_message_id"], row["retry_count"]) == ("sent", None, 0)
        assert (len(rig.arrived()), rig.sends()) == (1, 1)
        assert world.value("SELECT count(*) FROM messages") == 1, "it stands in the chat"

    play(scenario)


@pytest.mark.parametrize(("saves", "status"), [(True, "sent"), (False, "failed")])
def test_a_part_that_may_be_sent_but_not_stored_is_looked_up_and_never_resent(
    world: World,
    play: Play,
    saves: bool,
    status: str,
) -> None:
    _, inbox, run = inbox_of(world)

    async def scenario(rig: Rig) -> None:
        await rig.a_message_surely_sent(inbox)  # by which the search is known to work: a miss would prove something
        message = world.due_message(run)
        rig.sandbox.set_behaviour(scripted(case("05")["send answer"], accepts=True, saves=saves))
        for _ in range(4):
            await rig.batch()
            rig.later(minutes=40)
        row = rig.message(message)
        assert (row["status"], row["error_class"]) == (status, None if saves else "unknown")
        assert rig.sends(str(row["generated_message"])) == 1

    play(scenario)


def test_an_answer_that_no_row_knows_is_never_followed_by_a_second_copy(world: World, play: Play) -> None:
    _, inbox, run = inbox_of(world)
    said = {"status": 400, "body": {"response": {"message": ["RangeError: 429 at main.js:429, disconnected"]}}}

    async def scenario(rig: Rig) -> None:
        await rig.a_message_surely_sent(inbox)
        message = world.due_message(run)
        rig.sandbox.set_behaviour(scripted(said, accepts=True, saves=False))
        for _ in range(4):
            await rig.batch()
            rig.later(minutes=40)
        row = rig.message(message)
        assert (row["status"], row["error_class"], row["error_code"]) == ("failed", "unknown", "unrecognised_answer")
        assert rig.sends(str(row["generated_message"])) == 1
        assert world.value("SELECT count(*) FROM campaign_pauses") == 0

    play(scenario)


# One recipient, or the inbox ------------------------------------------------------------------------------------------


def phone_of(world: World, message: Any) -> str:
    query = "SELECT l.phone FROM leads l JOIN campaign_messages m ON m.lead_id = l.id WHERE m.id = %s"
    return re.sub(r"\D", "", world.value(query, message))


def test_one_recipients_missing_keys_stop_nobody_else_and_the_run_ends(world: World, play: Play) -> None:
    poisoned, *others = world.due_messages(run := world.run(), 40)

    async def scenario(rig: Rig) -> None:
        answer = case("06")["first lead's answer"]
        rig.sandbox.set_behaviour(scripted(answer, phone=phone_of(world, poisoned)))
        await rig.batch()
        assert rig.statuses() == {"sent": 39, "pending": 1}
        assert world.value("SELECT count(*) FROM campaign_pauses") == 0
        await rig.until_quiet()
        for _ in range(3):
            rig.later(minutes=40)
            await rig.batch()
        row = rig.message(poisoned)
        assert (row["status"], row["error_class"], row["error_code"]) == ("failed", "exhausted", "no_keys")
        assert len(rig.arrived()) == len(others)
        await Queue(world.url).close_runs()
        assert world.value("SELECT status FROM campaign_runs WHERE id = %s", run) == "completed"

    play(scenario)


CLOSED = {"status": 400, "body": {"response": {"message": ["Error: Connection Closed"]}}}


def test_words_of_one_recipient_do_not_pause_an_inbox_whose_state_is_open(world: World, play: Play) -> None:
    strange, *_ = world.due_messages(world.run(), 6)

    async def scenario(rig: Rig) -> None:
        rig.sandbox.set_behaviour(scripted(CLOSED, phone=phone_of(world, strange)))
        for _ in range(5):
            await rig.batch()
            rig.later(minutes=40)
        assert rig.statuses() == {"sent": 5, "failed": 1}
        assert rig.message(strange)["error_class"] == "exhausted"
        assert world.value("SELECT count(*) FROM campaign_pauses") == 0

    play(scenario)


def test_two_recipients_pause_it_and_the_probe_is_a_third_one_after_which_the_rest_goes_in_order(
    world: World, play: Play
) -> None:
    first, second, *others = world.due_messages(world.run(), 8)
    world.do(
        "UPDATE campaign_messages SET scheduled_at = scheduled_at - interval '1 minute' * %s WHERE id = %s", 9, first
    )
    world.do(
        "UPDATE campaign_messages SET scheduled_at = scheduled_at - interval '1 minute' * %s WHERE id = %s", 8, second
    )
    for minutes, message in enumerate(reversed(others)):
        world.do(
            "UPDATE campaign_messages SET scheduled_at = scheduled_at - interval '1 minute' * %s WHERE id = %s",
            minutes,
            message,
        )

    async def scenario(rig: Rig) -> None:
        rules = [scripted(CLOSED, phone=phone_of(world, message)).faults[0] for message in (first, second)]
        rig.sandbox.set_behaviour(Behaviour(faults=tuple(rules)))
        await rig.batch(concurrency=1)
        pause = rig.pause()
        assert (pause["scope"], pause["code"]) == ("inbox", "inbox_disconnected")
        assert rig.statuses() == {"pending": 8}
        rig.later(minutes=2)
        await rig.batch(concurrency=1)  # the probe
        assert rig.statuses() == {"pending": 7, "sent": 1}, "neither of the two was tried again"
        assert world.value("SELECT count(*) FROM campaign_pauses") == 0
        for _ in range(12):  # overdue messages are spread over some minutes
            rig.later(minutes=1)
            await rig.batch(concurrency=1)
        sent = [entry["number"] for entry in rig.sandbox.record.sent()]
        due = [phone_of(world, message) for message in others]
        assert sent[1:] == [phone for phone in due if phone != sent[0]]

    play(scenario)


# Unrecognised answers -------------------------------------------------------------------------------------------------


def test_unrecognised_answers_pause_an_inbox_before_its_queue_is_lost(world: World, play: Play) -> None:
    world.due_messages(world.run(), 12)

    async def scenario(rig: Rig) -> None:
        await rig.batch(concurrency=1)
        assert rig.statuses() == {"failed": 3, "pending": 9}
        assert {row["error_class"] for row in world.messages() if row["status"] == "failed"} == {"unknown"}
        pause = rig.pause()
        assert (pause["scope"], pause["code"]) == ("inbox", "unrecognised_answers")
        assert rig.sends() == 3
        rig.later(minutes=70)
        await rig.batch(concurrency=1)
        assert rig.sends() <= 4, "one probe an hour"

    play(scenario, "send:other_400", CAMPAIGN_MAX_UNRECOGNISED_ANSWERS="3")


def test_a_success_between_them_lets_an_inbox_go_on(world: World, play: Play) -> None:
    run, now = world.run(), world.value("SELECT campaign_now()")
    for no in range(12):
        world.due_message(run, generated_message=f"Mensagem {no:02}.", scheduled_at=now - timedelta(minutes=30 - no))

    async def scenario(rig: Rig) -> None:
        await rig.batch(concurrency=1)
        assert rig.statuses() == {"failed": 10, "sent": 2}
        assert world.value("SELECT count(*) FROM campaign_pauses") == 0

    succeeding = {4, 9}  # never five failures one after the other
    rules = [f"send:other_400:text=Mensagem {no:02}." for no in range(12) if no not in succeeding]
    play(scenario, *rules, CAMPAIGN_MAX_UNRECOGNISED_ANSWERS="5")


def test_unrecognised_answers_pause_a_model(world: World, play: Play, environment: pytest.MonkeyPatch) -> None:
    world.due_messages(world.run(), 8)
    asked: list[int] = []

    def answers() -> Iterator[bytes]:
        while True:
            asked.append(1)
            yield response(b'{"odd": true}', status="418 I'm a teapot")

    async def scenario(rig: Rig) -> None:
        async with serving(Playback(answers())) as place:
            environment.setenv("OPENROUTER_BASE_URL", f"http://{place}/api/v1")
            await rig.batch(concurrency=1)
        assert (rig.pause()["scope"], rig.pause()["code"]) == ("model", "unrecognised_answers")
        assert len(asked) == 5
        assert rig.statuses() == {"pending": 8}, "nothing was burnt"

    play(scenario)


# Connecting -----------------------------------------------------------------------------------------------------------


def test_an_inbox_that_connects_is_waited_for_and_goes_on_at_its_own_pace(world: World, play: Play) -> None:
    _, _, run = inbox_of(world)
    world.due_messages(run, 3)

    async def scenario(rig: Rig) -> None:
        rig.sandbox.set_behaviour(Behaviour(instances={"loja": InstanceState.CONNECTING}))
        await rig.batch()
        assert rig.statuses() == {"pending": 3}
        assert {row["error_code"] for row in world.messages()} == {"connecting"}
        for table in ("campaign_pauses", "campaign_pace_state"):
            assert world.value(f"SELECT count(*) FROM {table}") == 0, table
        rig.sandbox.set_behaviour(Behaviour())
        await rig.batch()
        assert rig.statuses() == {"sent": 3}

    play(scenario, CAMPAIGN_MAX_INLINE_WAIT_SECONDS="0")


# Mail servers that refuse the sender ----------------------------------------------------------------------------------

MAIL_CASES = [
    *(("50", None), ("53", None), ("54", None), ("55", None), ("56", None), ("58", None)),
    *(("59", index) for index in range(8)),
]


def reply_of(number: str, index: int | None) -> tuple[str, str]:
    """Return the stage of a stored case, and the server's reply there."""
    said = case(number)
    if index is None:
        stage, reply = said["stage"], said["reply"]
    else:
        stage, _, reply = orjson.loads(said["reply"])[index].partition(" ")
    return ("data" if stage in {"BODY", "DATA"} else stage.lower()), re.sub(r" \([\w/-]+#\d+\)$", "", reply)


@pytest.mark.parametrize(("number", "index"), MAIL_CASES)
def test_a_mail_server_that_refuses_the_sender_costs_no_lead_its_message(
    world: World, play: Play, number: str, index: int | None
) -> None:
    stage, reply = reply_of(number, index)
    about_the_text = "its content" in reply

    async def scenario(rig: Rig) -> None:
        said = reply.encode("ascii", "replace").decode().replace("\n550 ", "\r\n550 ")
        server = MailServer({stage: lambda: said})
        async with mail_server(server):
            workspace = world.workspace()
            place = {"host": "127.0.0.1", "port": server.port, "security": "none", "from_address": "vendas@example.org"}
            inbox = world.inbox(
                workspace, provider="email", provider_type="smtp", instance_token=None, provider_config=place
            )
            run = world.run(world.campaign(workspace, inbox))
            for who in range(4):
                world.due_message(run, world.lead(workspace, email=f"ana{who}@example.com"))
            await rig.batch(concurrency=1)
            if about_the_text:
                assert rig.statuses() == {"failed": 4}
            else:
                assert rig.statuses() == {"pending": 4}
                assert rig.pause()["scope"] == "inbox"
                assert server.asked[stage] <= 2, "it is not asked for each lead"
            assert world.value("SELECT count(*) FROM campaign_suppressions") == 0
            server.answers.clear()  # the day is over, or somebody fixed it
            rig.later(hours=30)
            world.do("UPDATE campaign_messages SET next_attempt_at = campaign_now()")  # else too old: no batch ran
            for _ in range(8):
                await rig.batch(concurrency=1)
                rig.later(minutes=5)
            assert rig.statuses() == ({"failed": 4} if about_the_text else {"sent": 4})

    play(scenario, CAMPAIGN_MAX_INLINE_WAIT_SECONDS="1")


def test_only_a_refusal_with_a_recipients_code_puts_an_address_on_the_list(world: World, play: Play) -> None:
    said = {"ana0@example.com": "550 5.1.1 User unknown", "ana1@example.com": "550 No such user here"}

    async def scenario(rig: Rig) -> None:
        replies = iter(said.values())
        server = MailServer({"rcpt": lambda: next(replies)})
        async with mail_server(server):
            workspace = world.workspace()
            place = {"host": "127.0.0.1", "port": server.port, "security": "none", "from_address": "vendas@example.org"}
            inbox = world.inbox(
                workspace, provider="email", provider_type="smtp", instance_token=None, provider_config=place
            )
            run = world.run(world.campaign(workspace, inbox))
            for email in said:
                world.due_message(run, world.lead(workspace, email=email))
            await rig.batch(concurrency=1)
            assert rig.statuses() == {"failed": 2}
            assert {row["error_code"] for row in world.messages()} == {"hard_bounce", "unknown_recipient"}
            assert world.value("SELECT count(*) FROM campaign_suppressions") == 1

    play(scenario)


# Meta's codes ---------------------------------------------------------------------------------------------------------


def cloud_run(world: World) -> tuple[Any, Any]:
    """An inbox of the Cloud API and a run through it, whose leads all wrote just now."""
    workspace = world.workspace()
    config = {"phone_number_id": "106540352242922"}
    inbox = world.inbox(workspace, provider_type="cloud_api", provider_config=config)
    return inbox, world.run(world.campaign(workspace, inbox, template_name="oi", template_language="pt_BR"))


def test_a_number_whose_name_is_not_approved_is_paused_at_its_first_answer(world: World, play: Play) -> None:
    _, run = cloud_run(world)
    world.due_messages(run, 4)

    async def scenario(rig: Rig) -> None:
        rig.sandbox.set_behaviour(scripted({"status": 400, "body": case("60")["answer 400"]}))
        await rig.batch(concurrency=1)
        assert (rig.pause()["scope"], rig.pause()["code"]) == ("inbox", "display_name_not_approved")
        assert (rig.statuses(), rig.sends()) == ({"pending": 4}, 1)

    play(scenario)


@pytest.mark.parametrize("index", [0, 1])
def test_a_recipient_that_this_account_may_not_write_to_is_refused_once(world: World, play: Play, index: int) -> None:
    _, run = cloud_run(world)
    message = world.due_message(run)

    async def scenario(rig: Rig) -> None:
        rig.sandbox.set_behaviour(scripted({"status": 400, "body": case("62")["answers 400"][index]}))
        await rig.batch()
        assert (rig.message(message)["status"], rig.message(message)["error_class"]) == ("failed", "permanent")
        assert rig.sends() == 1

    play(scenario)


def test_a_lead_known_only_by_its_business_scoped_id_is_written_to(world: World, play: Play) -> None:
    user = case("64")["lead.phone"]
    _, run = cloud_run(world)
    workspace = world.value("SELECT id FROM workspaces")
    message = world.due_message(run, world.lead(workspace, phone=user))

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        row = rig.message(message)
        assert (row["status"], row["address"], row["address_kind"]) == ("sent", user, "bsuid")

    play(scenario)


# Quoted personal data -------------------------------------------------------------------------------------------------


def test_a_leads_data_in_an_answer_is_in_no_reason_and_hidden_in_the_ledger(
    world: World,
    play: Play,
) -> None:
    message = world.due_message(world.run())
    world.do("UPDATE leads SET email = 'ana.souza@example.com', company = 'Padaria do Bairro'")

    async def scenario(rig: Rig) -> None:
        lead = world.one("SELECT * FROM leads")
        quoted = f"Invalid: Olá, {lead['client_name']} <{lead['email']}>, {lead['phone']}, our address is odd"
        said = {"status": 400, "body": {"response": {"message": [quoted]}}}
        rig.sandbox.set_behaviour(scripted(said))
        (report,) = await rig.batch()
        everywhere = (
            str(report.to_json())
            + str(world.all("SELECT * FROM campaign_logs"))
            + str(world.all("SELECT error_message, last_error FROM campaign_messages"))
            + str(world.all("SELECT * FROM campaign_pauses"))
        )
        kept = str(world.value("SELECT provider_response FROM campaign_message_parts"))
        assert "our address is odd" in kept, "the provider's words stay in the database"
        for value in (str(lead["client_name"]), str(lead["email"]), str(lead["phone"])):
            assert value not in everywhere
            assert value not in kept
        assert "Invalid" not in everywhere
        assert rig.message(message)["error_code"] == "unrecognised_answer"

    play(scenario)


def test_a_model_that_repeats_the_prompt_leaves_nothing_of_it_in_events_logs_and_pauses(
    world: World,
    play: Play,
    environment: pytest.MonkeyPatch,
) -> None:
    message = world.due_message(world.run())
    world.do("UPDATE leads SET email = 'ana.souza@example.com'")

    async def scenario(rig: Rig) -> None:
        lead = world.one("SELECT * FROM leads")
        prompt = f"Rejected prompt: Nome: {lead['client_name']}, {lead['email']}, {lead['phone']}"
        body = orjson.dumps({"error": {"code": 400, "message": prompt, "metadata": {"error_type": "invalid_prompt"}}})
        async with serving(Playback(iter([response(body, status="400 Bad Request")]))) as place:
            environment.setenv("OPENROUTER_BASE_URL", f"http://{place}/api/v1")
            (report,) = await rig.batch()
        told = str(report.to_json()) + str(rig.message(message)) + str(world.all("SELECT * FROM campaign_pauses"))
        logs = str(world.all("SELECT message, details FROM campaign_logs"))
        assert "Rejected prompt" not in told
        assert "Rejected prompt" in logs, "the provider's words stay in the database"
        for value in (str(lead["client_name"]), str(lead["email"])):
            assert value not in logs

    play(scenario)
