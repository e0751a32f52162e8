"""Builds a behaviour from flags, for every command that has them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from campaign_pipeline.sandbox.behaviour import Behaviour, Fault, Kind, Latency
from campaign_pipeline.sandbox.server import check_providers

USUAL_GENERATION = Latency(0.7)
USUAL_SEND = Latency(0.2)


def behaviour_from_flags(
    *,
    seed: int | None = None,
    generation_latency: float | None = None,
    generation_sigma: float | None = None,
    send_latency: float | None = None,
    send_sigma: float | None = None,
    faults: Sequence[str] = (),
    behaviour_file: Path | None = None,
) -> Behaviour:
    """Build a behaviour from flags. They override the file, and their faults come before the file's.

    Without a file, a generation takes 0.7 s and a send 0.2 s unless the flags say otherwise.

    Raises:
        BehaviourError: something in it makes no sense.
        OSError: the file cannot be read.
    """
    if behaviour_file is None:
        base = Behaviour(latencies={Kind.GENERATION: USUAL_GENERATION, Kind.SEND: USUAL_SEND})
    else:
        base = Behaviour.from_json(behaviour_file.read_bytes())
    latencies = dict(base.latencies)
    for kind, mean, sigma in (
        (Kind.GENERATION, generation_latency, generation_sigma),
        (Kind.SEND, send_latency, send_sigma),
    ):
        usual = latencies.get(kind, Latency())
        latencies[kind] = Latency(usual.mean if mean is None else mean, usual.sigma if sigma is None else sigma)
    behaviour = replace(
        base,
        seed=base.seed if seed is None else seed,
        latencies=latencies,
        faults=(*(Fault.parse(words) for words in faults), *base.faults),
    )
    check_providers(behaviour)
    return behaviour
