"""Runs that repeat others: the lease owners of earlier runs, and whether their steps have ended.

Dagster's word that a step or run has ended is enough. It may be wrong, if a process outlives a run that Dagster gave
up; ending its leases does no harm then (see campaign_end_leases).
"""

import os
import secrets
import socket

import dagster as dg

_HOST = f"{socket.gethostname()}/{secrets.token_hex(4)}"
"""The host in the names of this process and of those that it forks. Two containers may have the same host name and the
same process ids; without the token, a death in one could end the leases of the other."""


def lease_owner(run_id: str) -> str:
    """Return the lease owner of a Dagster run; the shard's key and the process follow, see `step_owner`."""
    return f"run {run_id[:8]}"


def step_owner(run_id: str, shard_key: str, pid: int | None = None) -> str:
    """Return the lease owner of the process of a shard's step: this process, or a forked one of this pid."""
    return f"{lease_owner(run_id)} {shard_key} {_HOST}:{os.getpid() if pid is None else pid}"


def ended_runs_before(context: dg.OpExecutionContext) -> list[str]:
    """Return the owners of the runs that this one repeats and that have ended, the latest first."""
    owners, run_id = [], context.run.parent_run_id
    while run_id is not None and (run := context.instance.get_run_by_id(run_id)) is not None:
        if run.is_finished:
            owners.append(lease_owner(run_id))
        run_id = run.parent_run_id
    return owners
