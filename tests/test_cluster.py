"""The cluster recipes: those of `ray up` against the schema of the Ray that is pinned, and all against one another."""

import copy
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTERS = Path(__file__).parents[1] / "clusters"
UP = ["aws", "onpremise"]


def recipe(name: str) -> dict:
    return yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())


def containers(spec: dict) -> list[dict]:
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


@pytest.mark.parametrize("name", UP)
def test_recipe_of_ray_up_is_valid(name):
    prepared = prepare_config(copy.deepcopy(recipe(name)))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    assert prepared["max_workers"] >= max(kind["max_workers"] for kind in prepared["available_node_types"].values()) > 0


@pytest.mark.parametrize("name", UP)
def test_recipe_with_an_unknown_field_is_refused(name):
    changed = recipe(name) | {"max_worker": 8}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(changed))


def test_every_recipe_has_the_pinned_ray():
    pinned = f"rayproject/ray:{version('ray')}-"
    assert all(recipe(name)["docker"]["image"].startswith(pinned) for name in UP)
    assert f"\nFROM {pinned}" in (CLUSTERS / "Dockerfile").read_text()
    assert recipe("kuberay-cluster")["spec"]["rayVersion"] == version("ray")


@pytest.mark.parametrize("name", UP)
def test_cluster_authenticates_and_keeps_its_job_server_on_loopback(name):
    assert "--env RAY_AUTH_MODE=token" in recipe(name)["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in recipe(name)["head_start_ray_commands"][-1]


def test_job_of_kubernetes_has_the_cluster_of_the_standing_one():
    assert recipe("kuberay-job")["spec"]["rayClusterSpec"] == recipe("kuberay-cluster")["spec"]


def test_cluster_of_kubernetes_authenticates_and_keeps_work_off_its_head():
    spec = recipe("kuberay-cluster")["spec"]
    assert spec["authOptions"]["mode"] == "token" and spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert all(container["envFrom"] == [{"secretRef": {"name": "genray"}}] for container in containers(spec))
    assert len({container["image"] for container in containers(spec)}) == 1


def test_clouds_and_kubernetes_grow_alike():
    (group,) = recipe("kuberay-cluster")["spec"]["workerGroupSpecs"]
    gpu = recipe("aws")["available_node_types"]["gpu"]
    assert (group["minReplicas"], group["maxReplicas"]) == (gpu["min_workers"], gpu["max_workers"])
    seconds = recipe("kuberay-cluster")["spec"]["autoscalerOptions"]["idleTimeoutSeconds"]
    assert seconds == 60 * recipe("aws")["idle_timeout_minutes"]
