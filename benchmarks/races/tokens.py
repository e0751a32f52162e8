"""Input tokens of a campaign with long instructions.

1,000 messages of a campaign with 3,000 tokens of instructions, 20 in flight: the input tokens that are billed for this
project's requests, at the full price, against all input tokens, which is what they cost without prompt caching. Beside
it the same prompts without the session and without the mark that some models need. The sandbox bills as OpenRouter's
guide on prompt caching says, and runs each model on three endpoints, each with a cache of its own.
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
    # The bar; None where the model's maker gives too little for a cached token to reach it.
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
"""As `world.fill` writes them, eight for each lead."""

IN_FLIGHT = 20
LATENCIES = {Kind.GENERATION: Latency(0.05, 0.5)}
"""Seconds: a prompt can be read from the cache once the first answer is there, so it must not come at once."""


def race(bench: Bench, options: Options, result: Result) -> None:
    """Run every model once; what is billed hardly depends on the seed."""
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
    result.plots.append(Plot(f"Input tokens billed, {count:,} messages", "of all input tokens", ratios, ("bar", 0.25)))
    result.notes.append(
        "Without a bar: Gemini and GPT-4o bill a cached token at 0.25 and 0.5 of the price, which alone is at the bar "
        "or above it."
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
    """Input tokens that were billed, at the full price, as a share of all input tokens."""
    entries = sandbox.record(kind="generation", accepted=True)
    billed = sum(float(entry["billed_prompt_tokens"]) for entry in entries)
    return billed / sum(int(entry["prompt_tokens"]) for entry in entries)


async def _ask_without_cache(sandbox: SandboxProcess, model: str, count: int) -> None:
    """Ask for as many first contacts of the same campaign, with nothing in a request that is there for the cache."""
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
