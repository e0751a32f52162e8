"""The files under deploy/, as far as they can be checked without Docker or a cluster."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._serdes import ConfigurableClassData
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import DagsterK8sJobConfig, construct_dagster_k8s_job
from dagster_k8s.launcher import K8sRunLauncher
from kubernetes.client import ApiClient  # type: ignore[import-untyped]

from campaign_pipeline.adapters.deployment import Deployment

CHECKOUT = Path(__file__).parents[1]
DEPLOY = CHECKOUT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes" / "manifests").glob("*.yaml"))
KUBERNETES = "1.33"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


VALUES: dict[str, Any] = load(DEPLOY / "kubernetes" / "values.yaml")
COMPOSE: dict[str, Any] = load(DEPLOY / "compose" / "compose.yaml")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.stem))
def test_kubernetes_understands_every_manifest(path: Path) -> None:
    for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Return name, pod and container of all that the chart creates from our values, as far as the values affect it."""
    (code,) = VALUES["dagster-user-deployments"]["deployments"]
    for name, values in {
        "code": code,
        "webserver": VALUES["dagsterWebserver"],
        "daemon": VALUES["dagsterDaemon"],
    }.items():
        container = {key: values[key] for key in ("securityContext", "resources", "volumeMounts")}
        for probe in ("readinessProbe", "startupProbe"):
            given = {key: value for key, value in values.get(probe, {}).items() if key != "enabled"}
            if given:  # the chart adds the question itself
                container[probe] = {**given, "exec": {"command": ["true"]}}
        yield name, {"securityContext": values["podSecurityContext"], "volumes": values["volumes"]}, container
    launcher = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
    yield (
        "run",
        {**launcher["runK8sConfig"]["podSpecConfig"], "volumes": launcher["volumes"]},
        {key: launcher[key] for key in ("securityContext", "resources", "volumeMounts")},
    )


@pytest.mark.parametrize(
    ("name", "pod", "container"), list(pods()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_charts_pods_are_ones_that_kubernetes_takes_and_run_without_root(
    name: str, pod: dict[str, Any], container: dict[str, Any]
) -> None:
    spec = {**pod, "containers": [{"name": name, "image": "image", **container}]}
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}, KUBERNETES, strict=True
    )
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["resources"]["limits"]["memory"]


