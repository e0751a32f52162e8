"""Run tags that several modules read, and the owners shown in the UI."""

import warnings

import dagster as dg

# Owners of jobs and code references are beta in 1.13, the version that pyproject.toml pins. Their warning at each
# process start would hide what an operator has to read.
warnings.filterwarnings("ignore", message=r".*(owners|ource_code_references|CodeReference)", category=dg.BetaWarning)

WORK = "campaign/work"
"""Every job of ours has it: the kind of work that its runs do.

By it deploy/dagster.yaml limits how many of a kind are at work at once. Not a pool: its slots are kept by a run that
crashed until a daemon frees them, and leases guard the messages already.
"""

CAMPAIGNS = "campaign/campaigns"
"""Of a run that has claimed a batch: the campaign runs that it works, by name."""

MESSAGES = "campaign/messages"
"""Of a run that has claimed a batch: how many messages."""

OWNERS = ["team:campaigns"]
"""Of everything that Dagster lets have an owner: whom its UI names."""
