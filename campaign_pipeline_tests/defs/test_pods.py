"""A step as a pod: what Dagster posts to Kubernetes, and what happens to that process on a node that is drained."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import kubernetes_validate
import pytest
import yaml

from campaign_pipeline.sandbox import Behaviour, Kind, Latency, SandboxProcess
from campaign_pipeline_tests.factories import World

MESSAGES = 60


class Pod:
    """What runs for one job of Kubernetes: its command, as a process of this machine."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        given = {each["name"]: each["value"] for each in self.container["env"] if "value" in each}
        arguments: list[str] = self.container["args"]
        del given["DAGSTER_HOME"]  # a folder of the image
        self.process = subprocess.Popen(
            [str(Path(sys.executable).parent / arguments[0]), *arguments[1:]],
            # The test's environment stands for the config map and the secret that the job names.
            env=os.environ | given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @property
    def spec(self) -> dict[str, Any]:
        """The pod's, as posted."""
        spec: dict[str, Any] = self.job["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> dict[str, Any]:
        """The pod's one container."""
        (container,) = self.spec["containers"]
        return dict(container)

    def answer(self) -> dict[str, Any]:
        """The job with its status."""
        ended = self.process.poll()
        return {**self.job, "status": {"active": 1} if ended is None else {"failed" if ended else "succeeded": 1}}


class Cluster(BaseHTTPRequestHandler):
    """As much of Kubernetes' API as Dagster asks for while it runs a step."""

    pods: ClassVar[dict[str, Pod]] = {}
    paths: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        """A job is made."""
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.paths.append(self.path)
        self.pods[job["metadata"]["name"]] = Pod(job)
        self._answer(201, job)

    def do_GET(self) -> None:
        """A job's status is asked for."""
        name = self.path.removesuffix("/status").rpartition("/")[2]
        self._answer(200, self.pods[name].answer())

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def cluster(home: Path) -> Iterator[type[Cluster]]:
    """A Kubernetes API on loopback, and a Dagster home whose runs are launched there."""
    Cluster.pods, Cluster.paths = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    home.mkdir()
    where = {"server": f"http://127.0.0.1:{server.server_port}"}
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": where}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (home / "kubeconfig").write_text(yaml.safe_dump(kubeconfig), encoding="utf-8")
    launcher = {
        "service_account_name": "dagster",
        "instance_config_map": "dagster-instance",
        "dagster_home": "/opt/dagster/dagster_home",
        "load_incluster_config": False,
        "kubeconfig_file": str(home / "kubeconfig"),
        "env_config_maps": ["campaign-config"],
        "env_secrets": ["campaign-secrets"],
        "run_k8s_config": {"pod_spec_config": {"termination_grace_period_seconds": 90}},
    }
    settings = {
        "run_launcher": {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": launcher},
        "telemetry": {"enabled": False},
    }
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    try:
        yield Cluster
    finally:
        for pod in Cluster.pods.values():
            pod.process.kill()
            pod.process.wait()
        server.shutdown()
        thread.join()
        server.server_close()


def accepted(sandbox: SandboxProcess) -> int:
    return sum(entry["kind"] == "send" for entry in sandbox.record(accepted=True))


@pytest.mark.crash
def test_a_step_is_the_pod_that_the_deployment_describes_and_gives_back_what_it_did_not_send_when_it_is_evicted(
    world: World, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world.due_messages(world.run(), MESSAGES)
    with SandboxProcess() as sandbox, cluster(tmp_path / "dagster") as kubernetes:
        sandbox.set_behaviour(Behaviour(latencies={Kind.SEND: Latency(0.2)}))
        for name, value in {
            "OPENROUTER_API_KEY": "sk-or-test-key-of-no-account",
            "OPENROUTER_BASE_URL": sandbox.openrouter_url,
            "EVOLUTION_API_URL": sandbox.evolution_url,
            "DAGSTER_HOME": str(tmp_path / "dagster"),
            "CAMPAIGN_DATABASE_URL": world.url,
            "CAMPAIGN_OUTPUTS": f"file://{tmp_path}/outputs",
            "CAMPAIGN_EXECUTOR": "k8s",
            "CAMPAIGN_K8S_NAMESPACE": "campaigns",
            "CAMPAIGN_K8S_IMAGE": "registry.example.internal/campaign-pipeline:1",
            "CAMPAIGN_K8S_CPU": "500m",
            "CAMPAIGN_K8S_MEMORY": "512Mi",
        }.items():
            environment.setenv(name, value)
        command = [sys.executable, "-m", "campaign_pipeline_tests.defs.pod_run"]
        with (tmp_path / "told").open("wb") as told:
            run = subprocess.Popen(command, stdout=told, stderr=told)
        try:
            while accepted(sandbox) < 5:
                assert run.poll() is None, (tmp_path / "told").read_text(encoding="utf-8")[-3000:]
                time.sleep(0.05)
            (pod,) = kubernetes.pods.values()
            pod.process.send_signal(signal.SIGTERM)  # what the kubelet sends before the grace period
            pod.process.wait(60)
            run.wait(60)
        finally:
            run.kill()
            run.wait()
        sent = accepted(sandbox)
    statuses = Counter(message["status"] for message in world.messages())
    assert statuses == {"sent": sent, "pending": MESSAGES - sent}
    assert sent < MESSAGES
    assert {row["lease_token"] for row in world.messages() if row["status"] == "pending"} == {None}
    assert world.value("SELECT count(*) FROM campaign_message_parts WHERE status = 'attempting'") == 0

    kubernetes_validate.validate(pod.job, "1.33", strict=True)
    assert kubernetes.paths == ["/apis/batch/v1/namespaces/campaigns/jobs"]
    container = pod.container
    assert container["image"] == "registry.example.internal/campaign-pipeline:1"
    assert container["args"] == ["dagster", "api", "execute_step"]
    assert {"configMapRef": {"name": "campaign-config"}} in container["envFrom"]
    assert {"secretRef": {"name": "campaign-secrets"}} in container["envFrom"]
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "512Mi"},
        "limits": {"memory": "512Mi"},
    }
    (step,) = [each["value"] for each in container["env"] if each["name"] == "DAGSTER_RUN_STEP_KEY"]
    assert step.startswith("send_shard[")
    assert pod.spec["terminationGracePeriodSeconds"] == 90
