"""Tags of our Dagster runs that more than one module reads."""

WORK = "campaign/work"
"""Every job of ours has it: the kind of work that its runs do.

By it deploy/dagster.yaml limits how many of a kind are at work at once. Not a pool: its slots are kept by a run that
crashed until a daemon frees them, and leases guard the messages already.
"""

CAMPAIGNS = "campaign/campaigns"
"""Of a run that has claimed a batch: the campaign runs that it works, by name."""

MESSAGES = "campaign/messages"
"""Of a run that has claimed a batch: how many messages."""
