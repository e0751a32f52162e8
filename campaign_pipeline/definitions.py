"""The code location: everything that Dagster may see, listed by hand."""

import dagster as dg

from campaign_pipeline.defs.io import HandleIOManager, TableIOManager
from campaign_pipeline.defs.jobs import process_campaign_queue
from campaign_pipeline.defs.resources import LanguageModelResource, ProvidersResource, QueueDatabase

defs = dg.Definitions(
    jobs=[process_campaign_queue],
    resources={
        "database": QueueDatabase(),
        "language_model": LanguageModelResource(),
        "providers": ProvidersResource(),
        "tables": TableIOManager(),
        "handles": HandleIOManager(),
    },
)
