"""Suppression: its sources, its effects, and what remains of an erased person."""

import re
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from campaign_pipeline.core.address import address_kind, canonical_address
from campaign_pipeline.core.phone_reading import AREA_CODES
from campaign_pipeline.sql import functions_text, statement
from campaign_pipeline_tests.core.test_phone_reading import FORMS, spelled
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import (
    PHONE,
    Holder,
    claim_batch,
    claimed_ids,
    holding,
    message,
    part_states,
    rows,
    wait_until_blocked,
)

DAY = "2026-11-23"


@pytest.fixture
def workspace(world: World) -> UUID:
    return world.workspace()


@pytest.fixture
def run(world: World, workspace: UUID) -> UUID:
    return world.run(world.campaign(workspace))


@pytest.fixture
def lead(world: World, workspace: UUID) -> UUID:
    return world.lead(workspace, phone="+55 (11) 98765-4321")


@pytest.fixture
def due(world: World, run: UUID, lead: UUID) -> UUID:
    return world.due_message(run, lead)


def suppress(
    world: World,
    scope: str = "workspace",
    workspace: UUID | None = None,
    channel: str | None = None,
    address: str | None = None,
    lead: UUID | None = None,
) -> int:
    found: int = world.value(
        "SELECT campaign_suppress(%s, %s, %s, %s, %s, 'by_hand', 'asked by phone')",
        scope,
        workspace,
        channel,
        address,
        lead,
    )
    return found


def suppressions(world: World) -> list[dict[str, Any]]:
    return world.all("SELECT * FROM campaign_suppressions WHERE lifted_at IS NULL ORDER BY id")


def reply(world: World, conversation: UUID, text: str, message_type: str = "incoming") -> None:
    world.insert("messages", conversation_id=conversation, message_type=message_type, text_content=text)


def talk(world: World, workspace: UUID | None, lead: UUID | None = None, **columns: Any) -> UUID:
    row = {"workspace_id": workspace, "lead_id": lead, "channel": "whatsapp", "contact_phone": PHONE, **columns}
    return world.insert("conversations", **row)


# Addresses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("+55 (11) 98765-4321", PHONE),
        ("11 98765 4321", PHONE),
        ("011 98765-4321", PHONE),
        ("0055 11 98765-4321", PHONE),
        ("551187654321", PHONE),  # without its ninth digit
        ("1187654321", PHONE),
        ("551187654321@s.whatsapp.net", PHONE),
        ("5511987654321:12@s.whatsapp.net", PHONE),
        ("5511987654321:12", PHONE),
        ("55 11 3333-4444", "551133334444"),  # a land line has no ninth digit
        ("+1 202 555 0123", "12025550123"),
        ("+351 912 345 678", "351912345678"),
        (" Ana@Example.COM ", "ana@example.com"),
        ("123456@lid", "123456@lid"),
        ("BR.1A2bC", "BR.1A2bC"),
        ("+55 (0) 11 98765-4321", PHONE),
        ("https://wa.me/5511987654321", PHONE),
        ("", None),
        ("sem número", None),
        (None, None),
    ],
)
def test_every_way_to_write_an_address_is_one_address(world: World, written: str | None, canonical: str | None) -> None:
    assert world.value("SELECT campaign_canonical_address(%s)", written) == canonical


nationals = st.builds(
    "{}{}{:08d}".format,
    st.sampled_from([code for code in map(str, range(100)) if re.fullmatch(AREA_CODES, code)]),
    st.sampled_from(["", "9"]),
    st.integers(20_000_000, 99_999_999),
)
spellings = (
    st.builds(spelled, nationals, st.sampled_from(FORMS))
    | st.text("0123456789+-() .,:;@/xXeE'*[]?&=%", max_size=24)
    | st.builds(
        "{}{}".format, st.sampled_from(["+", "00", "0xx", "tel:", "wa.me/", "(0)", "1.", "BR.", "(Ana) "]), nationals
    )
    | st.builds(
        "{}{}".format, nationals, st.sampled_from([".0", ",00", "00", " (Ana)", " zap", "-", "E+10", " / 11 3333-4444"])
    )
    | st.sampled_from(
        ["\u200b+55 11 98765\u20114321", "\uff15\uff15 11 98765-4321", "m\u00f3vel: 1", "\u201811987654321\u2019"]
    )
)


@settings(
    max_examples=settings().max_examples // 5,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture],
)
@given(st.lists(spellings, min_size=100, max_size=250))
def test_the_database_spells_every_address_as_the_core_does(world: World, written: list[str]) -> None:
    found = world.all(
        "SELECT a AS written, campaign_canonical_address(a) AS canonical FROM unnest(%s::text[]) a", written
    )
    wrong = [row for row in found if row["canonical"] != canonical_address(row["written"])]
    assert wrong == []


@pytest.mark.parametrize(
    "written", ["+55 (0) 11 98765-4321", "0xx11 98765-4321", "tel:+5511987654321", "5511987654321.0"]
)
def test_a_suppression_holds_for_every_spelling_of_its_number(
    world: World, workspace: UUID, run: UUID, written: str
) -> None:
    suppress(world, workspace=workspace, address=written)
    due = world.due_message(run, world.lead(workspace, phone="11 98765-4321"))
    assert claimed_ids(claim_batch(world)) == set()
    assert message(world, due)["error_code"] == "suppressed"


def test_an_upgrade_canonicalises_older_suppressions(world: World, workspace: UUID, run: UUID) -> None:
    for old in ("55011987654321", "01511987654321", PHONE):
        world.do(
            "INSERT INTO campaign_suppressions (scope, workspace_id, address, address_hash, source, since) "
            "VALUES ('workspace', %s, %s, %s, 'by_hand', campaign_now())",
            workspace,
            old,
            f"hash of {old}",
        )
    assert claim_batch(world).suppressed == 0
    due = world.due_message(run, world.lead(workspace, phone="+55 (0) 11 98765-4321"))
    world.do("UPDATE campaign_suppressions SET address_hash = campaign_address_hash(address) WHERE address = %s", PHONE)
    world.do("DELETE FROM campaign_suppressions WHERE address = %s", PHONE)
    world.connection.execute(functions_text().encode())
    assert {row["address"] for row in suppressions(world)} == {PHONE, "01511987654321"}
    assert claimed_ids(claim_batch(world)) == set()
    assert message(world, due)["error_code"] == "suppressed"


