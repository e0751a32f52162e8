from decimal import Decimal
from uuid import UUID

from rich.console import Console, RenderableType

from campaign_pipeline.demo.report import RunReport, read_report, read_samples, report_table, sample_panels
from campaign_pipeline_tests.factories import World


def shown(renderable: RenderableType, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        console.print(renderable)
    return console.export_text()


def sent_message(world: World, run: UUID, *parts: str, name: str = "Ana Souza", second: int = 2) -> UUID:
    """A message that was claimed at noon and sent so many seconds later."""
    lead = world.lead(client_name=name, company="Padaria [bold]Real")
    at = f"2026-11-22 12:00:{second:02}+00"
    message = world.due_message(
        run,
        lead,
        status="sent",
        queued_at="2026-11-22 12:00:00+00",
        sent_at=at,
        finished_at=at,
        ai_tokens_used=100,
        ai_cost_usd=Decimal("0.002"),
        ai_generation_time_ms=700,
        send_time_ms=1100,
    )
    for no, text in enumerate(parts, start=1):
        world.insert(
            "campaign_message_parts",
            message_id=message,
            part_no=no,
            text=text,
            status="sent",
            idempotency_key=f"{no}",
            sent_at="2026-01-01",
        )
    return message


def plain_report(name: str = "Novembro", **values: object) -> RunReport:
    usual: dict[str, object] = {
        "total": 10,
        "sent": 7,
        "failed": {"no_phone": 1},
        "skipped": {"too_old": 2},
        "waiting": 0,
        "tokens": 1500,
        "cost_usd": Decimal("0.01"),
        "seconds": 2.0,
        "stages": {"writing": 700.0, "sending": 1100.0},
    }
    return RunReport(name=name, **{**usual, **values})  # type: ignore[arg-type]


def test_a_run_is_recounted_from_its_messages(world: World) -> None:
    run = world.run(name="Novembro", leads_total=6)
    sent_message(world, run, "Oi", second=2)
    sent_message(world, run, "Oi", second=4)
    world.due_message(run, status="failed", error_code="no_phone")
    world.due_message(run, status="failed", error_code="not_on_whatsapp")
    world.due_message(run, status="skipped", error_code="too_old")
    world.due_message(run)
    (report,) = read_report(world.url, [run])
    assert (report.name, report.total, report.sent, report.waiting) == ("Novembro", 6, 2, 1)
    assert report.failed == {"no_phone": 1, "not_on_whatsapp": 1}
    assert report.skipped == {"too_old": 1}
    assert (report.tokens, report.cost_usd) == (200, Decimal("0.004"))
    assert report.seconds == 4.0
    assert report.per_second == 0.5
    assert report.slowest_stage == ("sending", 1100.0)


def test_reports_come_in_the_order_asked_for_and_know_no_other_run(world: World) -> None:
    runs = [world.run(name=f"Run {no}") for no in range(3)]
    for run in runs:
        world.due_message(run, status="failed", error_code="no_phone")
    asked = [runs[2], runs[0]]
    assert [report.name for report in read_report(world.url, asked)] == ["Run 2", "Run 0"]
    assert [report.failed for report in read_report(world.url, asked)] == [{"no_phone": 1}] * 2


def test_a_run_without_messages_has_no_pace_and_no_slowest_stage(world: World) -> None:
    (report,) = read_report(world.url, [world.run()])
    assert (report.per_second, report.slowest_stage, report.waiting) == (None, None, 0)
    assert "–" in shown(report_table([report]))


def test_the_table_shows_each_campaigns_outcomes_and_reasons() -> None:
    text = shown(report_table([plain_report()]))
    for wanted in ("Novembro", "7 of 10", "1 no phone", "2 too old", "1,500", "US$ 0.0100", "3.5", "sending, 1.1 s"):
        assert wanted in text
    assert "All" not in text


def test_the_table_adds_several_campaigns_up_over_the_time_that_all_took() -> None:
    text = shown(report_table([plain_report(), plain_report("Dezembro", sent=5, seconds=4.0)]))
    for wanted in ("All", "12 of 20", "2 no phone", "4 too old", "3,000", "US$ 0.0200", "3.0"):
        assert wanted in text


def test_waiting_messages_are_shown_where_there_are_any() -> None:
    assert "Waiting" not in shown(report_table([plain_report()]))
    assert "Waiting" in shown(report_table([plain_report(waiting=3)]))


def test_the_table_of_three_campaigns_fits_a_terminal_of_80_columns() -> None:
    names = ("Primeiro contato", "Reativação de orçamentos", "Diagnóstico gratuito")
    text = shown(report_table([plain_report(name, failed={"not_on_whatsapp": 4}) for name in names]), width=80)
    assert "…" not in text


def test_one_sent_message_of_each_run_is_a_sample_and_the_one_in_most_parts_is_preferred(world: World) -> None:
    first, second = world.run(name="Um"), world.run(name="Dois")
    sent_message(world, first, "Inteira", name="Ana", second=1)
    sent_message(world, first, "Parte 1", "Parte 2", name="Bia", second=3)
    sent_message(world, second, "Única", name="Caio")
    world.due_message(world.run(name="Três"), status="failed")
    samples = read_samples(world.url, [second, first])
    assert [(sample.campaign, sample.lead, sample.parts) for sample in samples] == [
        ("Dois", "Caio", ("Única",)),
        ("Um", "Bia", ("Parte 1", "Parte 2")),
    ]


def test_what_leads_are_called_is_never_read_as_markup(world: World) -> None:
    run = world.run(name="[red]Novembro[/red]")
    sent_message(world, run, "Olá [link=http://x]você[/link]", name="Ana [/] Souza")
    text = shown(sample_panels(read_samples(world.url, [run]))) + shown(report_table(read_report(world.url, [run])))
    for wanted in ("[red]Novembro[/red]", "Olá [link=http://x]você[/link]", "Ana [/] Souza", "Padaria [bold]Real"):
        assert wanted in text
