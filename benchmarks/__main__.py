"""`python -m benchmarks`: runs all races and writes RESULTS.md, its plots, and the README's figures."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.races import NOT_SHORT, RACES
from benchmarks.readme import write_figures
from benchmarks.report import Result, describe_machine, show, write_results
from benchmarks.world import Bench, Options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen races. If one fails, the command ends with its error and writes nothing."""
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
        console.print("Only some races were run, so RESULTS.md is unchanged.")
        return
    file = write_results(results, machine, options.out, seed=options.seed, repeat=options.repeat, short=options.short)
    console.print(f"Written: {file}")
    if options.out == Options.out:
        readme = options.out.parent / "README.md"
        write_figures(readme, file)
        console.print(f"Written: the figures of {readme}")


def _options(arguments: Sequence[str] | None) -> Options:
    usual = Options()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Benchmarks this project against Celery, procrastinate and bare loops."
    )
    parser.add_argument(
        "--short",
        action="store_true",
        help=f"tiny sizes, to prove that the races run; without {', '.join(NOT_SHORT)} (needs --out)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(RACES),
        default=[],
        metavar="RACE",
        help=f"run only this race, and do not write RESULTS.md; may be repeated. Races: {', '.join(RACES)}",
    )
    parser.add_argument(
        "--seed", type=int, default=usual.seed, help="seed of the first repetition's latencies (default: %(default)s)"
    )
    parser.add_argument(
        "--repeat",
        type=_positive,
        default=usual.repeat,
        help="number of repetitions of old_way's rivals, thousand, throughput, distance and small_batch; medians are "
        "reported (default: %(default)s, with which all races take 35 to 40 minutes on two free cores)",
    )
    parser.add_argument(
        "--rows", type=_positive, default=usual.rows, help="size of the large queue (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder for RESULTS.md, plots and plans (default: benchmarks)")
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
