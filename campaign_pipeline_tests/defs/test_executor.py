"""The run config of executors on each deployment, and the options of Dagster's executors."""

from typing import Any

import pytest
from dagster._config import validate_config
from dagster_celery import celery_executor
from dagster_k8s import k8s_job_executor
from kombu.transport.redis import Channel

from campaign_pipeline.adapters.deployment import CelerySettings, KubernetesSettings
from campaign_pipeline.defs.celery_settings import executor_config
from campaign_pipeline.defs.executor import _config, _pods


def accepts(engine: str, config: dict[str, Any]) -> bool:
    return bool(validate_config(_config(engine).config_type, config).success)


@pytest.mark.parametrize("engine", ["multiprocess", "in_process", "celery", "k8s"])
def test_a_run_config_for_one_host_means_the_same_everywhere_and_a_broker_is_there_where_it_is_deployed(
    engine: str,
) -> None:
    assert accepts(engine, {"multiprocess": {"max_concurrent": 2}})
    assert accepts(engine, {"in_process": {}})
    assert _config(engine).default_value == {engine: {}}
    assert accepts(engine, {"celery": {}}) == (engine == "celery")
    assert accepts(engine, {"k8s": {"max_concurrent": 2}}) == (engine == "k8s")


def test_workers_look_for_the_steps_of_a_dead_host_four_times_per_visibility_timeout() -> None:
    config = executor_config(CelerySettings("redis://redis/0", "redis://redis/0", visibility_seconds=120))
    options = config["config_source"]["broker_transport_options"]
    assert options["unacked_restore_interval"] * options["unacked_restore_throttle"] == 120 / 4
    assert set(options) <= set(Channel.from_transport_options), "unknown options are ignored"


def test_dagsters_executors_take_what_they_are_told() -> None:
    retries: dict[str, Any] = {"retries": {"enabled": {}}}
    celery = executor_config(CelerySettings("redis://redis/0", "redis://redis/0", "campaigns", 60))
    assert validate_config(celery_executor.config_schema.config_type, {**retries, **celery}).success
    pods = _pods(KubernetesSettings("campaigns", "registry/image:1", "500m", "512Mi"))
    assert pods["resources"] == {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "512Mi"}}
    assert validate_config(k8s_job_executor.config_schema.config_type, {**retries, **pods, "max_concurrent": 2}).success
    assert _pods(KubernetesSettings()) == {}