@pytest.mark.parametrize(
    "address",
    [PHONE, "5511987654321@s.whatsapp.net", "1@g.us", "5@c.us", "99@lid", "BR.1A2B", "ana@example.com", "br.x"],
)
def test_the_kind_of_an_address_is_the_same_for_the_core_and_the_database(world: World, address: str) -> None:
    assert world.value("SELECT campaign_address_kind(%s)", address) == address_kind(address)


def test_the_kind_is_kept_with_the_message_and_each_of_its_parts(world: World, due: UUID) -> None:
    holder = holding(world, due)
    holder.begin_new(due, "Um", "Dois", address="99887766@lid")
    assert message(world, due)["address_kind"] == "lid"
    holder.sent(due)
    holder.begin(due, part_no=2, address="99887766@lid")
    kinds = world.all("SELECT DISTINCT address_kind FROM campaign_message_parts WHERE message_id = %s", due)
    assert kinds == [{"address_kind": "lid"}]


# During the claim -----------------------------------------------------------------------------------------------------


def test_a_suppressed_lead_is_skipped_in_the_claim_and_counted(
    world: World, workspace: UUID, run: UUID, lead: UUID, due: UUID
) -> None:
    other = world.due_message(run)
    suppress(world, workspace=workspace, lead=lead)
    batch = claim_batch(world)
    assert (claimed_ids(batch), batch.suppressed) == ({other}, 1)
    row = message(world, due)
    assert (row["status"], row["error_code"], row["finished_at"] is not None) == ("skipped", "suppressed", True)
    assert "suppressed" in row["error_message"]
    assert world.one("SELECT leads_skipped, leads_processed FROM campaign_runs") == {
        "leads_skipped": 1,
        "leads_processed": 1,
    }
    assert world.wrong_counters() == []


@pytest.mark.parametrize("spelling", ["11987654321", "551187654321", "+55 11 98765-4321"])
def test_a_suppressed_number_is_skipped_however_it_is_written(
    world: World, workspace: UUID, due: UUID, spelling: str
) -> None:
    suppress(world, "channel", workspace, "whatsapp", address=spelling)
    assert claim_batch(world).suppressed == 1
    assert message(world, due)["error_code"] == "suppressed"


def test_the_messages_own_number_is_looked_at_before_the_leads(world: World, workspace: UUID, run: UUID) -> None:
    due = world.due_message(run, phone_number="+55 21 99999-0000")
    suppress(world, workspace=workspace, address="21999990000")
    claim_batch(world)
    assert message(world, due)["error_code"] == "suppressed"


SCOPES: dict[str, tuple[Callable[[World, UUID], dict[str, Any]], bool]] = {
    "global": (lambda _, __: {"scope": "global"}, True),
    "workspace": (lambda _, own: {"scope": "workspace", "workspace": own}, True),
    "channel": (lambda _, own: {"scope": "channel", "workspace": own, "channel": "whatsapp"}, True),
    "other channel": (lambda _, own: {"scope": "channel", "workspace": own, "channel": "email"}, False),
    "other workspace": (lambda world, _: {"scope": "workspace", "workspace": world.workspace()}, False),
}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("by", ["lead", "address"])
def test_a_suppression_reaches_as_far_as_its_scope_in_the_claim_and_before_the_send(
    world: World, workspace: UUID, run: UUID, lead: UUID, due: UUID, scope: str, by: str
) -> None:
    where, stops = SCOPES[scope]
    late = world.due_message(run, lead)
    holder = holding(world, late)
    whom: dict[str, Any] = {"lead": lead} if by == "lead" else {"address": PHONE}
    suppress(world, **where(world, workspace), **whom)
    assert (due not in claimed_ids(claim_batch(world))) is stops
    assert holder.begin_new(late) == ("suppressed" if stops else "go")


def test_a_message_that_may_have_been_sent_is_left_to_its_look_up(
    world: World, workspace: UUID, lead: UUID, due: UUID
) -> None:
    holder = holding(world, due)
    holder.begin_new(due)
    holder.settle(due, part_no=1, attempt_no=1, outcome="unknown", status="pending", delay_seconds=0)
    suppress(world, workspace=workspace, lead=lead)
    batch = claim_batch(world)
    assert (claimed_ids(batch), batch.suppressed) == ({due}, 0)


def test_a_batch_of_nothing_but_suppressed_leads_is_followed_by_the_next(
    world: World, workspace: UUID, run: UUID
) -> None:
    for _ in range(7):
        lead = world.lead(workspace)
        world.due_message(run, lead, scheduled_at=world.value("SELECT campaign_now() - interval '5 minutes'"))
        suppress(world, workspace=workspace, lead=lead)
    last = world.due_message(run)
    batch = claim_batch(world, batch_size=2)
    assert (claimed_ids(batch), batch.suppressed) == ({last}, 7)


def test_a_suppressed_mailbox_is_skipped_in_its_channel(world: World, workspace: UUID) -> None:
    lead = world.lead(workspace, email="Ana@example.com")
    mailbox = world.inbox(workspace, provider="email", provider_type="smtp")
    by_mail = world.due_message(world.run(world.campaign(workspace, mailbox)), lead)
    by_phone = world.due_message(world.run(world.campaign(workspace)), lead)
    suppress(world, "channel", workspace, "email", address="ana@EXAMPLE.com")
    assert claimed_ids(claim_batch(world)) == {by_phone}
    assert message(world, by_mail)["error_code"] == "suppressed"


