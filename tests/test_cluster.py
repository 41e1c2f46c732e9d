"""The cluster recipe, against the schema of the Ray that is pinned."""

import copy
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]


@pytest.fixture
def recipe():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_cluster_recipe_is_valid(recipe):
    prepared = prepare_config(copy.deepcopy(recipe))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    assert prepared["max_workers"] >= prepared["available_node_types"]["gpu"]["max_workers"] > 0


def test_cluster_recipe_with_an_unknown_field_is_refused(recipe):
    recipe["available_node_types"]["gpu"]["max_worker"] = 8
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(recipe))


def test_cluster_image_has_the_pinned_ray(recipe):
    assert recipe["docker"]["image"].split(":")[1].startswith(f"{version('ray')}-")


def test_cluster_authenticates_and_keeps_its_job_server_on_loopback(recipe):
    assert "--env RAY_AUTH_MODE=token" in recipe["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in recipe["head_start_ray_commands"][-1]
