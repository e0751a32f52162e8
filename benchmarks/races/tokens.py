"""Input tokens of a campaign with long instructions.

1,000 messages of a campaign with 3,000 tokens of instructions, 20 in flight. The figure is the input tokens billed for
this project's requests, converted to the full price, over all input tokens, which is the cost without prompt caching.
The same prompts without `session_id` and cache marks are shown for comparison. The sandbox bills according to
OpenRouter's guide on prompt caching and serves each model from three endpoints, each with its own cache.
"""

import asyncio
from collections.abc import Mapping

import psycopg

from benchmarks.ours import JobSpec, run_against
from benchmarks.report import Plot, Result
from benchmarks.world import KEY, Bench, Options, fill
from campaign_pipeline.adapters.hosts import Hosts
from campaign_pipeline.adapters.http import http_client, post
from campaign_pipeline.adapters.openrouter import request_body
from campaign_pipeline.core.context import LeadContext
from campaign_pipeline.core.generation import first_contact_prompt
from campaign_pipeline.core.ports import Prompt
from campaign_pipeline.sandbox import Behaviour, Kind, Latency, SandboxProcess

MODELS: Mapping[str, float | None] = {
    # The target; None where the discount for a cached token is too small to reach it.
    "anthropic/claude-sonnet-4.5": 0.25,
    "qwen/qwen3-max": 0.25,
    "openai/gpt-5-mini": 0.25,
    "deepseek/deepseek-v3.2": 0.25,
    "google/gemini-2.5-flash": None,
    "openai/gpt-4o-mini": None,
}

INSTRUCTIONS = (
    "Você é consultora da Aurora, que vende um sistema de atendimento por WhatsApp para pequenas empresas. "
    "Apresente-se em poucas linhas, mostre que conhece o ramo do cliente e pergunte se pode explicar mais. " * 60
)[: 3000 * 4]
VALUE = "Valor {field} do lead {lead}, como o CRM o guarda"
"""A custom field's value as `world.fill` writes it; each lead has eight."""

IN_FLIGHT = 20
LATENCIES = {Kind.GENERATION: Latency(0.05, 0.5)}
"""Seconds. Not zero: a prompt can be read from the cache only after the first answer."""


def race(bench: Bench, options: Options, result: Result) -> None:
    """Run every model once; the bill hardly depends on the seed."""
    count = options.pick(1000, 20)
    ratios: dict[str, float] = {}
    for model, most in options.pick(MODELS, dict([next(iter(MODELS.items()))])).items():
        with SandboxProcess(Behaviour(seed=options.seed, latencies=LATENCIES)) as sandbox:
            _work(bench, sandbox, model, count)
            ours = _billed(sandbox)
        with SandboxProcess(Behaviour(seed=options.seed, latencies=LATENCIES)) as sandbox:
            asyncio.run(_ask_without_cache(sandbox, model, count))
            plain = _billed(sandbox)
        ratios[f"this project: {model}"] = ours
        what = f"{model}: billed / without caching"
        if most is None:
            result.tell(what, ours, "×")
        else:
            result.judge(what, ours, "×", most=most)
        result.tell(f"{model}: without session and mark / without caching", plain, "×")
    plot = Plot(f"Input tokens billed, {count:,} messages", "of all input tokens", ratios, ("target", 0.25))
    result.plots.append(plot)
    result.notes.append(
        "Gemini and GPT-4o have no target: they bill a cached token at 0.25 and 0.5 of the price, so they cannot reach "
        "0.25."
    )


def _work(bench: Bench, sandbox: SandboxProcess, model: str, count: int) -> None:
    with bench.database("bench_tokens") as url:
        fill(url, count)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("UPDATE public.ai_agents SET model = %s", [model])
            connection.execute("UPDATE public.campaign_configs SET ai_instructions = %s", [INSTRUCTIONS])
        spec = JobSpec(IN_FLIGHT, batch_size=count, shard_size=count, in_process=True)
        run_against(bench.environment(url, sandbox), spec, sandbox, count)


def _billed(sandbox: SandboxProcess) -> float:
    """Return the billed input tokens, converted to the full price, as a share of all input tokens."""
    entries = sandbox.record(kind="generation", accepted=True)
    billed = sum(float(entry["billed_prompt_tokens"]) for entry in entries)
    return billed / sum(int(entry["prompt_tokens"]) for entry in entries)


async def _ask_without_cache(sandbox: SandboxProcess, model: str, count: int) -> None:
    """Request as many first contacts of the same campaign, without session and cache mark."""
    free = asyncio.Semaphore(IN_FLIGHT)
    host = Hosts.from_environment({"CAMPAIGN_ONLY_HOSTS": f"{sandbox.host}:{sandbox.port}"})
    async with http_client(connections=IN_FLIGHT, hosts=host) as client:

        async def ask(number: int) -> None:
            values = tuple((f"Campo {field}", VALUE.format(field=field, lead=number)) for field in range(1, 9))
            lead = LeadContext(f"Ana Souza {number}", f"Padaria {number}", custom_fields=values)
            system, user = first_contact_prompt(INSTRUCTIONS, lead)
            body = request_body(Prompt(model, system, user, reference=str(number)))
            body["messages"][0]["content"] = system  # without a mark
            async with free:
                url = f"{sandbox.openrouter_url}/chat/completions"
                await post(client, url, body, {"Authorization": f"Bearer {KEY}"}, 30.0)

        await asyncio.gather(*(ask(number) for number in range(count)))
