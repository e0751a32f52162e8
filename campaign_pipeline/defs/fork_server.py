"""The fork server of a run's steps: a process that has everything imported, from which each step's process is forked.

It belongs to the run's process, and ends with it.
"""

from multiprocessing import forkserver

PRELOAD = ["campaign_pipeline.defs.preload", "dagster._core.executor.multiprocess"]
"""Imported by the fork server in this order. Dagster would put its own module first, if it were not named."""


def start_fork_server() -> None:
    """Start it, unless it runs already, and return at once.

    It imports for one and a half seconds. The executor starts it, so that it imports while the run's process prepares
    its first step. A run's process that knows its executor before Dagster is imported starts it even earlier: then both
    import side by side. For that reason this module does not import Dagster.
    """
    forkserver.set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()
