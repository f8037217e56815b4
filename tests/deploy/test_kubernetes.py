"""The manifests for Kubernetes: valid, confined, and saying nothing that the services do not understand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from decoder_service.settings import DecoderSettings
from encoder_service.settings import EncoderSettings
from gateway.service import PROBES_NOTICE_S
from gateway.settings import GatewaySettings
from sam.rpc.server import WATCHERS_LEAVE_S
from sam.settings import ModelSettings, RpcServerSettings, Settings
from sam.tracing.variables import exporters_asked_for
from sam.v1 import decoder_service_pb2, encoder_service_pb2
from tests.deploy.compose import load_compose
from tests.deploy.dockerfile import read_dockerfile
from tests.deploy.kubernetes import COMPONENTS, FOLDERS, VARIANTS, containers, environment, of_kind, pods
from tests.deploy.kubernetes_schemas import validate
from tests.deploy.kustomize import FOLDER, Resource, build, combine
from tests.deploy.test_compose import variables_of

SETTINGS: dict[str, type[Settings]] = {
    "encoder": EncoderSettings,
    "decoder": DecoderSettings,
    "gateway": GatewaySettings,
    "weights": ModelSettings,
}
METRICS_PORT = 9464


@pytest.fixture(scope="module", params=VARIANTS)
def resources(request: pytest.FixtureRequest) -> list[Resource]:
    """What is built of the base, of the overlays, and of all components in any order."""
    return VARIANTS[request.param]()


def test_valid_by_the_schemas(resources: list[Resource]) -> None:
    """Every resource satisfies the schemas of Kubernetes, with no field that these do not know."""
    for resource in resources:
        validate(resource)


def test_mistakes_are_not_valid() -> None:
    """A misspelt key or a value of another kind would not pass, in Kubernetes' kinds nor in the others."""
    everything = combine(*COMPONENTS)
    decoder, scaled = of_kind(everything, "Deployment")["decoder"], of_kind(everything, "ScaledObject")["decoder"]
    decoder["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    scaled["spec"]["triggers"][0]["metadata"]["value"] = 60
    for wrong in (decoder, scaled):
        with pytest.raises(jsonschema.ValidationError):
            validate(wrong)


def test_the_builder_builds_what_kustomize_builds(tmp_path: Path) -> None:
    """Where a kustomize is installed, it makes the same of the overlays and of all components."""
    command = _kustomize()
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    everything = tmp_path / "kubernetes" / "overlays" / "everything"
    everything.mkdir()
    names = "".join(f"  - ../../components/{name}\n" for name in COMPONENTS)
    (everything / "kustomization.yaml").write_text(
        f"namespace: samovar\nresources:\n  - ../../base\ncomponents:\n{names}"
    )
    for name, expected in (
        ("base", build("base")),
        ("overlays/trial", build("overlays/trial")),
        ("overlays/production", build("overlays/production")),
        ("overlays/everything", combine(*COMPONENTS)),
    ):
        done = subprocess.run(
            [*command, str(tmp_path / "kubernetes" / name)], capture_output=True, text=True, check=True
        )
        # The hash behind the name of a generated map.
        maps = {one["metadata"]["name"] for one in expected if one["kind"] == "ConfigMap"}
        text = re.sub(rf"\b({'|'.join(sorted(maps, reverse=True))})-[a-z0-9]{{10}}\b", r"\1", done.stdout)
        assert _sorted(yaml.safe_load_all(text)) == _sorted(expected), name


def _kustomize() -> list[str]:
    for program, arguments in (("kustomize", ["build"]), ("kubectl", ["kustomize"])):
        if shutil.which(program):
            return [program, *arguments]
    pytest.skip("neither kustomize nor kubectl is installed; without, only our own builder is tried")


def _sorted(resources: Any) -> list[str]:
    return sorted(json.dumps(resource, sort_keys=True) for resource in resources)


def test_every_variable_is_a_setting(resources: list[Resource]) -> None:
    """Every variable is a setting of its service, accepted with its value, or one of OpenTelemetry's."""
    for pod, _, container in containers(resources):
        if pod == "redis":
            continue
        given = environment(container, resources)
        ours = {name for name in given if name.startswith("SAMOVAR_")}
        # The model's settings alone are known to the command that downloads the weights.
        assert ours <= variables_of(SETTINGS[container["name"]]), container["name"]
        others = set(given) - ours
        assert all(name.startswith("OTEL_") for name in others)
        assert not others or exporters_asked_for(given) == ["otlp_proto_http"]


def test_every_value_is_accepted(resources: list[Resource], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every service accepts the values it is given."""
    for pod, _, container in containers(resources):
        if pod != "redis":
            with monkeypatch.context() as context:
                for name, value in environment(container, resources).items():
                    context.setenv(name, value)
                SETTINGS[container["name"]]()


def test_every_container_is_confined(resources: list[Resource]) -> None:
    """Every container is what the compose file makes of it: not root, read-only, no capabilities, and bounded."""
    for name, pod, container in containers(resources):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "memory" in container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert pod["automountServiceAccountToken"] is False
        # Kubernetes would set SAMOVAR_ENCODER_PORT=tcp://... and the like.
        assert pod["enableServiceLinks"] is False
        if name in FOLDERS:
            assert pod["securityContext"]["runAsUser"] == int(read_dockerfile(FOLDERS[name]).image.settings["USER"])
        for mount in container["volumeMounts"]:
            writable = mount["name"] in ("tmp", "data") or container["name"] == "weights"
            assert writable or mount["readOnly"], mount
    (namespace,) = [one for one in resources if one["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_images_and_ports_are_those_of_the_dockerfiles(resources: list[Resource]) -> None:
    """Images have the names that the compose file builds, and ports are the ones that they expose."""
    compose = load_compose("docker-compose.gpu.yml")["services"] | {
        "encoder on a CPU": load_compose()["services"]["encoder"]
    }
    built = {service["image"] for service in compose.values() if "build" in service}
    for name, _, container in containers(resources):
        repository = container["image"].partition(":")[0].rpartition("/")[2]
        if name == "redis":
            assert container["image"] == compose["redis"]["image"]
            continue
        assert repository in built
        if container["name"] == name:
            ports = {port["containerPort"] for port in container["ports"]}
            exposed = {int(port) for port in read_dockerfile(FOLDERS[name]).image.settings["EXPOSE"].split()}
            assert ports - {METRICS_PORT} == exposed - {METRICS_PORT}
            named = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert named["metrics"] == METRICS_PORT


def test_probes_ask_what_there_is(resources: list[Resource]) -> None:
    """gRPC is asked by the name of its service in the contract, over TLS by our own command, HTTP by its routes."""
    names = {
        "encoder": encoder_service_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name,
        "decoder": decoder_service_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name,
    }
    for name, pod in pods(resources).items():
        container = pod["containers"][0]
        probes = [container[kind] for kind in ("startupProbe", "readinessProbe", "livenessProbe") if kind in container]
        assert len(probes) == (2 if name == "redis" else 3)
        given = environment(container, resources)
        for probe in probes:
            if name in names:
                port = container["ports"][0]["containerPort"]
                if "SAMOVAR_GRPC_TLS_CERT" in given:
                    healthcheck = read_dockerfile(FOLDERS[name]).image.healthcheck
                    assert probe["exec"]["command"] == healthcheck
                else:
                    assert probe["grpc"] == {"port": port, "service": names[name]}
            elif name == "gateway":
                assert probe["httpGet"]["path"] in ("/healthz", "/readiness")
                assert probe["httpGet"].get("scheme") == ("HTTPS" if "SAMOVAR_HTTP_TLS_CERT" in given else None)
        # The longest start that the image's own check allows.
        if name in names:
            startup = container["startupProbe"]
            assert startup["periodSeconds"] * startup["failureThreshold"] >= 300


def test_draining_fits_into_the_grace_period(resources: list[Resource]) -> None:
    """Nothing is killed that still finishes accepted work, nor is a draining service taken for a dead one."""
    rpc_s = WATCHERS_LEAVE_S + float(RpcServerSettings.model_fields["drain_s"].default)
    http_s = PROBES_NOTICE_S + float(GatewaySettings.model_fields["drain_s"].default)
    for name in FOLDERS:
        pod = pods(resources)[name]
        container = pod["containers"][0]
        pause_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        # Clients of gRPC watch health themselves; those of HTTP are led by load balancers, which are told late.
        assert (pause_s > 0) == (name == "gateway")
        assert pod["terminationGracePeriodSeconds"] >= pause_s + max(rpc_s, http_s) + 5
        liveness = container["livenessProbe"]
        assert liveness["periodSeconds"] * liveness["failureThreshold"] > max(rpc_s, http_s)


def test_gateways_find_every_replica(resources: list[Resource]) -> None:
    """The targets are headless services, which select the pods of their name, on the ports that these listen on."""
    services = of_kind(resources, "Service")
    gateway = environment(pods(resources)["gateway"]["containers"][0], resources)
    for name in ("encoder", "decoder"):
        service = services[name]
        (port,) = service["spec"]["ports"]
        assert service["spec"]["clusterIP"] == "None"
        assert gateway[f"SAMOVAR_{name.upper()}_TARGET"] == f"samovar-{name}:{port['port']}"
        container_ports = {one["name"]: one["containerPort"] for one in pods(resources)[name]["containers"][0]["ports"]}
        assert container_ports[port["targetPort"]] == port["port"]
    for name, one in of_kind(resources, "Deployment", "StatefulSet").items():
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert services[name]["spec"]["selector"].items() <= labels.items()


def test_replicas_are_spread_and_kept(resources: list[Resource]) -> None:
    """Each tier has a disruption budget that a node can be drained by, and is spread over nodes and zones."""
    budgets = of_kind(resources, "PodDisruptionBudget")
    assert set(budgets) == set(FOLDERS)
    for name in FOLDERS:
        labels = of_kind(resources, "Deployment")[name]["spec"]["template"]["metadata"]["labels"]
        assert budgets[name]["spec"]["maxUnavailable"] == 1
        assert budgets[name]["spec"]["selector"]["matchLabels"] == labels
        spread = pods(resources)[name]["topologySpreadConstraints"]
        assert [one["topologyKey"].rpartition("/")[2] for one in spread] == ["hostname", "zone"]
        assert all(one["labelSelector"]["matchLabels"] == labels for one in spread)


def test_who_may_talk_to_whom(resources: list[Resource]) -> None:
    """Policies choose every pod, and let gateways to the services, these to Redis, and only encoders fetch pictures."""
    policies = of_kind(resources, "NetworkPolicy")
    for name, one in of_kind(resources, "Deployment", "StatefulSet").items():
        labels = one["spec"]["template"]["metadata"]["labels"]
        chosen = [
            policy
            for policy in policies.values()
            if policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        ]
        directions = {direction for policy in chosen for direction in policy["spec"]["policyTypes"]}
        assert directions == {"Ingress", "Egress"}, name
    for name in ("encoder", "decoder"):
        (ingress,) = policies[name]["spec"]["ingress"]
        callers = [one["podSelector"]["matchLabels"] for one in ingress["from"]]
        assert callers[0]["app.kubernetes.io/component"] == "gateway"
        outside = [rule for rule in policies[name]["spec"]["egress"] if "ipBlock" in str(rule)]
        downloads = any(container["name"] == "weights" for pod, _, container in containers(resources) if pod == name)
        assert bool(outside) == (name == "encoder" or downloads)
    if "redis" in policies:
        assert "egress" not in policies["redis"]["spec"]


def test_the_names_of_mounts_are_those_of_the_settings(resources: list[Resource]) -> None:
    """Every file that a setting names lies in a volume that has it."""
    for name, pod, container in containers(resources):
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert set(mounted.values()) <= set(volumes), name
        for variable, path in environment(container, resources).items():
            if not path.startswith("/run/"):
                continue
            (folder,) = [place for place in mounted if path.startswith(f"{place}/") or path == place]
            if variable == "DATA":
                continue
            volume = volumes[mounted[folder]]
            sources = volume["projected"]["sources"] if "projected" in volume else [volume]
            items = [item["path"] for source in sources for item in source["secret"]["items"]]
            assert path.removeprefix(f"{folder}/") in items, (name, variable)


def test_encoders_and_decoders_serve_one_model(resources: list[Resource]) -> None:
    """Both read the model from one map, and what downloads the weights does, too; none chooses for itself."""
    models = {
        container["name"]: environment(container, resources)["SAMOVAR_MODEL"]
        for name, _, container in containers(resources)
        if name in ("encoder", "decoder")
    }
    assert len(set(models.values())) == 1
    assert {"encoder", "decoder"} <= set(models)
