"""Texts before they are sent: previews, reviews, test sends."""

from asyncio import to_thread
from datetime import UTC, timedelta
from pathlib import Path
from uuid import UUID

import dagster as dg
import pytest
from click.testing import CliRunner

from campaign_pipeline.adapters.doctor import Doctor
from campaign_pipeline.adapters.findings import State
from campaign_pipeline.adapters.queue_connection import connect_rows
from campaign_pipeline.adapters.reviews import Decision
from campaign_pipeline.campaigns.finding import find_campaign
from campaign_pipeline.cli import cli
from campaign_pipeline.definitions import defs
from campaign_pipeline.defs.trial import TrialFailed, decide, preview, send_test, texts_to_review
from campaign_pipeline_tests.defs.test_shard import Play, Rig, inbox_of, play
from campaign_pipeline_tests.factories import World

__all__ = ["play"]  # the fixture

HOUR, QUARTER = timedelta(hours=1), timedelta(minutes=15)


def reviewed(world: World, review: str, first: int | None = None, count: int = 3) -> tuple[UUID, list[UUID]]:
    """A run of a campaign with review, with due messages."""
    _, _, run = inbox_of(world)
    config = world.value("SELECT config_id FROM campaign_runs WHERE id = %s", run)
    world.insert("campaign_settings", config_id=config, review=review, review_first=first)
    return run, world.due_messages(run, count)


