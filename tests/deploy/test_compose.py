"""The compose files: valid, closed to the outside, and saying nothing that the services do not understand."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest

from decoder_service.settings import DecoderSettings
from encoder_service.settings import EncoderSettings
from gateway.settings import GatewaySettings
from sam.rpc.server import WATCHERS_LEAVE_S
from sam.settings import ModelSettings, RpcServerSettings, Settings
from samovar.weights import pull_checkpoints
from tests.conftest import free_port, start_redis
from tests.deploy.compose import ROOT, load_compose, variables_used
from tests.deploy.dockerfile import read_dockerfile

GPU, SECURE = "docker-compose.gpu.yml", "docker-compose.secure.yml"
OURS: dict[str, type[Settings]] = {
    "encoder": EncoderSettings,
    "decoder": DecoderSettings,
    "gateway": GatewaySettings,
    "weights": ModelSettings,
}
WATCHING = {"prometheus", "grafana"}


@pytest.fixture(params=[(), (GPU,), (SECURE,)], ids=["cpu", "gpu", "secure"])
def compose(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The compose files: alone, with a GPU, and with keys and TLS."""
    return load_compose(*request.param)


def variables_of(settings: type[Settings]) -> set[str]:
    """Return the variables that a settings class reads."""
    return {f"SAMOVAR_{name.upper()}" for name in settings.model_fields}


@pytest.fixture(scope="module")
def specification() -> dict[str, Any]:
    """The JSON schema of the compose specification."""
    # Found without importing the package, of which only this file is wanted.
    package = importlib.util.find_spec("check_jsonschema")
    assert package is not None
    assert package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0]) / "builtin_schemas" / "vendor"
    schema: dict[str, Any] = json.loads((folder / "compose-spec.json").read_text())
    return schema


@pytest.mark.parametrize("overrides", [(), (GPU,), (SECURE,)], ids=["cpu", "gpu", "secure"])
@pytest.mark.parametrize("variables", [{}, {"PUBLISH": "9001", "WEIGHTS": "./mine", "GPUS": "2"}])
def test_valid_by_the_specification(
    specification: dict[str, Any], overrides: tuple[str, ...], variables: dict[str, str]
) -> None:
    """The files satisfy the compose specification's own schema, with their variables set or not."""
    jsonschema.validate(load_compose(*overrides, variables=variables), specification)


def test_mistakes_are_not_valid(specification: dict[str, Any], compose: dict[str, Any]) -> None:
    """A misspelt key or a value of another kind would not pass."""
    mistakes: list[dict[str, Any]] = [
        {"helthcheck": {}},
        {"cap_drop": "ALL"},
        {"depends_on": {"redis": {"condition": "up"}}},
    ]
    for mistake in mistakes:
        services = compose["services"] | {"decoder": compose["services"]["decoder"] | mistake}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(compose | {"services": services}, specification)


def test_only_the_gateway_publishes_a_port(compose: dict[str, Any]) -> None:
    """Nothing but the gateway can be reached from outside, and by default not even that from other machines.

    With the profile `observability`, Prometheus and Grafana can in the same way.
    """
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    watching = {name: published.pop(name) for name in WATCHING}
    assert published == {"gateway": ["127.0.0.1:9001:9001"]}
    assert watching == {"prometheus": ["127.0.0.1:9090:9090"], "grafana": ["127.0.0.1:3000:3000"]}
    profiles = {name: service.get("profiles") for name, service in compose["services"].items()}
    assert {name for name, named in profiles.items() if named} == WATCHING
    assert all(profiles[name] == ["observability"] for name in WATCHING)
    assert not any("expose" in service or "network_mode" in service for service in compose["services"].values())


def test_who_can_talk_to_whom(compose: dict[str, Any]) -> None:
    """Redis and the decoders have no way out, and only the parts that need one another share a network."""
    networks = {name: set(service["networks"]) for name, service in compose["services"].items()}
    assert networks == {
        "redis": {"inner"},
        "decoder": {"inner"},
        "encoder": {"inner", "egress"},
        "gateway": {"inner", "outer"},
        "weights": {"egress"},
        # Beside the gateway on one network and not on two, on each of which it would be found.
        "prometheus": {"inner", "watch"},
        "grafana": {"watch"},
    }
    assert compose["networks"]["inner"] == {"internal": True}


