"""Asset checks of a batch, which its run evaluates when it closes the batch.

They are declared as checks of `campaign_runs`, so that its page shows them. Run on their own, they read the latest
batch's result from its materialization.
"""

from collections.abc import Iterator

import dagster as dg

from campaign_pipeline.core.batch_outcome import BatchCounts, BatchOutcome, Cause
from campaign_pipeline.defs.report import BATCH

CAMPAIGN_RUNS = dg.AssetKey("campaign_runs")
WORKED = "batch_was_worked"
COULD_SEND = "batch_could_send"


def evaluations(context: dg.OpExecutionContext, outcome: BatchOutcome) -> Iterator[dg.AssetCheckEvaluation]:
    """Yield the checks of a batch; failures are logged too."""
    for name, result in ((WORKED, worked_result(outcome)), (COULD_SEND, could_send_result(outcome))):
        if not result.passed:
            log = context.log.error if result.severity == dg.AssetCheckSeverity.ERROR else context.log.warning
            log(result.description or name)
        yield dg.AssetCheckEvaluation(
            asset_key=CAMPAIGN_RUNS,
            check_name=name,
            passed=result.passed,
            severity=result.severity,
            description=result.description,
            metadata=result.metadata,
        )


def worked_result(outcome: BatchOutcome) -> dg.AssetCheckResult:
    """Check that a step worked on every claimed message."""
    return dg.AssetCheckResult(
        passed=outcome.is_worked,
        severity=dg.AssetCheckSeverity.ERROR,
        description=outcome.work_sentence(),
        metadata={"claimed": outcome.claimed, "not_worked": outcome.unworked, "given_back": outcome.given_back},
    )


def could_send_result(outcome: BatchOutcome) -> dg.AssetCheckResult:
    """Check that nothing that a person must fix held messages back; ERROR if nothing at all was sent."""
    nothing_sent = outcome.counts.sent == 0
    return dg.AssetCheckResult(
        passed=outcome.could_send,
        severity=dg.AssetCheckSeverity.ERROR if nothing_sent else dg.AssetCheckSeverity.WARN,
        description=outcome.cause_sentence(),
        metadata={"claimed": outcome.claimed, "sent": outcome.counts.sent},
    )


def _latest(context: dg.AssetCheckExecutionContext) -> BatchOutcome:
    event = context.instance.get_latest_materialization_event(CAMPAIGN_RUNS)
    found = event.asset_materialization.metadata.get(BATCH) if event and event.asset_materialization else None
    if found is None:
        return BatchOutcome(0, BatchCounts(), 0, 0)
    row = dict(found.value)
    counts, causes = BatchCounts(**row.pop("counts")), tuple(Cause(**each) for each in row.pop("causes"))
    return BatchOutcome(**row, counts=counts, causes=causes)


@dg.asset_check(
    asset=CAMPAIGN_RUNS,
    name=WORKED,
    description="A step worked on every message of the latest batch. On failure, the other messages are back in the "
    "queue: launch process_campaign_queue if no schedule does.",
)
def batch_was_worked(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Repeat the result of the latest batch."""
    return worked_result(_latest(context))


@dg.asset_check(
    asset=CAMPAIGN_RUNS,
    name=COULD_SEND,
    description="No message of the latest batch waits for something that a person must fix: a key, an inbox, a "
    "setting. On failure, follow the sentence; the messages wait and then continue automatically.",
)
def batch_could_send(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Repeat the result of the latest batch."""
    return could_send_result(_latest(context))


RUN_CHECKS = [batch_was_worked, batch_could_send]
