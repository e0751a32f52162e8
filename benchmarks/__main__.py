"""`python -m benchmarks`: runs all races, and writes RESULTS.md with its plots."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.races import NOT_SHORT, RACES
from benchmarks.report import Result, describe_machine, show, write_results
from benchmarks.world import Bench, Options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for; a race that breaks ends it with its error, and nothing is written."""
    options = _options(arguments)
    console = Console()
    results: list[Result] = []
    with Bench() as bench:
        machine = describe_machine(bench.postgres_version())
        for line in machine:
            console.print(line, highlight=False)
        for name in options.only or [name for name in RACES if not (options.short and name in NOT_SHORT)]:
            console.rule(name)
            started = time.monotonic()
            result = RACES[name](bench, options)
            show(result, console)
            console.print(f"{time.monotonic() - started:.0f} s", highlight=False)
            results.append(result)
    if options.only and not options.short:
        console.print("Not all races were run, so RESULTS.md stays as it is.")
        return
    file = write_results(results, machine, options.out, seed=options.seed, repeat=options.repeat, short=options.short)
    console.print(f"Written: {file}")


def _options(arguments: Sequence[str] | None) -> Options:
    usual = Options()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Races against other ways of doing the same work."
    )
    parser.add_argument(
        "--short",
        action="store_true",
        help=f"tiny: only proves that races run, without {', '.join(NOT_SHORT)} (needs --out)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(RACES),
        default=[],
        metavar="RACE",
        help=f"of: {', '.join(RACES)}; may be repeated",
    )
    parser.add_argument(
        "--seed", type=int, default=usual.seed, help="of latencies; repetitions count on from it (default: %(default)s)"
    )
    parser.add_argument(
        "--repeat",
        type=_positive,
        default=usual.repeat,
        help="repetitions, of which medians are reported (default: %(default)s)",
    )
    parser.add_argument("--rows", type=_positive, default=usual.rows, help="of the large queue (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of RESULTS.md, plots and plans (default: benchmarks)")
    flags = parser.parse_args(arguments)
    if flags.short and flags.out is None:
        parser.error("--short needs --out: its figures mean nothing and must not replace those of a real run")
    return Options(flags.short, flags.seed, flags.repeat, flags.rows, tuple(flags.only), flags.out or usual.out)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


if __name__ == "__main__":
    main(sys.argv[1:])
