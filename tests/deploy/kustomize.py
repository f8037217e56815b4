"""Builds the kustomizations of deploy/kubernetes/ as `kustomize build` does, as far as they go.

Where a kustomize is installed, a test compares: this is for machines that have none. Known are resources, components,
configMapGenerator (without the hash behind the names), images, namespace, and patches, strategic or of operations,
with a target or without.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.compose import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
Resource = dict[str, Any]

_KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "images", "patches"}
_MERGE_KEYS = {"containers": "name", "initContainers": "name", "env": "name", "volumes": "name"}
"""By what the entries of a list are told apart in a strategic patch; other lists are replaced."""


def build(name: str) -> list[Resource]:
    """Return the resources of a folder below deploy/kubernetes/."""
    return _build(FOLDER / name, [])


def combine(*names: str, base: str = "base") -> list[Resource]:
    """Return the resources of the base with some components."""
    resources = build(base)
    for name in names:
        resources = _build(FOLDER / "components" / name, resources)
    for resource in resources:
        if resource["kind"] != "Namespace":
            resource["metadata"].setdefault("namespace", "samovar")
    return resources


def _build(folder: Path, resources: list[Resource]) -> list[Resource]:
    said: Resource = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(said) <= _KNOWN, f"{folder}: {set(said) - _KNOWN} is not known to this builder"
    for entry in said.get("resources", []):
        place = folder / entry
        resources = [*resources, *(_build(place, []) if place.is_dir() else _documents(place.read_text()))]
    for entry in said.get("components", []):
        resources = _build(folder / entry, resources)
    for generator in said.get("configMapGenerator", []):
        _generate(generator, folder, resources)
    for patch in said.get("patches", []):
        (content,) = _documents(patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text())
        _patch(resources, content, patch.get("target"))
    for image in said.get("images", []):
        for container in _containers(resources):
            _rename(container, image)
    if namespace := said.get("namespace"):
        for resource in resources:
            if resource["kind"] == "Namespace":
                resource["metadata"]["name"] = namespace
            else:
                resource["metadata"]["namespace"] = namespace
    return resources


def _documents(text: str) -> list[Any]:
    return [copy.deepcopy(document) for document in yaml.safe_load_all(text) if document is not None]


def _generate(generator: Resource, folder: Path, resources: list[Resource]) -> None:
    data = dict(literal.split("=", 1) for literal in generator.get("literals", []))
    data |= {name: (folder / name).read_text() for name in generator.get("files", [])}
    if generator.get("behavior") == "merge":
        (existing,) = [
            one for one in resources if one["kind"] == "ConfigMap" and one["metadata"]["name"] == generator["name"]
        ]
        existing["data"] |= data
    else:
        resources.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}
        )


def _containers(resources: list[Resource]) -> list[Resource]:
    pods = [resource["spec"]["template"]["spec"] for resource in resources if "template" in resource.get("spec", {})]
    return [container for pod in pods for kind in ("initContainers", "containers") for container in pod.get(kind, [])]


def _rename(container: Resource, image: Resource) -> None:
    name, _, tag = container["image"].partition(":")
    if name == image["name"]:
        tag = image.get("newTag", tag)
        container["image"] = image.get("newName", name) + (f":{tag}" if tag else "")


def _patch(resources: list[Resource], patch: Any, target: Resource | None) -> None:
    if target is None:
        target = {"kind": patch["kind"], "name": patch["metadata"]["name"]}
    hit = [
        resource
        for resource in resources
        if re.fullmatch(target["kind"], resource["kind"])
        and re.fullmatch(target.get("name", ".*"), resource["metadata"]["name"])
    ]
    assert hit, f"nothing is patched by {target}"
    for resource in hit:
        if isinstance(patch, list):
            for operation in patch:
                _operate(resource, operation)
        else:
            merged = _merged(resource, patch)
            resource.clear()
            resource.update(merged)


def _merged(base: Any, over: Any, key: str = "") -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {
            name: _merged(base[name], value, name) if name in base else value for name, value in over.items()
        }
    if key in _MERGE_KEYS:
        by = _MERGE_KEYS[key]
        news = {entry[by]: entry for entry in over}
        kept = [_merged(entry, news.pop(entry[by])) if entry[by] in news else entry for entry in base]
        return [*news.values(), *kept]
    return over


def _operate(resource: Resource, operation: Resource) -> None:
    *path, last = operation["path"].strip("/").split("/")
    place: Any = resource
    for step in path:
        place = place[int(step) if isinstance(place, list) else step]
    value = copy.deepcopy(operation.get("value"))
    if isinstance(place, list) and last == "-":
        place.append(value)
        return
    index: Any = int(last) if isinstance(place, list) else last
    if operation["op"] == "remove":
        del place[index]
        return
    assert operation["op"] in ("add", "replace"), operation
    if operation["op"] == "replace":
        place[index]
    if operation["op"] == "add" and isinstance(place, list):
        place.insert(index, value)
    else:
        place[index] = value