def test_a_suppression_that_was_lifted_stops_nothing(world: World, workspace: UUID, lead: UUID, due: UUID) -> None:
    suppress(world, workspace=workspace, lead=lead, address=PHONE)
    assert world.value("SELECT campaign_lift(NULL, NULL, '11 98765-4321', NULL, 'Rui')") == 1
    assert claimed_ids(claim_batch(world)) == {due}
    row = world.one("SELECT lifted_by, lifted_at IS NOT NULL AS lifted FROM campaign_suppressions")
    assert row == {"lifted_by": "Rui", "lifted": True}


def test_the_same_suppression_is_written_once_and_again_after_it_was_lifted(world: World, workspace: UUID) -> None:
    first = suppress(world, workspace=workspace, address=PHONE)
    assert suppress(world, workspace=workspace, address="+551187654321") == first
    world.do("SELECT campaign_lift(NULL, NULL, %s, NULL, 'Rui')", PHONE)
    assert suppress(world, workspace=workspace, address=PHONE) != first


@pytest.mark.parametrize(
    "columns", [{"scope": "workspace", "address": PHONE}, {"scope": "global"}, {"scope": "global", "address": "nobody"}]
)
def test_a_suppression_without_a_target_or_scope_is_refused(world: World, columns: dict[str, Any]) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="A suppression needs"):
        suppress(world, **columns)


# Right before the request ---------------------------------------------------------------------------------------------


def test_a_lead_that_opts_out_after_the_claim_gets_nothing(
    world: World, workspace: UUID, lead: UUID, due: UUID
) -> None:
    holder = holding(world, due)
    reply(world, talk(world, workspace, lead), "Sair")
    assert holder.begin_new(due) == "suppressed"
    assert part_states(world, due) == [("planned", 0)]


def test_a_lead_that_opts_out_between_two_parts_does_not_get_the_second(
    world: World, workspace: UUID, lead: UUID, due: UUID
) -> None:
    holder = holding(world, due)
    holder.begin_new(due, "Um", "Dois")
    holder.sent(due)
    reply(world, talk(world, workspace, lead), "PARAR")
    assert holder.begin(due, part_no=2) == "suppressed"
    assert part_states(world, due) == [("sent", 1), ("planned", 0)]


def test_only_the_suppressed_of_a_group_are_held_back(world: World, workspace: UUID, run: UUID) -> None:
    leads = [world.lead(workspace) for _ in range(4)]
    messages = [world.due_message(run, lead) for lead in leads]
    suppress(world, workspace=workspace, lead=leads[1])
    holder = holding(world, *messages)
    answers = holder.begin_all(
        {"id": m, "text": "Oi", "parts": ["Oi"], "address": f"551190000000{n}"} for n, m in enumerate(messages)
    )
    assert [answers[m]["verdict"] for m in messages] == ["go", "suppressed", "go", "go"]


def test_an_opt_out_committed_while_the_intent_waits_for_its_row_counts(
    world: World, workspace: UUID, lead: UUID, due: UUID
) -> None:
    """The intent locks the message first and checks consent afterwards: whatever was committed meanwhile counts."""
    holder = holding(world, due)
    verdicts: list[str] = []
    with psycopg.connect(world.url) as other:
        other.execute("SELECT 1 FROM campaign_messages WHERE id = %s FOR UPDATE", [due])
        with World(world.url) as second:
            holder.world = second
            beginning = threading.Thread(target=lambda: verdicts.append(holder.begin_new(due)))
            beginning.start()
            wait_until_blocked(world)
            reply(world, talk(world, workspace, lead), "stop")
            other.commit()
            beginning.join(20)
    assert verdicts == ["suppressed"]


@pytest.mark.slow
def test_a_million_suppressions_would_be_probed_and_never_read_through(
    world: World, workspace: UUID, run: UUID
) -> None:
    world.do(
        """INSERT INTO campaign_suppressions (scope, workspace_id, address_hash, lead_id, source, since)
           SELECT 'workspace', %s, md5(n::text), gen_random_uuid(), 'keyword', now()
           FROM generate_series(1, 30000) n""",
        workspace,
    )
    world.do("INSERT INTO leads (workspace_id, phone) SELECT %s, n::text FROM generate_series(1, 20000) n", workspace)
    world.do(
        """INSERT INTO campaign_messages (run_id, lead_id, scheduled_at)
           SELECT %s, id, now() - interval '1 hour' FROM leads""",
        run,
    )
    tables = ("campaign_suppressions", "campaign_messages", "leads")
    for table in tables:
        world.do(f"VACUUM ANALYZE {table}")

    def scans() -> dict[str, int]:
        query = "SELECT relname, seq_scan FROM pg_stat_xact_user_tables WHERE relname = ANY (%s)"
        return {row["relname"]: row["seq_scan"] for row in world.all(query, list(tables))}

    due = [row["id"] for row in world.all("SELECT id FROM campaign_messages LIMIT 50")]
    with world.connection.transaction():
        before = scans()
        for _ in range(7):  # plpgsql plans for the values at hand at first, then once for all values
            assert rows(world, "skip_refused_messages", message_ids=due) == []
            assert rows(world, "hold_contacted_messages", message_ids=due) == []
            answers = holding(world, *due).begin_all(
                {"id": m, "text": "Oi", "parts": ["Oi"], "part_no": 0} for m in due
            )
            assert {row["verdict"] for row in answers.values()} == {"go"}
            world.value(
                "SELECT campaign_refused_by_consent(campaign_looked_up(ARRAY("
                "SELECT i FROM jsonb_populate_recordset(NULL::campaign_intent, %s) AS i)))",
                Jsonb([{"id": str(m), "address": PHONE, "channel": "whatsapp"} for m in due]),
            )
            world.do("UPDATE campaign_messages SET lease_expires_at = '-infinity' WHERE id = ANY (%s)", due)
        assert scans() == before


