"""docs/kubernetes.md says what is true: what needs no cluster is run, and what needs one names what there is."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.compose import ROOT, load_compose
from tests.deploy.dockerfile import read_dockerfile
from tests.deploy.kubernetes import COMPONENTS, FOLDERS, containers, environment, of_kind
from tests.deploy.kubernetes_schemas import validate
from tests.deploy.kustomize import FOLDER, Resource, build, combine
from tests.deploy.test_compose import variables_of
from tests.deploy.test_kubernetes import SETTINGS
from tests.docs.snippets import DOCS, run, snippets

PAGE = "kubernetes.md"
TEXT = (DOCS / PAGE).read_text()


def commands(marker: str) -> list[list[str]]:
    """Return the commands of the blocks with a marker, as a shell takes them apart."""
    text = "".join(snippet.text for snippet in snippets(PAGE) if snippet.marker == marker)
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]


def secrets_wanted(resources: list[Resource]) -> dict[str, set[str]]:
    """Return the secrets that pods mount or read, and the keys that they want of them."""
    wanted: dict[str, set[str]] = {}
    for _, pod, container in containers(resources):
        for volume in pod["volumes"]:
            for source in volume.get("projected", {}).get("sources", [volume]):
                if "secret" in source:
                    name = source["secret"].get("secretName") or source["secret"]["name"]
                    wanted.setdefault(name, set()).update(item["key"] for item in source["secret"]["items"])
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                wanted.setdefault(reference["name"], set()).add(reference["key"])
    return wanted


def test_secrets_are_what_the_manifests_want(tmp_path: Path) -> None:
    """The files are made as printed, and the secrets made of them have the keys that pods mount."""
    (tmp_path / "redis-password").write_text("secret")
    for snippet in snippets(PAGE):
        if snippet.language == "sh" and not snippet.marker:
            run(snippet.text, snippet.language, tmp_path)
    wanted = secrets_wanted(combine(*COMPONENTS))
    made = [words for words in commands("in a cluster") if "create" in words]
    assert {words[words.index("generic") + 1] for words in made} == set(wanted)
    for words in made:
        keys = set()
        for kind, _, value in (word.removeprefix("--from-").partition("=") for word in words if "--from-" in word):
            key, given, content = value.partition("=")
            if kind == "file":
                assert (tmp_path / (content if given else key)).exists(), value
            keys.add(key if given else Path(key).name)
        assert keys == wanted[words[words.index("generic") + 1]]


def test_kubectl_takes_the_secrets(tmp_path: Path) -> None:
    """Where kubectl is installed, it makes the secrets out of the printed commands."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    (tmp_path / "redis-password").write_text("secret")
    for snippet in snippets(PAGE):
        if snippet.language == "sh" and not snippet.marker:
            run(snippet.text, snippet.language, tmp_path)
    for words in [words for words in commands("in a cluster") if "create" in words]:
        command = [*words, "--dry-run=client", "-o", "yaml"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        validate(yaml.safe_load(done.stdout))


def test_commands_for_a_cluster_name_what_there_is() -> None:
    """Every file, overlay, namespace and object that kubectl is told of is one of the manifests."""
    known = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in combine(*COMPONENTS)}
    verbs = set()
    for words in commands("in a cluster"):
        assert words[0] == "kubectl"
        verbs.add(words[3] if words[1] == "-n" else words[1])
        if "-n" in words:
            assert f"namespace/{words[words.index('-n') + 1]}" in known
        for flag in ("-f", "-k"):
            if flag in words:
                place = ROOT / words[words.index(flag) + 1]
                assert place.is_dir() if flag == "-k" else place.is_file()
                assert flag == "-f" or build(str(place.relative_to(FOLDER)))
        objects = [word for word in words if re.fullmatch(r"(deployment|service|statefulset)/\S+", word)]
        assert set(objects) <= known
    assert verbs == {"apply", "create", "rollout", "port-forward", "scale", "wait"}
    (forward,) = [words for words in commands("in a cluster") if "port-forward" in words]
    ports = of_kind(build("overlays/trial"), "Service")["gateway"]["spec"]["ports"]
    assert forward[-1] == f"9001:{ports[0]['port']}"


def test_images_are_built_as_the_overlays_name_them() -> None:
    """The names and tags that are built are those that the overlays ask for, of Dockerfiles that there are."""
    built = {}
    for words in commands("with Docker"):
        dockerfile, tag = words[words.index("-f") + 1], words[words.index("-t") + 1]
        built[tag] = dockerfile
        service = dockerfile.partition("/")[0]
        arguments = {word.partition("=")[0] for word in words if "=" in word}
        assert arguments <= set(read_dockerfile(service).arguments)
    used = {container["image"] for name, _, container in containers(build("overlays/trial")) if name in FOLDERS}
    used |= {container["image"] for name, _, container in containers(build("overlays/production")) if name in FOLDERS}
    assert set(built) == {image.removeprefix("registry.example/") for image in used}
    cuda = load_compose("docker-compose.gpu.yml")["services"]["encoder"]["build"]["args"]
    (gpu,) = [words for words in commands("with Docker") if any("cuda:0" in word for word in words)]
    assert {f"TORCH={cuda['TORCH']}", f"BASE={cuda['BASE']}"} <= set(gpu)


def test_the_example_of_an_overlay_is_one(tmp_path: Path) -> None:
    """The overlay on the page can be built beside the others, is valid, and sets what there is to be set."""
    (example,) = [snippet for snippet in snippets(PAGE) if snippet.language == "yaml"]
    mine = tmp_path / "kubernetes" / "overlays" / "mine"
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(example.text)
    resources = build(str(mine))
    for resource in resources:
        validate(resource)
    for name, _, container in containers(resources):
        if name in FOLDERS:
            ours = {variable for variable in environment(container, resources) if variable.startswith("SAMOVAR_")}
            allowed = variables_of(SETTINGS[name])
            assert ours <= allowed, name


def test_every_component_has_a_line() -> None:
    """The table lists what is there."""
    listed = set(re.findall(r"`((?:components|overlays)/[a-z-]+|base)` \|$", TEXT, re.MULTILINE))
    there = {str(path.parent.relative_to(FOLDER)) for path in FOLDER.rglob("kustomization.yaml")}
    assert listed == there
