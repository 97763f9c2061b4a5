"""The manifests for Kubernetes and for Ray's cluster launcher, held against schemas."""

import copy
import json
from importlib.metadata import version
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
KUBERNETES_VERSION = "1.33"
SCHEMA = yaml.safe_load((Path(__file__).parent / "kuberay.schema.yaml").read_text())
FILES = ("raycluster.yaml", "rayjob.yaml")


def _load(name):
    return yaml.safe_load((KUBERNETES / name).read_text())


def _cluster(manifest):
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def _templates(manifest):
    cluster = _cluster(manifest)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups]


def _containers(manifest):
    return [c for template in _templates(manifest) for c in template["spec"]["containers"]]


def _check(manifest):
    """Raise unless KubeRay and Kubernetes would take every field of a Ray manifest."""
    jsonschema.Draft202012Validator(SCHEMA).validate(manifest)
    for template in _templates(manifest):
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        kubernetes_validate.validate(whole, KUBERNETES_VERSION, strict=True)


@pytest.fixture(params=FILES)
def manifest(request):
    return _load(request.param)


def test_the_schema_is_one_itself():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_field_is_known(manifest):
    _check(manifest)


def test_what_goes_with_them_is_known_to_kubernetes():
    kinds = []
    for document in yaml.safe_load_all((KUBERNETES / "access.yaml").read_text()):
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
        kinds.append(document["kind"])
    assert kinds == ["PersistentVolumeClaim", "NetworkPolicy"]


def _paths(node, at=()):
    """Every mapping in a manifest, as the path to it."""
    if isinstance(node, dict):
        yield at
        for key, value in node.items():
            yield from _paths(value, (*at, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _paths(value, (*at, index))


FREE = {"labels", "annotations", "rayStartParams", "requests", "limits", "matchLabels"}


def test_a_misspelt_field_is_found_wherever_it_stands(manifest):
    planted = 0
    for path in _paths(manifest):
        if path and path[-1] in FREE:
            continue  # whatever stands there has a name of its own
        broken = copy.deepcopy(manifest)
        node = broken
        for key in path:
            node = node[key]
        node["mispelt"] = 1
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            _check(broken)
        planted += 1
    assert planted > 40


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("workerGroupSpecs", 0, "replicas"), "2"),
        (("workerGroupSpecs", 0, "template", "spec", "containers", 0, "image"), 3),
        (("authOptions", "mode"), "tokens"),
        (("rayVersion",), 2.6),
    ],
)
def test_a_value_of_a_wrong_type_is_found(manifest, path, value):
    node = _cluster(manifest)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        _check(manifest)


def test_a_job_brings_the_very_cluster_that_the_other_manifest_describes():
    assert _cluster(_load("rayjob.yaml")) == _load("raycluster.yaml")["spec"]


def test_the_operator_is_told_the_version_that_the_image_holds(manifest):
    pinned = (ROOT / "constraints.txt").read_text().split("\nray==")[1].split("\n")[0]
    assert _cluster(manifest)["rayVersion"] == pinned == version("ray")


def test_the_cluster_asks_for_a_token(manifest):
    assert _cluster(manifest)["authOptions"] == {"mode": "token"}
    assert _cluster(manifest)["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in _cluster(manifest)["headGroupSpec"]


def test_a_job_is_never_submitted_twice():
    """A second try would be a second run with a reservation of its own."""
    assert _load("rayjob.yaml")["spec"]["backoffLimit"] == 0


def test_pods_hold_no_right_that_they_do_not_need(manifest):
    for template in _templates(manifest):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001  # as the image says
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert not any("hostPath" in volume for volume in spec["volumes"])
    for container in _containers(manifest):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_what_is_asked_for_is_what_may_be_used(manifest):
    """Ray counts the limit; a pod that was promised less would be killed over it."""
    for container in _containers(manifest):
        resources = container["resources"]
        assert resources["requests"] == resources["limits"] and set(resources["limits"]) >= {
            "cpu",
            "memory",
        }


def test_every_machine_sees_the_same_home_ledger_and_store(manifest):
    first, *others = _containers(manifest)
    for other in others:
        for part in ("env", "envFrom", "volumeMounts", "image"):
            assert other[part] == first[part]
    mounts = {mount["mountPath"]: mount["name"] for mount in first["volumeMounts"]}
    env = {entry["name"]: entry.get("value") for entry in first["env"]}
    assert mounts[env["UMBRA_HOME"]] == "home"
    for template in _templates(manifest):
        names = {volume["name"] for volume in template["spec"]["volumes"]}
        assert set(mounts.values()) == names


def test_secrets_are_named_and_never_written(manifest):
    for container in _containers(manifest):
        for entry in container["env"]:
            secret = any(word in entry["name"] for word in ("PASSWORD", "URL", "URI", "SECRET"))
            assert ("valueFrom" in entry) == secret, entry["name"]
        for source in container["envFrom"]:
            assert set(source) == {"secretRef"}


def test_only_the_clusters_own_pods_and_the_operator_reach_its_ports(manifest):
    policy = list(yaml.safe_load_all((KUBERNETES / "access.yaml").read_text()))[1]["spec"]
    ours = policy["podSelector"]["matchLabels"]
    for template in _templates(manifest):
        assert ours.items() <= template["metadata"]["labels"].items()
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    own, operator = policy["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": ours}}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    (source,) = operator["from"]
    assert {"namespaceSelector", "podSelector"} == set(source)
    assert all(rule["to"] for rule in policy["egress"])


@pytest.fixture
def launcher():
    return yaml.safe_load((ROOT / "infra" / "ray-cluster.yaml").read_text())


@pytest.fixture(scope="module")
def launcher_schema():
    ray = pytest.importorskip("ray")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    schema["properties"]["provider"]["additionalProperties"] = False
    return schema


def test_the_launcher_knows_every_field(launcher, launcher_schema):
    jsonschema.validate(launcher, launcher_schema)
    for section in (launcher, launcher["provider"], launcher["auth"]):
        section["mispelt"] = 1
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(launcher, launcher_schema)
        del section["mispelt"]


def test_the_launcher_starts_a_guarded_and_quiet_cluster(launcher):
    for commands in (launcher["head_start_ray_commands"], launcher["worker_start_ray_commands"]):
        (start,) = [line for line in commands if "ray start" in line]
        for words in (
            "RAY_AUTH_MODE=token",
            "RAY_USAGE_STATS_ENABLED=0",
            "DO_NOT_TRACK=1",
            "--disable-usage-stats",
        ):
            assert words in start
    assert "--dashboard-host=127.0.0.1" in launcher["head_start_ray_commands"][1]
    assert "~/.ray/auth_token" in launcher["file_mounts"]