def test_every_container_is_confined(compose: dict[str, Any]) -> None:
    """Every container has a read-only file system, no capabilities, and no way to gain any."""
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        assert service.get("user", "samovar") != "root", name


def test_every_container_has_its_limits(compose: dict[str, Any]) -> None:
    """Every container may use so much memory and so many processes and no more, by variables with defaults."""
    for name, service in compose["services"].items():
        assert re.fullmatch(r"[1-9][0-9]*g", service["mem_limit"]), name
        assert 100 <= int(service["pids_limit"]) <= 4096, name
    redis = compose["services"]["redis"]
    held = redis["command"][redis["command"].index("--maxmemory") + 1]
    # What clients are sent and what is torn while it is evicted comes on top.
    assert int(redis["mem_limit"][:-1]) > int(held.removesuffix("gb"))


def test_the_password_of_redis_is_a_file_that_the_services_alone_read(compose: dict[str, Any]) -> None:
    """It is made in a volume that Redis writes and the encoder and the decoder read; no variable holds it."""
    services = compose["services"]
    assert "redis-password:/data" in services["redis"]["volumes"]
    readers = {
        name for name, service in services.items() if "redis-password:/run/redis:ro" in service.get("volumes", [])
    }
    assert readers == {"encoder", "decoder"}
    for name in readers:
        assert services[name]["environment"]["SAMOVAR_REDIS_PASSWORD_FILE"] == "/run/redis/password"
        assert "@" in services[name]["environment"]["SAMOVAR_REDIS_URL"]
    for service in services.values():
        assert not any("PASSWORD" in key and not key.endswith("_FILE") for key in service.get("environment", {}))


def test_replicas_can_be_added(compose: dict[str, Any]) -> None:
    """Encoders and decoders can be scaled: no fixed name, no fixed port, nothing of their own that is shared."""
    for name in ("encoder", "decoder"):
        service = compose["services"][name]
        assert not {"container_name", "hostname", "ports", "scale"} & set(service)
        assert "replicas" not in service.get("deploy", {})
        assert all(volume.endswith(":ro") for volume in service["volumes"])


def test_every_variable_is_a_setting(compose: dict[str, Any]) -> None:
    """Every SAMOVAR_* variable that is set anywhere is one that its service reads."""
    pull_options = [option for option in pull_checkpoints.params if isinstance(option, click.Option)]
    understood = {name: variables_of(settings) for name, settings in OURS.items()}
    understood["weights"] |= {str(option.envvar) for option in pull_options}
    for name, service in compose["services"].items():
        environment = {key for key in service.get("environment", {}) if name in OURS or key.startswith("SAMOVAR_")}
        assert environment <= understood.get(name, set()), name
    for name, service in (("encoder", "encoder_service"), ("decoder", "decoder_service"), ("gateway", "gateway")):
        ours = {key for key in read_dockerfile(service).image.environment if key.startswith("SAMOVAR_")}
        assert ours <= understood[name], service


def test_secrets_are_files() -> None:
    """With keys and TLS each secret is a file, declared and mounted where a setting names it, for those who need it."""
    compose = load_compose(SECURE, variables={"SECRETS": "/mine"})
    declared = {f"/run/secrets/{name}": secret["file"] for name, secret in compose["secrets"].items()}
    assert all(file == f"/mine/{path.rpartition('/')[2]}" for path, file in declared.items())
    for name in ("encoder", "decoder", "gateway"):
        service = compose["services"][name]
        named = {value for value in service["environment"].values() if value.startswith("/run/secrets/")}
        assert named == {f"/run/secrets/{secret}" for secret in service["secrets"]} <= set(declared), name
    assert "secrets" not in compose["services"]["redis"]


