"""What the manifests of deploy/kubernetes/ come to, and how to look at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.deploy.kustomize import Resource, build, combine

COMPONENTS = ("redis", "gpu", "secure", "keda", "monitoring", "tracing", "weights-volume")
VARIANTS: dict[str, Callable[[], list[Resource]]] = {
    "base": lambda: build("base"),
    "trial": lambda: build("overlays/trial"),
    "production": lambda: build("overlays/production"),
    "everything": lambda: combine(*COMPONENTS),
    "the other way round": lambda: combine(*reversed(COMPONENTS)),
}
FOLDERS = {"encoder": "encoder_service", "decoder": "decoder_service", "gateway": "gateway"}
"""Where the code of a tier is."""


def of_kind(resources: list[Resource], *kinds: str) -> dict[str, Resource]:
    """Return the resources of some kinds, by the last part of their names."""
    return {one["metadata"]["name"].removeprefix("samovar-"): one for one in resources if one["kind"] in kinds}


def pods(resources: list[Resource]) -> dict[str, Resource]:
    """Return the specifications of all pods, by what they run."""
    return {
        name: one["spec"]["template"]["spec"] for name, one in of_kind(resources, "Deployment", "StatefulSet").items()
    }


def containers(resources: list[Resource]) -> Iterator[tuple[str, Resource, Resource]]:
    """Yield every container with the name and the specification of its pod."""
    for name, pod in pods(resources).items():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield name, pod, container


def environment(container: Resource, resources: list[Resource]) -> dict[str, str]:
    """Return the variables of a container; those from secrets by what they stand for."""
    maps = {one["metadata"]["name"]: one["data"] for one in resources if one["kind"] == "ConfigMap"}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= maps[source["configMapRef"]["name"]]
    for variable in container.get("env", []):
        found[variable["name"]] = variable.get("value", "redis://samovar@redis:6379/0")
    return found
