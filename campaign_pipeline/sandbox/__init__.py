"""Mock providers over real HTTP, with configurable latencies and faults.

It is an outside system: it knows nothing of the pipeline, as OpenRouter or WhatsApp know nothing of it.
"""

from campaign_pipeline.sandbox.behaviour import (
    FAULTS,
    Behaviour,
    BehaviourError,
    Fault,
    InstanceState,
    Kind,
    Latency,
)
from campaign_pipeline.sandbox.flags import behaviour_from_flags
from campaign_pipeline.sandbox.process import SandboxFailed, SandboxProcess
from campaign_pipeline.sandbox.record import Entry, Record, RecordError
from campaign_pipeline.sandbox.server import PROVIDERS, Sandbox, SandboxOptions, serve

__all__ = [
    "FAULTS",
    "PROVIDERS",
    "Behaviour",
    "BehaviourError",
    "Entry",
    "Fault",
    "InstanceState",
    "Kind",
    "Latency",
    "Record",
    "RecordError",
    "Sandbox",
    "SandboxFailed",
    "SandboxOptions",
    "SandboxProcess",
    "behaviour_from_flags",
    "serve",
]