def test_a_broken_manifest_would_be_noticed() -> None:
    manifest = load(DEPLOY / "kubernetes" / "manifests" / "workers.yaml")
    manifest["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_shipped_variables_are_a_deployment_that_several_hosts_can_share() -> None:
    config = load(DEPLOY / "kubernetes" / "manifests" / "config.yaml")["data"]
    runs = Deployment.from_environment({**config, "CAMPAIGN_DATABASE_URL": "postgresql://db/queue"})
    assert (runs.engine, runs.several_hosts) == ("processes", True)
    steps = Deployment.from_environment(COMPOSE["x-pipeline"]["environment"])
    assert (steps.engine, steps.several_hosts) == ("celery", True)


def test_dagsters_settings_for_several_hosts_differ_in_the_compute_logs_alone() -> None:
    one, several = load(DEPLOY / "dagster.yaml"), load(DEPLOY / "compose" / "dagster.yaml")
    assert one.pop("compute_logs") != several.pop("compute_logs")
    assert one == several


def test_the_charts_queue_of_runs_is_dagsters_own_with_the_limits_and_retries_of_one_host() -> None:
    queue = VALUES["dagsterDaemon"]["runCoordinator"]["config"]["customRunCoordinator"]
    one = load(DEPLOY / "dagster.yaml")
    assert queue["config"] == one["concurrency"]["runs"] | one["run_queue"]
    coordinator = ConfigurableClassData(queue["module"], queue["class"], yaml.safe_dump(queue["config"]))
    assert coordinator.rehydrate(as_type=QueuedRunCoordinator).inst_data == coordinator


def test_a_runs_pod_is_one_that_kubernetes_takes_and_has_the_memory_of_four_shards_and_time_to_stop() -> None:
    (code,) = VALUES["dagster-user-deployments"]["deployments"]
    assert not code["includeConfigInLaunchedRuns"]["enabled"]  # merged into the launcher's, its limits would win
    given = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
    values = {re.sub("K8s|[A-Z]", lambda word: f"_{word[0].lower()}", key): value for key, value in given.items()}
    known = K8sRunLauncher.config_type()  # type: ignore[no-untyped-call]
    assert set(values) <= set(known)  # as the chart hands them on
    context = {key: value for key, value in values.items() if key not in {"load_incluster_config", "run_k8s_config"}}
    context["env_config_maps"], context["env_secrets"] = (
        [each["name"] for each in values[key]] for key in ("env_config_maps", "env_secrets")
    )
    pod = values["run_k8s_config"]
    context["run_k8s_config"] = {
        "pod_template_spec_metadata": pod["podTemplateSpecMetadata"],
        "pod_spec_config": pod["podSpecConfig"],
        "job_spec_config": pod["jobSpecConfig"],
    }
    made = K8sContainerContext.create_from_config({"k8s": context})
    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(job_image="image", dagster_home="/opt/dagster/dagster_home"),
        args=["dagster", "api", "execute_run"],
        job_name="dagster-run-1",
        user_defined_k8s_config=made.run_k8s_config,
    )
    manifest = ApiClient().sanitize_for_serialization(job)
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    spec = manifest["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == 90
    assert spec["securityContext"]["runAsNonRoot"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"]["memory"] == "2Gi"
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert [each["secretRef"]["name"] for each in container["envFrom"] if "secretRef" in each] == ["campaign-secrets"]


def test_every_service_of_ours_runs_from_one_image_without_root_rights_on_a_read_only_file_system() -> None:
    ours = {name: each for name, each in COMPOSE["services"].items() if name not in {"postgres", "redis", "store"}}
    assert set(ours) == {"migrate", "buckets", "code", "webserver", "daemon", "worker-1", "worker-2"}
    for service in ours.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["image"] == COMPOSE["x-pipeline"]["image"]
        assert "healthcheck" in service or service["restart"] == "no"
    assert [name for name, each in COMPOSE["services"].items() if "ports" in each] == ["webserver"]


def test_every_variable_of_the_compose_file_is_in_the_example() -> None:
    text = (DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8")
    needed = set(re.findall(r"\$\{([A-Z_]+):\?\}", text))
    example = re.findall(
        r"^([A-Z_]+)=", (DEPLOY / "compose" / ".env.example").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert needed <= set(example)


def test_a_stopped_code_location_stops_its_runs_in_order_and_a_killed_one_is_started_again() -> None:
    code = COMPOSE["services"]["code"]
    assert (code["init"], code["environment"]["TINI_KILL_PROCESS_GROUP"]) == (True, "1"), "else its runs get no signal"
    assert set(code["environment"]) > set(COMPOSE["x-pipeline"]["environment"])
    dockerfile = (DEPLOY / "compose" / "Dockerfile").read_text(encoding="utf-8")
    documented = (CHECKOUT / "docs" / "deploying.md").read_text(encoding="utf-8")
    # `code-server start` lives on when the server that it started is killed.
    assert '\nCMD ["dagster", "api", "grpc", ' in dockerfile
    assert "\n   dagster api grpc --host" in documented


def test_the_image_is_built_with_extras_that_exist_and_the_tested_versions() -> None:
    dockerfile = (DEPLOY / "compose" / "Dockerfile").read_text(encoding="utf-8")
    (named,) = re.findall(r"^ARG EXTRAS=([a-z0-9,]+)$", dockerfile, re.MULTILINE)
    assert '".[$EXTRAS]"' in dockerfile
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    assert set(named.split(",")) <= set(extras)
    assert "-c constraints.txt" in dockerfile
    pinned = set(
        re.findall(r"^([A-Za-z0-9_.-]+)==", (CHECKOUT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    )
    wanted = {re.split(r"[^A-Za-z0-9_.-]", each)[0] for name in ("celery", "k8s", "s3", "gcs") for each in extras[name]}
    assert wanted <= pinned
