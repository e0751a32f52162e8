"""The environment's settings of where steps run."""

import pytest

from campaign_pipeline.adapters.deployment import Deployment
from campaign_pipeline.adapters.environment import SettingError

SHARED = {"CAMPAIGN_OUTPUTS": "s3://outputs/campaigns", "CAMPAIGN_DATABASE_URL": "postgresql://queue@db/queue"}
CELERY = {"CAMPAIGN_EXECUTOR": "celery", "CAMPAIGN_CELERY_BROKER": "redis://:hunter2@redis:6379/0", **SHARED}


def test_one_host_with_processes_is_the_default() -> None:
    assert Deployment.from_environment({}) == Deployment.from_environment({"CAMPAIGN_EXECUTOR": " "}) == Deployment()


def test_celery_keeps_results_in_redis_too_and_shows_no_password() -> None:
    deployment = Deployment.from_environment({**CELERY, "CAMPAIGN_CELERY_QUEUE": "campaigns"})
    assert deployment.several_hosts
    assert deployment.celery is not None
    assert deployment.celery.backend == deployment.celery.broker
    assert deployment.describe() == "celery: broker redis://redis:6379/0, queue campaigns"
    assert "hunter2" not in repr(deployment)


def test_a_folder_that_all_hosts_mount_is_named_as_a_url() -> None:
    environment = {**SHARED, "CAMPAIGN_HOSTS": "several", "CAMPAIGN_OUTPUTS": "file:///mnt/outputs"}
    assert Deployment.from_environment(environment).describe() == "processes, runs on several hosts"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"CAMPAIGN_EXECUTOR": "dask"}, "CAMPAIGN_EXECUTOR is 'dask', but must be one of"),
        ({"CAMPAIGN_HOSTS": "3"}, "CAMPAIGN_HOSTS is '3', but must be one or several"),
        ({"CAMPAIGN_EXECUTOR": "celery", **SHARED}, "CAMPAIGN_CELERY_BROKER is not set"),
        ({**CELERY, "CAMPAIGN_CELERY_BROKER": "hunter2@redis"}, "CAMPAIGN_CELERY_BROKER must be a URL of Redis or"),
        ({**CELERY, "CAMPAIGN_CELERY_VISIBILITY_SECONDS": "1.5"}, "CAMPAIGN_CELERY_VISIBILITY_SECONDS is '1.5', but"),
        ({**SHARED, "CAMPAIGN_EXECUTOR": "k8s", "CAMPAIGN_K8S_MEMORY": "1 GB"}, "CAMPAIGN_K8S_MEMORY is '1 GB', but"),
        ({**SHARED, "CAMPAIGN_EXECUTOR": "k8s", "CAMPAIGN_K8S_NAMESPACE": "A_b"}, "CAMPAIGN_K8S_NAMESPACE is 'A_b'"),
        ({**CELERY, "CAMPAIGN_OUTPUTS": "/srv/outputs"}, "CAMPAIGN_OUTPUTS is the folder /srv/outputs, which other"),
        ({"CAMPAIGN_HOSTS": "several"}, "CAMPAIGN_HOSTS is several, but CAMPAIGN_OUTPUTS is the folder"),
        ({**CELERY, "CAMPAIGN_DATABASE_URL": ""}, "CAMPAIGN_DATABASE_URL is not set and the embedded database serves"),
    ],
)
def test_an_impossible_setting_is_refused_with_its_name(variables: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingError) as refused:
        Deployment.from_environment(variables)
    assert sentence in str(refused.value)
    assert "hunter2" not in str(refused.value)
