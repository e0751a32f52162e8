"""What providers really answered in public bug reports, played to whole batches: copies and suppressions counted."""

# ruff: noqa: F811 (the fixture is imported, and named by the tests)

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from campaign_pipeline.sandbox import Behaviour, Fault, Kind
from campaign_pipeline_tests.adapters.wire import Playback, response, serving
from campaign_pipeline_tests.defs.test_shard import Play, Rig, inbox_of, play  # noqa: F401
from campaign_pipeline_tests.factories import World

CASES = Path(__file__).parent.parent / "cases"


def case(number: str) -> Mapping[str, Any]:
    """What a kept case has as its input."""
    (file,) = CASES.glob(f"{number}-*.json")
    return dict(orjson.loads(file.read_bytes())["input"])


def scripted(answer: Mapping[str, Any], **more: Any) -> Behaviour:
    """Every send is answered like this."""
    return Behaviour(faults=(Fault(Kind.SEND, "scripted", status=answer["status"], body=answer["body"], **more),))


# Sent, and not stored -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["01", "04"])
def test_what_was_sent_and_not_stored_by_its_provider_is_sent_once(world: World, play: Play, number: str) -> None:
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
def test_what_may_have_been_sent_and_not_stored_is_looked_up_and_never_sent_again(
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


# What a provider quotes back ------------------------------------------------------------------------------------------


def test_what_a_provider_repeats_of_a_lead_stays_out_of_reasons_and_is_hidden_in_the_ledger(
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
