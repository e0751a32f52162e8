"""E-mail through the whole send path: real queue, real model over HTTP, real SMTP."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from campaign_pipeline_tests.adapters.mail_server import HANG_UP, MailServer, mail_server
from campaign_pipeline_tests.defs.test_shard import Play, Rig, Watch, play
from campaign_pipeline_tests.factories import World

__all__ = ["play"]

Scenario = Callable[[Rig, MailServer, UUID], Awaitable[None]]
BODY = "Olá, Ana! Vi que a sua padaria cresceu. Podemos conversar por dez minutos?"


def with_mail(
    world: World, play: Play, scenario: Scenario, *rules: str, server: MailServer | None = None, **lead: Any
) -> None:
    """Run a scenario with a mailbox on a mail server and one due message to a lead."""
    served = server or MailServer()

    async def inside(rig: Rig) -> None:
        async with mail_server(served):
            workspace = world.workspace()
            config = {
                "host": "127.0.0.1",
                "port": served.port,
                "security": "none",
                "from_address": "vendas@acme.example",
                "unsubscribe_url": "https://acme.example/sair?m={message_id}",
            }
            inbox = world.inbox(
                workspace, provider="email", provider_type="smtp", instance_token=None, provider_config=config
            )
            run = world.run(world.campaign(workspace, inbox, split_messages=True))
            who = world.lead(workspace, **{"email": "ana@example.com", **lead})
            await scenario(rig, served, world.due_message(run, who))

    play(inside, *rules)


def test_subject_and_body_are_written_in_one_request_and_kept_together(world: World, play: Play) -> None:
    async def scenario(rig: Rig, server: MailServer, message: UUID) -> None:
        await rig.batch()
        assert rig.generations() == 1
        row = rig.message(message)
        (mail,) = server.taken
        assert row["status"] == "sent"
        assert mail["Subject"] == row["subject"] == "Ana, uma ideia rápida"
        plain = mail.get_body(("plain",))
        assert plain is not None
        assert plain.get_content().replace("\r\n", "\n").startswith(row["generated_message"])
        assert "{" not in row["generated_message"]
        assert row["provider_message_id"] == mail["Message-ID"].strip("<>")
        assert row["provider_response"]["reply"].startswith("2.0.0 Ok: queued")
        assert f"m={message}" in mail["List-Unsubscribe"]

    with_mail(world, play, scenario)


def test_a_mail_is_sent_whole_with_a_conversation_in_its_own_channel(world: World, play: Play) -> None:
    async def scenario(rig: Rig, server: MailServer, message: UUID) -> None:
        lead = rig.message(message)["lead_id"]
        chat = world.insert("conversations", lead_id=lead, workspace_id=world.value("SELECT id FROM workspaces"))
        await rig.batch()
        row = rig.message(message)
        assert rig.parts(message) == ["sent"]
        assert (row["address"], row["phone_normalized"]) == ("ana@example.com", None)
        assert row["conversation_id"] != chat, "a chat without a channel is one of WhatsApp"
        made = world.one("SELECT * FROM conversations WHERE id = %s", row["conversation_id"])
        assert (made["channel"], made["contact_phone"]) == ("email", "ana@example.com")

    with_mail(world, play, scenario)


def test_the_address_may_lie_in_the_crms_custom_field(world: World, play: Play) -> None:
    async def scenario(rig: Rig, server: MailServer, message: UUID) -> None:
        named = world.insert("custom_fields", name="E-mail")
        lead = rig.message(message)["lead_id"]
        world.insert("lead_custom_values", lead_id=lead, custom_field_id=named, value=" Ana.Souza@Example.com ")
        await rig.batch()
        assert server.recipients == ["Ana.Souza@example.com"]

    with_mail(world, play, scenario, email=None)


@pytest.mark.parametrize(
    ("email", "code"), [(None, "no_email"), ("ana", "invalid_email"), ("a@b c.d", "invalid_email")]
)
def test_a_lead_without_a_usable_address_fails_before_anything_is_paid(
    world: World, play: Play, email: str | None, code: str
) -> None:
    async def scenario(rig: Rig, server: MailServer, message: UUID) -> None:
        await rig.batch()
        assert (rig.message(message)["status"], rig.message(message)["error_code"]) == ("failed", code)
        assert rig.generations() == server.connections - 1 == 0, "one connection asked whether the mailbox can send"

    with_mail(world, play, scenario, email=email)


def test_a_deferred_mail_is_sent_later_with_the_same_text_subject_and_id(world: World, play: Play) -> None:
    answers = iter(["451 4.7.1 Greylisted"])
    server = MailServer({"rcpt": lambda: next(answers, "250 Ok")})

    async def scenario(rig: Rig, server: MailServer, message: UUID) -> None:
        await rig.batch()
        row = rig.message(message)
        assert (row["status"], row["error_code"], row["retry_count"]) == ("pending", "greylisted", 1)
        assert row["next_attempt_at"] - world.value("SELECT campaign_now()") > timedelta(minutes=4)
        subject = row["subject"]
        rig.later(minutes=20)
        await rig.batch()
        assert rig.message(message)["status"] == "sent"
        assert [mail["Subject"] for mail in server.taken] == [subject]
        assert rig.generations() == 1

    with_mail(world, play, scenario, server=server)


def test_a_mail_whose_answer_is_lost_is_unknown_and_never_resent_automatically(world: World, play: Play) -> None:
    server = MailServer({"data": lambda: HANG_UP})

    async def scenario(rig: Rig, server: MailServer, message: UUID) -> None:
        await rig.batch()
        row = rig.message(message)
        assert (row["status"], row["error_class"]) == ("failed", "unknown")
        rig.later(days=1)
        assert await rig.batch() == []
        assert len(server.taken) == 1

    with_mail(world, play, scenario, server=server)


def test_a_mailbox_that_does_not_exist_is_never_written_to_again(world: World, play: Play) -> None:
    server = MailServer({"rcpt": lambda: "550 5.1.1 <ana@example.com>: User unknown"})

    async def scenario(rig: Rig, server: MailServer, message: UUID) -> None:
        await rig.batch()
        row = rig.message(message)
        assert (row["status"], row["error_class"], row["error_code"]) == ("failed", "permanent", "hard_bounce")
        assert "ana@example.com" not in row["error_message"]
        again = world.due_message(row["run_id"], row["lead_id"])
        await rig.batch()
        assert (rig.message(again)["status"], rig.message(again)["error_code"]) == ("skipped", "suppressed")
        assert server.asked["rcpt"] == 1

    with_mail(world, play, scenario, server=server)


def test_a_mailbox_that_cannot_log_in_pauses_itself_and_writes_nothing(world: World, play: Play) -> None:
    async def scenario(rig: Rig, server: MailServer, message: UUID) -> None:
        world.do(
            "UPDATE instances SET instance_token = 'wrong', "
            'provider_config = provider_config || \'{"username": "v"}\''
        )
        await rig.batch()
        assert (rig.pause()["scope"], rig.pause()["code"]) == ("inbox", "bad_credentials")
        assert rig.message(message)["status"] == "pending"
        assert rig.generations() == 0

    with_mail(world, play, scenario, server=MailServer(password="right"))


def test_a_stored_text_without_a_subject_gets_its_first_sentence_and_keeps_it(world: World, play: Play) -> None:
    async def scenario(rig: Rig, server: MailServer, message: UUID) -> None:
        world.do("UPDATE campaign_messages SET generated_message = %s", BODY)
        await rig.batch()
        assert rig.generations() == 0
        assert server.taken[0]["Subject"] == rig.message(message)["subject"] == "Olá, Ana!"

    with_mail(world, play, scenario)


def test_a_model_that_takes_no_schema_is_asked_for_the_same_in_words(world: World, play: Play) -> None:
    schemas: list[bool] = []

    async def scenario(rig: Rig, server: MailServer, message: UUID) -> None:
        await rig.batch(Watch(before_generation=lambda prompt: schemas.append(prompt.json_schema is not None)))
        assert rig.message(message)["status"] == "sent"
        assert schemas == [True, False]
        assert world.all("SELECT * FROM campaign_pauses") == []

    with_mail(world, play, scenario, "generation:model_404:times=1")


@pytest.mark.parametrize("fault", ["fenced", "quoted"])
def test_text_around_a_models_json_does_not_reach_the_lead(world: World, play: Play, fault: str) -> None:
    async def scenario(rig: Rig, server: MailServer, message: UUID) -> None:
        await rig.batch()
        assert server.taken[0]["Subject"] == "Ana, uma ideia rápida"
        assert rig.message(message)["generated_message"].isascii() is False
        assert "subject" not in rig.message(message)["generated_message"]

    with_mail(world, play, scenario, f"generation:{fault}")
