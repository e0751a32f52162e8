"""`python -m campaign_pipeline.sandbox`: reads flags and serves."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from campaign_pipeline.sandbox.behaviour import FAULTS
from campaign_pipeline.sandbox.flags import USUAL_GENERATION, USUAL_SEND, behaviour_from_flags
from campaign_pipeline.sandbox.server import Sandbox, SandboxOptions, serve


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until told to stop; flags that make no sense end it with status 2 and one sentence."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    try:
        behaviour = behaviour_from_flags(
            seed=flags.seed,
            generation_latency=flags.generation_latency,
            generation_sigma=flags.generation_sigma,
            send_latency=flags.send_latency,
            send_sigma=flags.send_sigma,
            faults=flags.fault,
            behaviour_file=flags.behaviour_file,
        )
        serve(SandboxOptions(flags.host, flags.port, behaviour, flags.record_file, flags.ready_file), _announce)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"sandbox: {error}\n")
        sys.exit(2)


def _announce(sandbox: Sandbox) -> None:
    sys.stdout.write(
        f"The sandbox serves at {sandbox.url}\n"
        f"  OPENROUTER_BASE_URL={sandbox.openrouter_url}\n"
        f"  EVOLUTION_API_URL={sandbox.evolution_url}\n"
        f"  UAZAPI_API_URL={sandbox.uazapi_url}\n"
        f"  CLOUD_API_URL={sandbox.cloud_api_url}\n"
        f"  SUPABASE_URL={sandbox.supabase_url}\n"
    )
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m campaign_pipeline.sandbox",
        description="Stand-ins for OpenRouter, Evolution and UAZAPI, served over HTTP.",
        epilog=_faults_in_words(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=0, help="port to listen on (default: any that is free)")
    parser.add_argument("--seed", type=int, help="of latencies and faults (default: 0)")
    for kind, usual in (("generation", USUAL_GENERATION), ("send", USUAL_SEND)):
        parser.add_argument(
            f"--{kind}-latency", type=float, metavar="SECONDS", help=f"mean latency of a {kind} (default: {usual.mean})"
        )
        parser.add_argument(
            f"--{kind}-sigma", type=float, metavar="SIGMA", help="spread; above 0 it is log-normal (default: 0)"
        )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="RULE",
        help="[provider/]kind:name[:key=value]..., keys rate, phone, text, instance, times, times_each, seconds, "
        "accepts; may be repeated, the first that applies wins: send:not_on_whatsapp:rate=0.02",
    )
    parser.add_argument("--behaviour-file", type=Path, metavar="FILE", help="a whole behaviour as JSON")
    parser.add_argument("--record-file", type=Path, metavar="FILE", help="keep what is accepted here, a line each")
    parser.add_argument("--ready-file", type=Path, metavar="FILE", help="write address and URLs here when serving")
    return parser


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port between 0 and 65535")
    return port


def _faults_in_words() -> str:
    lines = ["faults:"]
    for kind, faults in FAULTS.items():
        lines.append(f"  {kind.value}")
        lines += [f"    {name:22} {meaning}" for name, meaning in faults.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
