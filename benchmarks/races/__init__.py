"""The races, by name. The docstring of each says what is compared with what; RESULTS.md quotes it."""

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType

from benchmarks.races import (
    claim,
    contexts,
    distance,
    footprint,
    idle,
    old_way,
    punctual,
    small_batch,
    thousand,
    throughput,
    tokens,
)
from benchmarks.report import Result
from benchmarks.world import Bench, Options

_MODULES = (old_way, thousand, throughput, claim, contexts, footprint, distance, tokens, small_batch, punctual, idle)


def _runner(module: ModuleType) -> Callable[[Bench, Options], Result]:
    def run(bench: Bench, options: Options) -> Result:
        title, _, compared = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
        result = Result(
            name=module.__name__.rpartition(".")[2],
            title=title.removesuffix("."),
            compared=compared,
            trusted=not options.short,
        )
        module.race(bench, options, result)
        return result

    return run


RACES: Mapping[str, Callable[[Bench, Options], Result]] = {
    module.__name__.rpartition(".")[2]: _runner(module) for module in _MODULES
}
"""The races in the order in which they run."""

NOT_SHORT = ("small_batch", "punctual", "idle")
"""Races against an older commit, in real time. A short run skips them: they need git history and take minutes."""
