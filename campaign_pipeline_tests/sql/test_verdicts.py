"""The store's verdicts are the same in SQL and in Python."""

import re

from campaign_pipeline.core.model import MessageStatus, PartStatus
from campaign_pipeline.core.ports import Verdict
from campaign_pipeline_tests.factories import World

ANSWERING = (
    "campaign_verdicts",
    "campaign_start_generating",
    "campaign_begin_parts",
    "campaign_suppressed_intents",
    "campaign_reserve_lead_days",
    "campaign_reserve_numbers",
)
"""The functions of which each answer is a verdict."""

WORD = re.compile(r"(?:THEN|ELSE|jsonb_object_agg\([\w.]+,) '([a-z_]+)'")


def test_every_verdict_of_sql_is_one_of_python_and_the_other_way_round(world: World) -> None:
    sources = world.all("SELECT proname, prosrc FROM pg_proc WHERE proname = ANY (%s)", list(ANSWERING))
    assert {row["proname"] for row in sources} == set(ANSWERING)
    words = {word for row in sources for word in WORD.findall(row["prosrc"])} - {*PartStatus, *MessageStatus}
    check = world.value(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'campaign_runs_status_known'"
    )
    runs = {f"run_{status}" for status in re.findall(r"'([a-z]+)'", check)} - {"run_running"}
    assert words - {"run_"} == {verdict for verdict in Verdict if not verdict.startswith("run_")}
    assert runs == {verdict for verdict in Verdict if verdict.startswith("run_")}