# Keywords -------------------------------------------------------------------------------------------------------------

OPT_OUTS = [
    "SAIR",
    "sair",
    "Sair.",
    " sair ",
    "PARAR",
    "Parar!",
    "STOP",
    "stop!!!",
    "CANCELAR",
    "Descadastrar",
    "DESCADASTRE",
    "*SAIR*",
    "“Sair”",
    "sair 🙏",
    "ＳＴＯＰ",
    "Páre",
    "Sair, por favor",
    "Por favor, parar",
    "Quero sair",
    "SAIR OBRIGADO",
    "quero cancelar!",
    "PARAR. Não tenho interesse nisso.",
    "Stop\nNão me escreva mais",
    "bom dia, sair",
    "SAIR, não quero mais nada disso",
    "Não quero mais receber mensagens de vocês",
    "Nao quero receber isso",
    "Sair da lista agora",
    "parar de receber",
    "Pare de me mandar mensagem",
    "me tira da lista por gentileza",
    "Descadastrar meu número",
    "unsubscribe me",
]

NO_OPT_OUTS = [
    "não vou parar de comprar",
    "Não quero sair",
    "vou sair agora, falamos depois",
    "Sair para almoçar às 13h?",
    "Parar o carro onde?",
    "quanto custa para cancelar depois?",
    "Cancelar o pedido 123 e mandar outro",
    "Cancelar? Não, obrigado",
    "posso cancelar quando quiser?",
    "Stopover em Lisboa",
    "saíram as fotos?",
    "saira",
    "Quero comprar",
    "",
    "   ",
    "🙏",
    "...",
    "Obrigado",
    "por favor",
    "1",
    "não",
    "parara",
    "para de graça? kkk quero sim",
    "O start da obra é amanhã",
    "não pare",
    "sem parar",
]


@pytest.mark.parametrize("text", OPT_OUTS)
def test_these_replies_opt_out(world: World, text: str) -> None:
    assert (world.value("SELECT campaign_match_keyword(%s)", text) or {}).get("meaning") == "opt_out"


@pytest.mark.parametrize("text", NO_OPT_OUTS)
def test_these_replies_do_not(world: World, text: str) -> None:
    assert world.value("SELECT campaign_match_keyword(%s)", text) is None


@pytest.mark.parametrize("text", ["VOLTAR", "start", "Quero voltar", "Voltar a receber", "reativar, por favor"])
def test_these_replies_opt_in(world: World, text: str) -> None:
    assert world.value("SELECT campaign_match_keyword(%s)", text)["meaning"] == "opt_in"


@settings(suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture])
@given(
    word=st.sampled_from(["sair", "parar", "stop", "cancelar", "descadastrar"]),
    before=st.text(st.sampled_from(" *_~\"'¡🙏\n"), max_size=4),
    after=st.text(st.sampled_from(" *_~.!\"')🙏\n"), max_size=4),
    upper=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_case_and_punctuation_around_a_keyword_do_not_matter(
    world: World, word: str, before: str, after: str, upper: list[bool]
) -> None:
    shouted = "".join(char.upper() if up else char for char, up in zip(word, upper, strict=False))
    assert world.value("SELECT campaign_match_keyword(%s)", before + shouted + after)["phrase"] == word


@settings(suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=400))
def test_no_reply_breaks_whoever_inserts_it(world: World, text: str) -> None:
    reply(world, talk(world, None), text)


@pytest.mark.parametrize("word", ["sair", "stop", "cancelar"])
@pytest.mark.parametrize(
    "around", ["não vou {} de comprar", "acho que vou {} mais tarde", "hoje {} não dá", "você vai {}"]
)
def test_a_keyword_in_the_middle_of_a_sentence_is_none(world: World, word: str, around: str) -> None:
    assert world.value("SELECT campaign_match_keyword(%s)", around.format(word)) is None


def test_an_operator_adds_a_keyword_with_a_row(world: World, workspace: UUID, lead: UUID) -> None:
    conversation = talk(world, workspace, lead)
    reply(world, conversation, "Basta!")
    assert suppressions(world) == []
    world.insert("campaign_consent_keywords", phrase="basta", meaning="opt_out")
    reply(world, conversation, "Basta!")
    (row,) = suppressions(world)
    assert (row["source"], row["reason"]) == ("keyword", "basta")


def test_a_keyword_suppresses_lead_and_number_in_that_workspace_and_channel_alone(
    world: World, workspace: UUID, lead: UUID
) -> None:
    reply(world, talk(world, workspace, lead), "SAIR")
    (row,) = suppressions(world)
    assert (row["scope"], row["workspace_id"], row["channel"]) == ("channel", workspace, "whatsapp")
    assert (row["lead_id"], row["address"], row["source"], row["reason"]) == (lead, PHONE, "keyword", "sair")
    assert row["since"] == world.value("SELECT max(since) FROM campaign_suppressions")


def test_a_conversation_without_a_lead_suppresses_its_number(world: World, workspace: UUID, due: UUID) -> None:
    reply(world, talk(world, workspace), "SAIR")
    assert claim_batch(world).suppressed == 1


def test_a_conversation_of_no_known_workspace_suppresses_everywhere(world: World, due: UUID) -> None:
    reply(world, talk(world, None), "SAIR")
    assert [row["scope"] for row in suppressions(world)] == ["global"]
    assert claim_batch(world).suppressed == 1


def test_our_own_messages_and_long_ones_say_nothing(world: World, workspace: UUID, lead: UUID) -> None:
    conversation = talk(world, workspace, lead)
    reply(world, conversation, "SAIR", message_type="outgoing")
    reply(world, conversation, "SAIR. " + "x" * 400)
    assert suppressions(world) == []


def test_the_opt_out_is_part_of_the_transaction_that_inserts_the_reply(
    world: World, workspace: UUID, lead: UUID
) -> None:
    conversation = talk(world, workspace, lead)
    with world.connection.transaction(force_rollback=True):
        reply(world, conversation, "SAIR")
        assert len(suppressions(world)) == 1
    assert suppressions(world) == []


