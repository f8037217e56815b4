"""The compose file for traces: valid, confined, and spoken of to every service."""

from __future__ import annotations

import re
import tomllib

import jsonschema

from sam.tracing.variables import exporters_asked_for
from tests.deploy.compose import ROOT, load_compose, variables_used
from tests.deploy.dockerfile import SERVICES, read_dockerfile
from tests.deploy.test_compose import specification  # noqa: F401 (a fixture)

TRACING = "docker-compose.tracing.yml"
OURS = {"encoder": "encoder_service", "decoder": "decoder_service", "gateway": "gateway"}


def test_valid_by_the_specification(specification: dict[str, object]) -> None:  # noqa: F811
    """The file satisfies the compose specification's own schema, its variables set or not."""
    for variables in ({}, {"JAEGER": "16686", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}):
        jsonschema.validate(load_compose(TRACING, variables=variables), specification)


def test_every_service_sends_its_traces_to_jaeger() -> None:
    """Each of ours is told where, has the packages for it in its image, and shares a network with Jaeger."""
    services = load_compose(TRACING)["services"]
    jaeger = services["jaeger"]
    for name, folder in OURS.items():
        environment = services[name]["environment"]
        assert exporters_asked_for(environment) == ["otlp_proto_http"]
        assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://jaeger:4318"
        assert set(services[name]["networks"]) & set(jaeger["networks"])
        assert services[name]["build"]["args"]["TRACING"] == "1"
        assert "TRACING" in read_dockerfile(folder).arguments
    assert services["weights"]["build"] == services["decoder"]["build"]


def test_jaeger_is_confined_as_the_others_are() -> None:
    """What is added has no more rights than the rest, and publishes its page on this machine alone."""
    services = load_compose(TRACING)["services"]
    jaeger, gateway = services["jaeger"], services["gateway"]
    for setting in ("read_only", "cap_drop", "security_opt", "tmpfs"):
        assert jaeger[setting] == gateway[setting], setting
    assert jaeger["ports"] == ["127.0.0.1:16686:16686"]
    explained = [line for line in (ROOT / TRACING).read_text().splitlines() if line.startswith("#")]
    for variable in variables_used(TRACING):
        assert re.search(rf"\b{variable}\b", "\n".join(explained)), variable


def test_images_can_be_built_with_the_packages() -> None:
    """The build argument adds the very extra that pyproject.toml has, and leaves it out unless asked."""
    assert "tracing" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for service in SERVICES:
        dockerfile = read_dockerfile(service)
        assert dockerfile.arguments["TRACING"] == ""
        assert sum("${TRACING:+,tracing}]" in run for run in dockerfile.runs) == 1
