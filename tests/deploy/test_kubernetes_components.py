"""The parts that can be added to the manifests for Kubernetes, each on its own."""

from __future__ import annotations

from tests.deploy.compose import ROOT, load_compose
from tests.deploy.kubernetes import FOLDERS, environment, of_kind, pods
from tests.deploy.kustomize import combine

QUEUE_METRIC = "samovar_encoder_queued_images"


def test_redis_is_the_compose_files() -> None:
    """The Redis in the cluster starts by the same scripts with the same options, and what it keeps fits into it."""
    resources = combine("redis")
    redis, compose = pods(resources)["redis"]["containers"][0], load_compose()["services"]["redis"]
    assert redis["command"] == [*compose["entrypoint"], *compose["command"]]
    files = of_kind(resources, "ConfigMap")["redis"]["data"]
    assert files == {path.name: path.read_text() for path in (ROOT / "deploy" / "redis").iterdir()}
    assert redis["resources"]["limits"]["memory"] == compose["mem_limit"].replace("g", "Gi")
    assert redis["readinessProbe"]["exec"]["command"] == compose["healthcheck"]["test"][1:]
    assert redis["resources"]["requests"]["memory"] == redis["resources"]["limits"]["memory"]


def test_gpus_are_asked_for_by_encoders_alone() -> None:
    """With GPUs, encoders get one each, on nodes that have them, and start nowhere else."""
    resources = combine("gpu")
    for name, pod in pods(resources).items():
        limits = pod["containers"][0]["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) == (name == "encoder")
        assert ("nodeSelector" in pod) == (name == "encoder")
    encoder = pods(resources)["encoder"]
    assert {container["image"] for container in [*encoder["initContainers"], *encoder["containers"]]} == {
        load_compose("docker-compose.gpu.yml")["services"]["encoder"]["image"]
    }
    assert environment(encoder["containers"][0], resources)["SAMOVAR_DEVICE"] == "cuda"


def test_what_is_scaled_has_no_number_of_its_own() -> None:
    """KEDA scales each tier by what fills it first, and no manifest takes its number back."""
    resources = combine("keda")
    scaled, deployments = of_kind(resources, "ScaledObject"), of_kind(resources, "Deployment")
    assert set(scaled) == set(deployments) == set(FOLDERS)
    for name, one in scaled.items():
        assert one["spec"]["scaleTargetRef"]["name"] == deployments[name]["metadata"]["name"]
        assert "replicas" not in deployments[name]["spec"]
        assert 2 <= one["spec"]["minReplicaCount"] < one["spec"]["maxReplicaCount"]
    triggers = {name: one["spec"]["triggers"][0] for name, one in scaled.items()}
    assert {name: trigger["type"] for name, trigger in triggers.items()} == {
        "encoder": "prometheus",
        "decoder": "cpu",
        "gateway": "cpu",
    }
    namespace = deployments["encoder"]["metadata"]["namespace"]
    assert triggers["encoder"]["metadata"]["query"] == f'sum({QUEUE_METRIC}{{namespace="{namespace}"}})'
    for name in ("decoder", "gateway"):
        assert "cpu" in pods(resources)[name]["containers"][0]["resources"]["requests"]


def test_the_metric_that_encoders_are_scaled_by_exists() -> None:
    """The queue's gauge is one that encoders have."""
    assert f'"{QUEUE_METRIC}"' in (ROOT / "encoder_service" / "metrics.py").read_text()


def test_metrics_are_read_from_every_pod() -> None:
    """The monitor chooses the pods of every tier, by the port that all have, and the policy lets it."""
    resources = combine("monitoring")
    monitor = of_kind(resources, "PodMonitor")["samovar"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for deployment in of_kind(resources, "Deployment").values():
        template = deployment["spec"]["template"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        assert endpoint["port"] in {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    policy = of_kind(resources, "NetworkPolicy")["samovar"]
    assert policy["spec"]["ingress"][0]["ports"] == [{"port": endpoint["port"]}]


def test_secrets_are_those_of_the_compose_file() -> None:
    """With keys and TLS, each service has the files that the compose file gives it, by the same settings."""
    resources, compose = combine("secure"), load_compose("docker-compose.secure.yml")["services"]
    plain = {name: set(service.get("environment", {})) for name, service in load_compose()["services"].items()}
    for name in FOLDERS:
        pod = pods(resources)[name]
        given = environment(pod["containers"][0], resources)
        secured = {variable: path.rpartition("/")[2] for variable, path in given.items() if "/run/secrets/" in path}
        theirs = {
            variable: path.rpartition("/")[2]
            for variable, path in compose[name]["environment"].items()
            if variable not in plain[name]
        }
        assert secured == theirs
        (volume,) = [one for one in pod["volumes"] if one["name"] == "secrets"]
        keys = {item["key"] for source in volume["projected"]["sources"] for item in source["secret"]["items"]}
        assert keys == set(compose[name]["secrets"])