def test_a_role_without_rights_on_our_tables_may_insert_a_reply(world: World, workspace: UUID, lead: UUID) -> None:
    conversation = talk(world, workspace, lead)
    role = f"crm_{uuid4().hex[:8]}"
    world.connection.execute(f"CREATE ROLE {role}")
    world.connection.execute(f"GRANT INSERT, SELECT ON messages TO {role}")
    try:
        with world.connection.transaction():
            world.connection.execute(f"SET LOCAL ROLE {role}")
            world.do(
                "INSERT INTO messages (conversation_id, message_type, text_content) VALUES (%s, 'incoming', 'SAIR')",
                conversation,
            )
        assert len(suppressions(world)) == 1
    finally:
        world.connection.execute(f"DROP OWNED BY {role}")
        world.connection.execute(f"DROP ROLE {role}")


def test_an_opt_in_lifts_what_a_keyword_did_and_nothing_that_a_person_did(
    world: World, workspace: UUID, lead: UUID
) -> None:
    conversation = talk(world, workspace, lead)
    suppress(world, workspace=workspace, lead=lead)
    reply(world, conversation, "SAIR")
    assert len(suppressions(world)) == 2
    reply(world, conversation, "Voltar")
    assert [row["source"] for row in suppressions(world)] == ["by_hand"]
    assert world.value("SELECT lifted_by FROM campaign_suppressions WHERE source = 'keyword'") == "keyword"


def test_an_opt_in_reaches_no_other_workspace(world: World, workspace: UUID, lead: UUID) -> None:
    elsewhere = world.workspace()
    reply(world, talk(world, elsewhere), "SAIR")
    reply(world, talk(world, workspace, lead), "START")
    assert len(suppressions(world)) == 1


# Providers' answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["opted_out", "hard_bounce"])
def test_a_refusal_for_ever_suppresses_in_the_settlement(
    world: World, workspace: UUID, run: UUID, lead: UUID, due: UUID, code: str
) -> None:
    holder = holding(world, due)
    holder.begin_new(due)
    holder.settle(due, part_no=1, attempt_no=1, outcome="failed", status="failed", error_class="permanent", code=code)
    (row,) = suppressions(world)
    assert (row["scope"], row["workspace_id"], row["channel"]) == ("channel", workspace, "whatsapp")
    assert (row["lead_id"], row["address"], row["source"], row["reason"]) == (lead, PHONE, "provider", code)
    world.due_message(run, lead)
    assert claim_batch(world).suppressed == 1


def test_any_other_refusal_suppresses_nobody(world: World, due: UUID) -> None:
    holder = holding(world, due)
    holder.begin_new(due)
    holder.settle(due, part_no=1, attempt_no=1, outcome="failed", status="failed", code="not_on_whatsapp")
    assert suppressions(world) == []


def test_a_worker_without_its_lease_suppresses_nobody(world: World, due: UUID) -> None:
    first = holding(world, due)
    first.begin_new(due)
    world.do("UPDATE campaign_messages SET lease_token = gen_random_uuid()")
    first.settle(due, part_no=1, attempt_no=1, outcome="failed", status="failed", code="opted_out")
    assert suppressions(world) == []


def test_an_answer_that_comes_later_suppresses_by_its_code(world: World, lead: UUID, due: UUID) -> None:
    holder = holding(world, due)
    holder.begin_new(due)
    holder.sent(due)
    assert world.value("SELECT campaign_suppress_by_answer(%s, 'delivered')", due) is None
    assert world.value("SELECT campaign_suppress_by_answer(%s, 'opted_out')", due) is not None
    assert [row["lead_id"] for row in suppressions(world)] == [lead]


@pytest.mark.parametrize(("code", "told"), [("opted_out", 1), ("undeliverable", 0)])
def test_a_status_event_of_a_part_that_was_accepted_suppresses_by_its_code(
    world: World, due: UUID, code: str, told: int
) -> None:
    holder = holding(world, due)
    holder.begin_new(due)
    holder.sent(due)
    event = {
        "event_id": 1,
        "id": str(due),
        "part_no": 1,
        "status": "failed",
        "at": 1.8e9,
        "code": code,
        "reason": "No.",
    }
    rows(world, "apply_status_events", events=Jsonb([event]))
    assert len(suppressions(world)) == told


# One message a day ----------------------------------------------------------------------------------------------------


@pytest.fixture
def two(world: World, workspace: UUID, lead: UUID) -> tuple[UUID, UUID]:
    """Messages of two campaigns to one lead."""
    first, second = (world.due_message(world.run(world.campaign(workspace)), lead) for _ in range(2))
    return first, second


def test_a_lead_gets_one_message_a_day_of_all_campaigns(world: World, two: tuple[UUID, UUID]) -> None:
    first, second = (holding(world, m) for m in two)
    assert first.begin_new(two[0], local_day=DAY) == "go"
    assert second.begin_new(two[1], local_day=DAY) == "contacted_today"
    first.sent(two[0])
    assert second.begin(two[1], local_day=DAY) == "contacted_today"
    assert second.begin(two[1], local_day="2026-11-24") == "go"


def test_two_messages_of_one_lead_in_one_group_do_not_both_go(world: World, two: tuple[UUID, UUID]) -> None:
    answers = holding(world, *two).begin_all({"id": m, "text": "Oi", "parts": ["Oi"], "local_day": DAY} for m in two)
    assert sorted(row["verdict"] for row in answers.values()) == ["contacted_today", "go"]


def test_a_day_is_taken_over_from_a_message_that_was_surely_not_sent(world: World, two: tuple[UUID, UUID]) -> None:
    first, second = (holding(world, m) for m in two)
    first.begin_new(two[0], local_day=DAY)
    first.settle(two[0], part_no=1, attempt_no=1, outcome="failed", status="failed", code="not_on_whatsapp")
    assert second.begin_new(two[1], local_day=DAY) == "go"
    assert world.value("SELECT message_id FROM campaign_lead_days") == two[1]


