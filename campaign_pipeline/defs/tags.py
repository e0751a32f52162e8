"""Run tags that several modules read, and the owners shown in the UI."""

import warnings

import dagster as dg

# Owners of jobs and code references are beta in 1.13, the version that pyproject.toml pins. Their warning at each
# process start would hide what an operator has to read.
warnings.filterwarnings("ignore", message=r".*(owners|ource_code_references|CodeReference)", category=dg.BetaWarning)

WORK = "campaign/work"
"""The kind of work that a run does; all our jobs have this tag.

deploy/dagster.yaml uses it to limit concurrent runs of a kind. Not a pool: a crashed run keeps a pool's slots until a
daemon frees them, and leases already protect the messages.
"""

CAMPAIGNS = "campaign/campaigns"
"""Of a run that has claimed a batch: the names of its campaign runs."""

MESSAGES = "campaign/messages"
"""Of a run that has claimed a batch: how many messages."""

OWNERS = ["team:campaigns"]
"""Owners of all Dagster objects that can have one, shown in the UI."""
