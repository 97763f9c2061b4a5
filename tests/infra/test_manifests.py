"""The container manifests, read as text and YAML: no container engine is needed."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}
SECRET = re.compile(r"password|passwd|secret|token|api_?key", re.IGNORECASE)


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((INFRA / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def instructions():
    """The Dockerfile as (instruction, arguments), continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (INFRA / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def of(instructions, name):
    return [arguments for instruction, arguments in instructions if instruction == name]


def ours(compose):
    return {k: s for k, s in compose["services"].items() if s["image"] == "umbra-synth"}


def test_every_port_is_published_on_loopback_only(compose):
    published = [p for s in compose["services"].values() for p in s.get("ports", [])]
    assert published
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", str(port)) for port in published)
    assert all(s.get("network_mode") is None for s in compose["services"].values())


def test_what_sees_private_images_and_the_ledger_have_no_way_out(compose):
    for name in ("umbra", "ledger", "store", "bucket"):
        assert all(
            compose["networks"][n]["internal"] for n in compose["services"][name]["networks"]
        )


def test_no_secret_is_written_in_a_manifest(compose):
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            assert not SECRET.search(name)
            assert not re.search(r"//[^/@]*:[^/@]*@", str(value)), f"{name} holds a password"
    for text in ((INFRA / "compose.yaml").read_text(), (INFRA / "Dockerfile").read_text()):
        assert not re.search(r"(?:password|secret|token)\s*[:=]\s*\S", text, re.IGNORECASE)
    needed = {s["env_file"] for s in compose["services"].values() if "env_file" in s}
    assert needed == {"ledger.env", "store.env", "umbra.env"}
    for name in needed:
        for line in (INFRA / f"{name}.example").read_text().splitlines():
            key, _, value = line.partition("=")
            assert line.startswith("#") or not SECRET.search(key) or not value
    assert "*.env" in (INFRA / ".gitignore").read_text().splitlines()


def test_nothing_of_ours_runs_as_root(compose, instructions):
    assert of(instructions, "USER") == ["10001:10001"]
    last = [name for name, _ in instructions]
    assert last.index("USER") > max(i for i, name in enumerate(last) if name == "RUN")
    assert set(ours(compose)) == {"umbra", "mlflow", "bucket"}
    for service in ours(compose).values():
        assert service["user"] == "10001:10001"
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]


def test_nobody_is_told_of_any_use(compose, instructions):
    image = dict(re.findall(r"(\w+)=(\S+)", " ".join(of(instructions, "ENV"))))
    assert QUIET.items() <= image.items()
    for service in ours(compose).values():
        assert QUIET.items() <= service["environment"].items()


def test_the_image_is_umbra_with_its_home_on_a_volume(compose, instructions):
    assert of(instructions, "ENTRYPOINT") == ['["umbra"]']
    home = dict(re.findall(r"(\w+)=(\S+)", " ".join(of(instructions, "ENV"))))["UMBRA_HOME"]
    assert of(instructions, "VOLUME") == [home]
    assert f"home:{home}" in compose["services"]["umbra"]["volumes"]
    installs = [line for line in of(instructions, "RUN") if "pip install" in line]
    assert len(installs) == 2
    assert all("constraints.txt" in line for line in installs)
    (whole,) = [line for line in installs if "'." in line]
    assert "'.[postgres,s3]'" in whole


def test_the_store_is_made_ready_before_a_run(compose):
    umbra = compose["services"]["umbra"]
    assert umbra["depends_on"]["bucket"] == {"condition": "service_completed_successfully"}
    assert umbra["environment"]["AWS_ENDPOINT_URL"] == "http://store:9000"
    assert "ports" not in compose["services"]["store"]


def test_the_builder_is_sent_what_it_copies_and_no_more(instructions):
    ignore = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignore if line.startswith("!")}
    copied = set()
    for arguments in of(instructions, "COPY"):
        if not arguments.startswith("--from"):
            copied |= set(arguments.split()[:-1])
    assert "*" in ignore
    assert sent == copied
    assert all((ROOT / name).exists() for name in sent)


def test_every_named_volume_network_and_dependency_exists(compose):
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose["volumes"]
        assert set(service["networks"]) <= set(compose["networks"])
        assert set(service.get("depends_on", {})) <= set(compose["services"])