def test_a_day_is_not_taken_over_from_a_message_that_may_have_been_sent(world: World, two: tuple[UUID, UUID]) -> None:
    first, second = (holding(world, m) for m in two)
    first.begin_new(two[0], local_day=DAY)
    first.settle(two[0], part_no=1, attempt_no=1, outcome="unknown")
    assert second.begin_new(two[1], local_day=DAY) == "contacted_today"


def test_a_begun_text_is_finished_the_day_after(world: World, two: tuple[UUID, UUID]) -> None:
    first, second = (holding(world, m) for m in two)
    first.begin_new(two[0], "Um", "Dois", local_day=DAY)
    first.sent(two[0])
    assert second.begin_new(two[1], local_day="2026-11-24") == "go"
    assert first.begin(two[0], part_no=2, local_day="2026-11-24") == "go"


def test_without_a_day_nothing_is_held_back(world: World, two: tuple[UUID, UUID]) -> None:
    assert [holding(world, m).begin_new(m) for m in two] == ["go", "go"]
    assert world.value("SELECT count(*) FROM campaign_lead_days") == 0


def test_of_two_workers_with_one_lead_the_second_waits_and_is_held_back(world: World, two: tuple[UUID, UUID]) -> None:
    first, second = Holder(world), holding(world, two[1])
    first.take_over([two[0]])
    verdicts: list[str] = []
    with World(world.url) as other, World(world.url) as third:
        first.world, second.world = other, third
        with other.connection.transaction():
            assert first.begin_new(two[0], local_day=DAY) == "go"
            beginning = threading.Thread(target=lambda: verdicts.append(second.begin_new(two[1], local_day=DAY)))
            beginning.start()
            wait_until_blocked(world)
        beginning.join(20)
    assert verdicts == ["contacted_today"]


def test_many_workers_with_many_leads_send_each_lead_one_message(world: World, workspace: UUID) -> None:
    leads = [world.lead(workspace) for _ in range(10)]
    runs = [world.run(world.campaign(workspace)) for _ in range(4)]
    messages = [[world.due_message(run, lead) for lead in leads] for run in runs]
    holders = [holding(world, *of_run) for of_run in messages]
    worlds = [World(world.url).__enter__() for _ in runs]
    barrier = threading.Barrier(len(runs))
    errors: list[BaseException] = []

    def work(n: int) -> None:
        try:
            holders[n].world = worlds[n]
            barrier.wait(20)
            order = messages[n] if n % 2 else messages[n][::-1]
            holders[n].begin_all({"id": m, "text": "Oi", "parts": ["Oi"], "local_day": DAY} for m in order)
        except BaseException as error:  # noqa: BLE001 (shown below)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for one in worlds:
        one.connection.close()
    assert errors == []
    counts = world.all(
        """SELECT count(*) AS n FROM campaign_message_parts p JOIN campaign_messages m ON m.id = p.message_id
           WHERE p.status = 'attempting' GROUP BY m.lead_id"""
    )
    assert [row["n"] for row in counts] == [1] * len(leads)


def test_days_that_are_over_are_forgotten(world: World, two: tuple[UUID, UUID]) -> None:
    today = world.value("SELECT campaign_now()::date::text")
    holding(world, two[0]).begin_new(two[0], local_day=today)
    claim_batch(world)
    assert world.value("SELECT count(*) FROM campaign_lead_days") == 1
    world.move_clock(timedelta(days=5))
    claim_batch(world)
    assert world.value("SELECT count(*) FROM campaign_lead_days") == 0


# A person's data ------------------------------------------------------------------------------------------------------

NAME = "Zenóbia Quaresma"
TEXT = "Olá, Zenóbia! Vi a sua padaria na Rua das Acácias."
SECRETS = ("zenóbia", "quaresma", "acácias", "98765", "8765-4321", "zq@padaria")


@pytest.fixture
def person(world: World, workspace: UUID, run: UUID) -> UUID:
    """A lead with data in every table."""
    lead = world.lead(
        workspace,
        client_name=NAME,
        phone="+55 11 98765-4321",
        company="Padaria da Zenóbia",
        notes="Quaresma gosta de pão",
        tags=["zenóbia"],
        whatsapp_jid="551187654321@s.whatsapp.net",
        whatsapp_name="Zenóbia Q.",
        cnpj="98765432000199",
        email="zq@padaria.com",
    )
    field = world.insert("custom_fields", workspace_id=workspace, name="Email", position=1)
    world.insert("lead_custom_values", lead_id=lead, custom_field_id=field, value="zq@padaria.com")
    conversation = talk(world, workspace, lead, contact_name=NAME, last_message=TEXT)
    orphan = talk(world, workspace, None, contact_name=NAME)
    for one in (conversation, orphan):
        reply(world, one, "Sou a Zenóbia, da Rua das Acácias")
    reply(world, conversation, "SAIR")
    world.do("SELECT campaign_lift(NULL, NULL, NULL, %s, 'Rui')", lead)
    sent = world.due_message(
        run, lead, phone_number="+55 11 98765-4321", lead_context=Jsonb({"nome": NAME}), last_error=f"{NAME} não atende"
    )
    holder = holding(world, sent)
    holder.begin_new(sent, TEXT, "Rua das Acácias?", contact_name=NAME)
    holder.settle(sent, part_no=1, attempt_no=1, outcome="planned", reason=f"busy with {NAME}")
    holder.begin(sent, attempt_no=2)
    holder.sent(
        sent,
        attempt_no=2,
        response={"key": {"remoteJid": "551187654321@s.whatsapp.net"}},
        provider_message_id="wamid.98765",
    )
    holder.begin(sent, part_no=2)
    holder.sent(sent, part_no=2, provider_message_id="wamid.2.98765")
    failed = world.due_message(run, lead)
    other = holding(world, failed)
    other.begin_new(failed, TEXT)
    other.settle(failed, part_no=1, attempt_no=1, outcome="failed", status="failed", code="x", reason=f"{NAME} 98765")
    world.due_message(run, lead, phone_number="11 98765-4321", generated_message=TEXT)
    line = {
        "run_id": run,
        "message": f"Sent to {NAME}",
        "details": Jsonb({"to": PHONE}),
        "level": "info",
        "step_name": "send",
    }
    world.insert("campaign_logs", lead_id=lead, **line)
    world.insert("campaign_logs", message_id=sent, **line)
    world.insert("campaign_status_events", payload=Jsonb({"status": "sent", "recipient_id": "551187654321"}))
    opaque = {"status": "failed", "biz_opaque_callback_data": f"{failed}:1", "errors": [{"title": NAME}]}
    world.insert("campaign_status_events", payload=Jsonb(opaque))
    world.insert(
        "campaign_number_checks",
        provider="evolution",
        number=PHONE,
        exists=True,
        jid="551187654321@s.whatsapp.net",
        checked_at=world.value("SELECT campaign_now()"),
    )
    return lead