def test_a_preview_sends_nothing_and_leaves_the_queue_as_it_was(world: World, play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        _, _, run = inbox_of(world)
        world.due_messages(run, 3)
        before = world.messages()
        shown = await to_thread(preview, world.url, str(run), 2, keep=False)
        assert [bool(each.written.parts) for each in shown] == [True, True]
        assert rig.generations() == 2
        assert rig.arrived() == []
        assert world.messages() == before
        assert world.all("SELECT 1 FROM campaign_message_parts") == []

    play(scenario)


def test_a_kept_preview_is_what_is_sent(world: World, play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        _, _, run = inbox_of(world)
        message = world.due_message(run)
        (shown,) = await to_thread(preview, world.url, str(run), 5, keep=True)
        assert shown.kept
        assert rig.message(message)["status"] == "pending"
        assert rig.message(message)["ai_cost_usd"] > 0
        await rig.batch()
        assert rig.message(message)["status"] == "sent"
        assert rig.message(message)["generated_message"] == "\n\n".join(shown.written.parts)
        assert rig.generations() == 1

    play(scenario)


def test_no_batch_sends_a_text_before_its_approval(world: World, play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        run, _ = reviewed(world, "all")
        await rig.batch()
        assert rig.arrived() == []
        assert {row["error_code"] for row in world.messages()} == {"awaiting_review"}
        rows = (await to_thread(texts_to_review, world.url, str(run))).rows
        assert [row["id"] for row in rows] == [str(row["id"]) for row in world.messages()]
        approve, reject, wait = (row["id"] for row in rows)
        rig.later(hours=3)
        decisions = [Decision(approve, "approved"), Decision(reject, "rejected")]
        assert await to_thread(decide, world.url, str(run), decisions, "Ana") == {approve, reject}
        await rig.batch()
        assert {str(row["id"]): row["status"] for row in world.messages()} == {
            approve: "sent",
            reject: "skipped",
            wait: "pending",
        }
        assert rig.generations() == 3
        assert world.wrong_counters() == []

    play(scenario)


def test_texts_that_wait_for_review_are_a_concern_per_run_until_they_are_decided(world: World, play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        run, messages = reviewed(world, "all", count=1)
        await rig.batch()
        with Doctor(world.url) as doctor:
            (concern,) = doctor.concerns(QUARTER)
            story = doctor.story(messages[0], HOUR, UTC)
            assert (concern.key, concern.messages) == (f"awaiting_review:{run}", 1)
            assert concern.step.startswith("`campaign-pipeline review ")
            assert story.summary == "Waits for a person to approve its text, or the first texts of its run."
            assert story.next_step.startswith("Approve its text with `campaign-pipeline review`")
            finding = {found.what: found for found in doctor.findings(HOUR, QUARTER)}["reviews"]
            assert (finding.state, finding.found) == (State.STOPS, "1 message of Hoje waits for approval")
            (row,) = (await to_thread(texts_to_review, world.url, str(run))).rows
            await to_thread(decide, world.url, str(run), [Decision(row["id"], "approved")], "Ana")
            assert doctor.concerns(QUARTER) == []

    play(scenario)


def test_of_first_n_only_those_are_written_and_the_rest_follows_their_approval(world: World, play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        run, _ = reviewed(world, "first_n", 1)
        await rig.batch()
        assert rig.generations() == 0
        (row,) = (await to_thread(texts_to_review, world.url, str(run))).rows
        assert rig.generations() == 1
        await to_thread(decide, world.url, str(run), [Decision(row["id"], "approved")], "Ana")
        await rig.until_quiet()
        assert {row["status"] for row in world.messages()} == {"sent"}

    play(scenario)


def test_an_edited_text_is_checked_like_any_other_and_sent(world: World, play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        run, (message,) = reviewed(world, "all", count=1)
        await to_thread(texts_to_review, world.url, str(run))
        with pytest.raises(TrialFailed, match="cannot be sent"):
            await to_thread(decide, world.url, str(run), [Decision(str(message), "approved", "Olá [nome]!")], "Ana")
        assert world.all("SELECT 1 FROM campaign_reviews") == []
        text = "Olá! Podemos conversar na terça?"
        await to_thread(decide, world.url, str(run), [Decision(str(message), "approved", text)], "Ana")
        await rig.batch()
        assert rig.message(message)["status"] == "sent"
        assert rig.arrived() == [text]
        assert rig.generations() == 1

    play(scenario)


def test_a_review_on_a_terminal_asks_for_each_text(
    world: World, play: Play, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf 'Podemos conversar na terça?' > \"$1\"\n", encoding="utf-8")
    editor.chmod(0o700)
    environment.setenv("EDITOR", str(editor))
    environment.delenv("VISUAL", raising=False)
    environment.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)

    async def scenario(rig: Rig) -> None:
        run, messages = reviewed(world, "all", count=5)
        typed = ["review", str(run), "--by", "ana"]
        first = await to_thread(CliRunner().invoke, cli, typed, input="x\na\ne\nr\ns\nq\n")
        assert first.exit_code == 0, first.output
        assert "a approve, e edit, r reject, s skip for now, q quit" in first.output
        assert "Decided: 3 of 3." in first.output
        await rig.batch()
        statuses = [rig.message(message)["status"] for message in messages]
        assert statuses == ["sent", "sent", "skipped", "pending", "pending"]
        assert rig.message(messages[1])["generated_message"] == "Podemos conversar na terça?"
        assert {row["decided_by"] for row in world.all("SELECT decided_by FROM campaign_reviews")} == {"ana"}

    play(scenario)


def test_texts_are_looked_at_and_approved_by_jobs(world: World, play: Play, tmp_path: Path) -> None:
    def work(job: str, op: str, **config: object) -> dg.ExecuteInProcessResult:
        with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
            run_config = {"ops": {op: {"config": config}}}
            return defs.resolve_job_def(job).execute_in_process(run_config=run_config, instance=instance)

    async def scenario(rig: Rig) -> None:
        run, messages = reviewed(world, "all", count=2)
        shown = await to_thread(work, "preview_messages", "write_previews", run=str(run), keep=True)
        (output,) = [event for event in shown.all_events if event.is_successful_output]
        table = output.step_output_data.metadata["texts"]
        assert isinstance(table, dg.TableMetadataValue)
        assert [record.data["kept"] for record in table.records] == [True, True]
        edited = {str(messages[0]): "Podemos conversar na terça?"}
        await to_thread(work, "approve_messages", "decide_texts", run=str(run), by="ana", texts=edited)
        await to_thread(work, "approve_messages", "decide_texts", run=str(run), by="ana", decision="rejected")
        await rig.batch()
        assert [rig.message(message)["status"] for message in messages] == ["sent", "skipped"]
        assert rig.arrived() == ["Podemos conversar na terça?"]
        assert rig.generations() == 2

    play(scenario)


def test_a_test_send_reaches_the_person_and_changes_nothing_else(world: World, play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        _, _, run = inbox_of(world)
        world.due_message(run)
        world.do("UPDATE campaign_configs SET start_time = '03:00', end_time = '03:01', name = 'Hoje'")
        before = (world.messages(), world.all("SELECT * FROM campaign_runs"), world.all("SELECT * FROM messages"))
        with connect_rows(world.url) as connection:
            campaign = find_campaign(connection, "Hoje")
        text = await to_thread(send_test, world.url, campaign, "5511912345678", None)
        assert text.status == "sent"
        assert [entry["number"] for entry in rig.sandbox.record.sent()] == ["5511912345678"]
        assert (
            world.messages(),
            world.all("SELECT * FROM campaign_runs"),
            world.all("SELECT * FROM messages"),
        ) == before
        assert world.all("SELECT 1 FROM campaign_pace_state") == []

    play(scenario)
