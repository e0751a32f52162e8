"""Jobs for reviewing texts before they are sent: `preview_messages` and `approve_messages`."""

import json
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from campaign_pipeline.adapters.reviews import Decision
from campaign_pipeline.defs.ops import plain_failures
from campaign_pipeline.defs.resources import QueueDatabase
from campaign_pipeline.defs.tags import OWNERS, WORK
from campaign_pipeline.defs.trial import TrialFailed, decide, preview, texts_to_review


class PreviewConfig(dg.Config):
    """Which texts to write."""

    run: str = Field(description="A campaign run by its name or id, or its campaign's.")
    count: int = Field(default=5, ge=1, le=100, description="How many texts.")
    keep: bool = Field(default=False, description="Store the texts; they are sent later as they are.")
    show_personal_data: bool = Field(default=False, description="Do not mask names and texts.")


@dg.op(out={"preview": dg.Out(io_manager_key="handles", description="How many texts, and what they cost.")})
def write_previews(config: PreviewConfig, database: QueueDatabase) -> dg.Output[dict[str, Any]]:
    """Write the texts of a run's next messages with the real prompt and model; nothing is sent."""
    with plain_failures():
        try:
            found = preview(database.url(), config.run, config.count, keep=config.keep)
        except TrialFailed as error:
            raise dg.Failure(description=str(error), allow_retries=False) from None
    rows = [each.row(personal=config.show_personal_data) for each in found]
    figures = {"texts": len(rows), "cost_usd": round(sum(row["cost_usd"] for row in rows), 6)}
    records = [
        dg.TableRecord(
            {
                "message": row["message_id"],
                "lead": row["lead"] or "",
                "text": "\n―\n".join(row["parts"]),
                "cost_usd": row["cost_usd"],
                "kept": row["kept"],
                "warnings": " ".join(row["warnings"]),
            }
        )
        for row in rows
    ]
    return dg.Output(figures, metadata={**figures, "texts": dg.MetadataValue.table(records, schema=_SCHEMA)})


_SCHEMA = dg.TableSchema(
    [
        dg.TableColumn("message"),
        dg.TableColumn("lead"),
        dg.TableColumn("text"),
        dg.TableColumn("cost_usd", "float"),
        dg.TableColumn("kept", "bool"),
        dg.TableColumn("warnings"),
    ]
)


class ApproveConfig(dg.Config):
    """The texts, and the decision on them."""

    run: str = Field(description="A campaign run by its name or id, or its campaign's.")
    by: str = Field(min_length=1, description="Your name, for the log.")
    message_ids: list[str] = Field(default=[], description="The messages; empty: every waiting text of the run.")
    decision: Literal["approved", "rejected"] = Field(
        default="approved", description="approved: they are sent; rejected: they are not."
    )
    texts: dict[str, str] = Field(default={}, description="Another text for some of them, by message id.")


@dg.op(out={"decided": dg.Out(io_manager_key="handles", description="How many texts were decided.")})
def decide_texts(context: dg.OpExecutionContext, config: ApproveConfig, database: QueueDatabase) -> dict[str, int]:
    """Record a person's decisions on waiting texts; changed texts are checked first."""
    with plain_failures():
        url = database.url()
        try:
            ids = [*config.message_ids, *(each for each in config.texts if each not in config.message_ids)]
            ids = ids or [row["id"] for row in texts_to_review(url, config.run, write=0).rows]
            decisions = [Decision(each, config.decision, config.texts.get(each)) for each in ids]
            done = decide(url, config.run, decisions, config.by)
        except TrialFailed as error:
            raise dg.Failure(description=str(error), allow_retries=False) from None
    late = sorted(set(ids) - done)
    if not ids:
        context.log.warning("No written text waits. The job preview_messages with keep: true writes the texts first.")
    context.log.info(f"{len(done)} of {len(ids)} texts are {config.decision} by {config.by}.")
    if late:
        context.log.warning(f"Too late for {json.dumps(late)}: they do not wait any more, or have no text.")
    return {"decided": len(done), "too_late": len(late)}


@dg.job(executor_def=dg.in_process_executor, tags={WORK: "review"}, owners=OWNERS)
def preview_messages() -> None:
    """Show the texts of a run's next messages before anything is sent."""
    write_previews()


@dg.job(executor_def=dg.in_process_executor, tags={WORK: "review"}, owners=OWNERS)
def approve_messages() -> None:
    """Approve, change or reject texts that wait for a person."""
    decide_texts()