def everything(world: World) -> list[tuple[str, str]]:
    """Every row of every table as text, without ids and fractions of seconds, which may contain any digits."""
    random = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\.[0-9]+(?=[+-]\d\d:\d\d)")
    tables = world.all(
        "SELECT tablename AS name FROM pg_tables WHERE schemaname IN ('public', 'campaign_pipeline')"
        " AND tablename <> 'campaign_pipeline_version'"
    )
    return [
        (table["name"], random.sub("", row["text"].lower()))
        for table in tables
        for row in world.all(f"SELECT to_jsonb(t)::text AS text FROM {table['name']} t")
    ]


def traces(world: World) -> set[str]:
    """Tables that still contain a person's name, number or text."""
    return {table for table, text in everything(world) for secret in SECRETS if secret in text}


def test_the_person_can_be_read_in_all_these_tables_before(world: World, person: UUID) -> None:
    assert traces(world) == {
        "leads", "lead_custom_values", "conversations", "messages", "campaign_messages", "campaign_message_parts",
        "campaign_logs", "campaign_number_checks", "campaign_suppressions", "campaign_status_events",
    }  # fmt: skip


def test_an_erased_person_can_be_read_in_no_column_of_any_table(world: World, person: UUID) -> None:
    counts = world.value("SELECT campaign_erase_lead(%s, 'Rui')", person)
    assert traces(world) == set()
    assert (counts["campaign_messages"], counts["campaign_message_parts"], counts["campaign_logs"]) == (3, 3, 2)


def test_the_invariants_hold_after_an_erasure(world: World, run: UUID, person: UUID) -> None:
    before = world.all(
        "SELECT message_id, part_no, status, idempotency_key, attempts FROM campaign_message_parts ORDER BY 1, 2"
    )
    world.do("SELECT campaign_erase_lead(%s, 'Rui')", person)
    assert world.wrong_counters() == []
    after = world.all(
        "SELECT message_id, part_no, status, idempotency_key, attempts FROM campaign_message_parts ORDER BY 1, 2"
    )
    assert after == before
    assert sorted((row["status"], row["error_code"]) for row in world.messages(run)) == [
        ("failed", "x"),
        ("sent", None),
        ("skipped", "lead_erased"),
    ]
    assert rows(world, "close_runs")[0]["id"] == run


def test_no_other_lead_loses_anything(world: World, workspace: UUID, run: UUID, person: UUID) -> None:
    neighbour = world.lead(workspace, client_name="Bruno Lima")
    world.due_message(run, neighbour, generated_message="Olá, Bruno")
    reply(
        world,
        talk(world, workspace, neighbour, contact_phone="5521999990000", contact_name="Bruno Lima"),
        "Oi, Bruno aqui",
    )
    before = [row for row in everything(world) if "bruno" in row[1]]
    world.do("SELECT campaign_erase_lead(%s, 'Rui')", person)
    assert len(before) == 4
    assert [row for row in everything(world) if "bruno" in row[1]] == before


def test_an_erased_person_who_is_imported_again_is_not_written_to(
    world: World, workspace: UUID, run: UUID, person: UUID
) -> None:
    world.do("SELECT campaign_erase_lead(%s, 'Rui')", person)
    again = world.due_message(run, world.lead(workspace, phone="11 8765-4321"))
    assert claim_batch(world).suppressed == 1
    assert message(world, again)["error_code"] == "suppressed"


def test_an_erasure_is_recorded_without_the_person(world: World, workspace: UUID, person: UUID) -> None:
    world.do("SELECT campaign_erase_lead(%s, 'Rui')", person)
    row = world.one("SELECT * FROM campaign_erasures")
    assert (row["lead_id"], row["workspace_id"], row["erased_by"]) == (person, workspace, "Rui")
    assert row["counts"]["leads"] == 1
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        world.do("SELECT campaign_erase_lead(%s, ' ')", person)


def test_an_erasure_may_be_repeated(world: World, person: UUID) -> None:
    for _ in range(2):
        world.do("SELECT campaign_erase_lead(%s, 'Rui')", person)
    assert len(suppressions(world)) == len({row["address_hash"] for row in suppressions(world)})
    assert traces(world) == set()


def test_nothing_is_erased_while_a_part_is_under_way(world: World, lead: UUID, due: UUID) -> None:
    holder = holding(world, due)
    holder.begin_new(due)
    with pytest.raises(psycopg.errors.RaiseException, match="being sent at this moment"):
        world.do("SELECT campaign_erase_lead(%s, 'Rui')", lead)
    holder.sent(due)
    world.do("SELECT campaign_erase_lead(%s, 'Rui')", lead)
    assert message(world, due)["status"] == "sent"