def test_every_value_is_accepted(compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every service accepts the values it is given."""
    for name, settings in OURS.items():
        with monkeypatch.context() as context:
            for key, value in compose["services"][name].get("environment", {}).items():
                context.setenv(key, value)
            settings()


def test_encoder_and_decoder_serve_one_model(compose: dict[str, Any]) -> None:
    """Both get the same model settings and the same weights, and neither starts before these are there."""
    encoder, decoder, weights = (compose["services"][name] for name in ("encoder", "decoder", "weights"))
    model = {key: value for key, value in encoder["environment"].items() if key != "SAMOVAR_DEVICE"}
    assert model == decoder["environment"]
    assert encoder["volumes"] == decoder["volumes"]
    assert encoder["volumes"][0] == f"{weights['volumes'][0]}:ro"
    for service in (encoder, decoder):
        assert service["depends_on"]["weights"] == {"condition": "service_completed_successfully"}
        assert service["depends_on"]["redis"] == {"condition": "service_healthy"}
    assert weights["restart"] == "no"


def test_draining_fits_into_the_grace_period(compose: dict[str, Any]) -> None:
    """Docker kills no replica that still finishes accepted work."""
    drain_s = WATCHERS_LEAVE_S + float(RpcServerSettings.model_fields["drain_s"].default)
    gateway_drain_s = float(GatewaySettings.model_fields["drain_s"].default)
    for name in ("encoder", "decoder", "gateway"):
        period = compose["services"][name]["stop_grace_period"]
        assert period.endswith("s")
        assert float(period[:-1]) >= max(drain_s, gateway_drain_s) + 5


def test_targets_are_services(compose: dict[str, Any]) -> None:
    """Every host that a service is told of is one of the others, on the port it listens on."""
    environment = compose["services"]["gateway"]["environment"]
    assert environment["SAMOVAR_ENCODER_TARGET"] == f"encoder:{EncoderSettings.model_fields['port'].default}"
    assert environment["SAMOVAR_DECODER_TARGET"] == f"decoder:{DecoderSettings.model_fields['port'].default}"
    assert compose["services"]["encoder"]["environment"]["SAMOVAR_REDIS_URL"].startswith("redis://samovar@redis:6379")
    assert GatewaySettings.model_fields["port"].default == 9001


def test_the_override_reserves_a_gpu() -> None:
    """With the override the encoder, and nothing else, has a GPU and the CUDA build of torch."""
    services = load_compose(GPU)["services"]
    (device,) = services["encoder"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert services["encoder"]["build"]["args"]["TORCH"] == "cuda"
    assert "cuda" in services["encoder"]["build"]["args"]["BASE"]
    assert not any("deploy" in services[name] for name in services if name != "encoder")


def test_compiled_kernels_can_be_loaded_on_a_gpu() -> None:
    """The folder that Triton compiles to is on a file system that is writable and may hold programs."""
    folder = read_dockerfile("encoder_service").image.environment["TRITON_CACHE_DIR"]
    assert folder.startswith("/tmp/")  # noqa: S108 - a mount of the container
    assert load_compose(GPU)["services"]["encoder"]["tmpfs"] == ["/tmp:exec"]  # noqa: S108


def test_variables_are_explained() -> None:
    """Every variable of the compose files is named in their opening comments."""
    for name in ("docker-compose.yml", GPU, SECURE):
        explained = "\n".join(line for line in (ROOT / name).read_text().splitlines() if line.startswith("#"))
        for variable in variables_used(name) - {"CUDA_BASE"}:
            assert re.search(rf"\b{variable}\b", explained), f"{name}: {variable}"


def test_redis_is_a_cache(compose: dict[str, Any], tmp_path: Path) -> None:
    """The very command of the redis container gives a Redis that is bounded, evicts, and persists nothing."""
    program, *options = compose["services"]["redis"]["command"]
    assert program == "redis-server"
    server = start_redis(tmp_path, *options, port=free_port())
    try:
        with server.client() as client:
            answers = client.config_get("maxmemory", "maxmemory-policy", "save", "appendonly")
    finally:
        server.stop()
    wanted = {"maxmemory": str(2 * 2**30), "maxmemory-policy": "allkeys-lru", "save": "", "appendonly": "no"}
    assert answers == wanted