def test_a_message_that_was_being_written_ends_and_its_worker_finds_out(world: World, lead: UUID, due: UUID) -> None:
    holder = holding(world, due)
    holder.start_generating(due)
    world.do("SELECT campaign_erase_lead(%s, 'Rui')", lead)
    assert holder.begin_new(due, TEXT) == "lost"
    assert (message(world, due)["status"], message(world, due)["generated_message"]) == ("skipped", None)


def test_a_message_that_may_have_been_sent_stays_visible_as_such(world: World, lead: UUID, due: UUID) -> None:
    holder = holding(world, due)
    holder.begin_new(due)
    holder.settle(due, part_no=1, attempt_no=1, outcome="unknown", status="pending", delay_seconds=60)
    world.do("SELECT campaign_erase_lead(%s, 'Rui')", lead)
    row = message(world, due)
    assert (row["status"], row["error_class"], row["error_code"]) == ("failed", "unknown", "lead_erased")


def test_a_column_that_the_crm_adds_is_erased_too(world: World, person: UUID) -> None:
    world.do("ALTER TABLE leads ADD COLUMN nickname text NOT NULL DEFAULT ''")
    world.do("UPDATE leads SET nickname = 'Zenóbia' WHERE id = %s", person)
    world.do("SELECT campaign_erase_lead(%s, 'Rui')", person)
    assert traces(world) == set()


def test_every_table_of_ours_that_names_a_lead_or_message_is_thought_of(world: World) -> None:
    """A new column must be erased and exported, or be listed here because it holds only ids and figures."""
    found = world.all(
        """SELECT DISTINCT table_name AS name FROM information_schema.columns
           WHERE table_schema = current_schema() AND table_name LIKE 'campaign\\_%%'
             AND column_name IN ('lead_id', 'message_id', 'address', 'number')
           UNION SELECT 'campaign_messages'"""
    )
    handled = {
        "campaign_messages",
        "campaign_message_parts",
        "campaign_logs",
        "campaign_suppressions",
        "campaign_number_checks",
        "campaign_number_contacts",
        "campaign_model_calls",
    }
    ids_only = {"campaign_lead_days", "campaign_erasures", "campaign_inbox_slots", "campaign_worker_deaths"}
    assert {row["name"] for row in found} - handled - ids_only == set()


def test_the_export_holds_all_that_is_stored_of_a_person(world: World, person: UUID) -> None:
    document = world.value("SELECT campaign_export_lead(%s)", person)
    assert document["lead"]["client_name"] == NAME
    assert document["custom_fields"] == [{"name": "Email", "value": "zq@padaria.com"}]
    texts = {part["text"] for row in document["campaign_messages"] for part in row["parts"]}
    assert texts == {TEXT, "Rua das Acácias?"}
    said = {one["text_content"] for row in document["conversations"] for one in row["messages"]}
    assert {"SAIR", "Sou a Zenóbia, da Rua das Acácias", TEXT} <= said
    assert len(document["conversations"]) == 2
    assert [row["source"] for row in document["suppressions"]] == ["keyword"]
    assert [row["number"] for row in document["number_checks"]] == [PHONE]
    assert len(document["logs"]) == 2
    assert len(document["status_events"]) == 2


def test_the_export_holds_nobody_else(world: World, workspace: UUID, run: UUID, person: UUID) -> None:
    world.due_message(run, world.lead(workspace, client_name="Bruno Lima"), generated_message="Olá, Bruno")
    assert "Bruno" not in world.value("SELECT campaign_export_lead(%s)::text", person)


def test_there_is_no_export_of_a_lead_that_never_was(world: World) -> None:
    assert world.value("SELECT campaign_export_lead(%s)", uuid4()) is None


# Numbers --------------------------------------------------------------------------------------------------------------


def keep(world: World, checks: list[dict[str, Any]], leads: list[dict[str, Any]] | None = None) -> None:
    world.connection.execute(
        statement("keep_number_checks"),
        {"provider": "evolution", "inbox_id": uuid4(), "checks": Jsonb(checks), "leads": Jsonb(leads or [])},
    )


def known(world: World, *numbers: str, provider: str = "evolution") -> dict[str, bool]:
    found = rows(world, "read_number_checks", provider=provider, numbers=list(numbers), days=30.0, missing_days=7.0)
    return {row["number"]: row["exists"] for row in found}


def test_a_number_check_is_cached_for_its_time_and_a_miss_for_less(world: World) -> None:
    keep(world, [{"number": "551", "exists": True}, {"number": "552", "exists": False}])
    assert known(world, "551", "552", "553") == {"551": True, "552": False}
    assert known(world, "551", provider="uazapi") == {}
    world.move_clock(timedelta(days=8))
    assert known(world, "551", "552") == {"551": True}
    world.move_clock(timedelta(days=31))
    assert known(world, "551", "552") == {}


def test_a_newer_check_replaces_an_older_one(world: World) -> None:
    keep(world, [{"number": "551", "exists": False}])
    keep(world, [{"number": "551", "exists": True, "jid": "551@s.whatsapp.net", "account": "551"}])
    row = world.one('SELECT number, "exists", jid, account FROM campaign_number_checks')
    assert row == {"number": "551", "exists": True, "jid": "551@s.whatsapp.net", "account": "551"}


def test_the_crm_learns_what_is_known_of_the_lead(world: World, lead: UUID) -> None:
    keep(
        world,
        [{"number": "551", "exists": True}],
        [{"lead_id": str(lead), "reachable": True, "jid": "551@s.whatsapp.net"}],
    )
    assert world.one("SELECT whatsapp_valid, whatsapp_jid FROM leads WHERE id = %s", lead) == {
        "whatsapp_valid": True,
        "whatsapp_jid": "551@s.whatsapp.net",
    }
    keep(world, [{"number": "551", "exists": False}], [{"lead_id": str(lead), "reachable": False}])
    assert world.value("SELECT whatsapp_valid FROM leads WHERE id = %s", lead) is False
