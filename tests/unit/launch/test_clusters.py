"""The recipes of launch/clusters, filled as a user fills them, against schemas, presets and our own composer."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from launch.compose import compose
from launch.placement import Bundle, Node
from launch.plan import bundles
from launch.preflight_placement import check_fits
from launch.shapes import shape_of
from lwz_ray.config import Config
from tests.kuberay_schema import RAY_CLUSTER, RAY_JOB

REPO_ROOT = Path(__file__).resolve().parents[3]
CLUSTERS = REPO_ROOT / "launch" / "clusters"
PRESETS = ("paper_32b", "qwen4b_4gpu", "qwen7b_8gpu")
GIB = 2**30
GIVEN = {
    "IMAGE": "registry.example/lwz_ray:1",
    "WRITING_MODEL": "/shared/models/writing",
    "HEAD_IP": "10.0.0.1",
    "WORKER_IPS": "[10.0.0.2, 10.0.0.3]",
    "SSH_USER": "trainer",
    "REPO": "/shared/lwz_ray",
}
"""What a recipe's page tells its user to set."""
SCRIPTS = sorted(p for p in (REPO_ROOT / "launch").rglob("*") if p.suffix in (".sh", ".sbatch"))


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def run_fill(preset: str, file: str, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME")}
    command = [str(CLUSTERS / "fill.sh"), preset, str(CLUSTERS / file)]
    return subprocess.run(command, env=kept | dict(environ), capture_output=True, text=True, timeout=30)


def fill(preset: str, file: str, **more: str) -> Any:
    """Return a manifest of a preset as `kubectl apply` or `ray up` would read it."""
    done = run_fill(preset, file, GIVEN | more)
    assert (done.returncode, done.stderr) == (0, "")
    assert "${" not in done.stdout
    return yaml.safe_load(done.stdout)


def settings(preset: str) -> dict[str, str]:
    lines = (CLUSTERS / f"{preset}.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def entry_words(entrypoint: str) -> list[str]:
    words = shlex.split(entrypoint)
    assert words[:3] == ["python", "-m", "lwz_ray.main"]
    return words[3:]


def worker(manifest: Any) -> dict[str, Any]:
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    (group,) = spec["workerGroupSpecs"]
    return group


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi"), quantity
    return int(quantity.removesuffix("Gi"))


def assert_fits(config: Config, node: Bundle, count: int) -> dict[str, list[int]]:
    nodes = [Node(f"node {i + 1}", node, node) for i in range(count)]
    return check_fits(config, bundles(config), nodes).nodes


@pytest.mark.parametrize("preset", PRESETS)
def test_kuberay_manifests_are_what_the_operator_takes(preset: str):
    cluster, job = fill(preset, "kuberay/raycluster.yaml"), fill(preset, "kuberay/rayjob.yaml")
    jsonschema.validate(cluster, RAY_CLUSTER)
    jsonschema.validate(job, RAY_JOB)
    assert job["spec"]["rayClusterSpec"] == cluster["spec"], "the two files must describe one cluster"
    pinned = re.search(r"^ray(?:\[.*\])?==(\S+)$", (REPO_ROOT / "requirements" / "cpu.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["spec"]["rayVersion"] == pinned[1]
    for template in (cluster["spec"]["headGroupSpec"]["template"], worker(cluster)["template"]):
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        for container in template["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes


@pytest.mark.parametrize("preset", PRESETS)
def test_a_mistake_in_a_manifest_would_be_found(preset: str):
    cluster = fill(preset, "kuberay/raycluster.yaml")
    broken = (
        {**cluster, "apiVersion": "ray.io/v1alpha1"},
        {**cluster, "spec": {k: v for k, v in cluster["spec"].items() if k != "headGroupSpec"}},
        {**cluster, "spec": {**cluster["spec"], "rayStartParams": {}}},
        {**cluster, "metadata": {"name": "paper_32b"}},
    )
    for manifest in broken:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(manifest, RAY_CLUSTER)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_manifests_hold_the_run(preset: str):
    group = worker(fill(preset, "kuberay/rayjob.yaml"))
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    config = compose([f"run={preset}"])
    count = group["replicas"]
    assert group["minReplicas"] == group["maxReplicas"] == count == config.cluster.nodes
    assert limits["nvidia.com/gpu"] == config.cluster.gpus_per_node
    node = {"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"])}
    placed = assert_fits(config, node, count)

    # /dev/shm counts as the container's memory: two staged versions of the weights, and Ray's object store.
    weights = shape_of("model.path", config.model.path).num_parameters * 2 / GIB
    (shm,) = [v for v in group["template"]["spec"]["volumes"] if v["name"] == "shm"]
    in_shm = gibibytes(shm["emptyDir"]["sizeLimit"])
    assert in_shm > 2 * weights + int(group["rayStartParams"]["object-store-memory"]) / GIB
    ranks = max(placed["learners"].count(n) for n in range(count))
    checkpoint = weights * 6 / config.learners.ranks
    assert gibibytes(limits["memory"]) > in_shm + ranks * max(weights, checkpoint)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_jobs_words_compose(preset: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_x"}}')
    config = compose(entry_words(fill(preset, "kuberay/rayjob.yaml", GIT_REVISION="abc1234")["spec"]["entrypoint"]))
    assert (config.run.name, config.run.dir, config.run.resume) == (preset, "/shared/runs", "auto")
    assert (config.cluster.address, config.cluster.nodes) == ("auto", int(settings(preset)["NODES"]))
    assert config.cluster.gpus_per_node == int(settings(preset)["GPUS_PER_NODE"])
    assert config.rewards.writing.path == "/shared/models/writing"
    assert config.run.git_revision == "abc1234"


@pytest.mark.parametrize("preset", PRESETS)
def test_rays_cluster_launcher_accepts_its_file(preset: str):
    from ray.autoscaler._private.util import prepare_config, validate_config

    found = fill(preset, "ray_up.yaml")
    prepared = prepare_config(found)
    validate_config(prepared)
    assert prepared["available_node_types"]["local.cluster.node"]["max_workers"] == 2
    assert found["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "--address=$RAY_HEAD_IP:6379" in found["worker_start_ray_commands"][-1]
    for commands in (found["head_start_ray_commands"], found["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token ray start" in commands[-1]
        assert f"--num-gpus={settings(preset)['GPUS_PER_NODE']} " in commands[-1]


def test_the_environment_wins_and_what_is_missing_is_named():
    assert worker(fill("paper_32b", "kuberay/raycluster.yaml", NODES="9"))["replicas"] == 9
    image = "registry.example/a&b:1"  # bash reads & in a replacement as what was found
    assert (
        worker(fill("paper_32b", "kuberay/raycluster.yaml", IMAGE=image))["template"]["spec"]["containers"][0]["image"]
        == image
    )
    done = run_fill("paper_32b", "kuberay/rayjob.yaml", {"IMAGE": "x"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fill.sh: set WRITING_MODEL for ")
    done = run_fill("paper_33b", "kuberay/rayjob.yaml", GIVEN)
    assert done.returncode == 2
    assert done.stderr.startswith("fill.sh: 'paper_33b': no ")


def secrets_in(node: Any) -> Iterator[str]:
    """Yield every environment variable whose value stands in a manifest although its name says it is secret."""
    if isinstance(node, dict):
        if "value" in node and re.search(r"TOKEN|KEY|SECRET|PASSW", str(node.get("name", ""))):
            yield node["name"]
        for value in node.values():
            yield from secrets_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from secrets_in(value)


@pytest.mark.parametrize("file", ["kuberay/raycluster.yaml", "kuberay/rayjob.yaml", "ray_up.yaml"])
def test_no_manifest_holds_a_secret(file: str):
    assert list(secrets_in({"env": [{"name": "HF_TOKEN", "value": "x"}]})) == ["HF_TOKEN"]
    assert list(secrets_in(fill("paper_32b", file))) == []
    secret = "hf_0123456789abcdef"
    done = run_fill("paper_32b", file, GIVEN | {"HF_TOKEN": secret, "RAY_AUTH_TOKEN": secret, "WANDB_API_KEY": secret})
    assert done.returncode == 0
    assert secret not in done.stdout


def test_local_settings_and_what_make_writes_stay_out_of_the_image():
    def listed(file: Path) -> set[str]:
        lines = file.read_text(encoding="utf-8").splitlines()
        return {line.strip("/").replace("-*", "*") for line in lines if line and not line.startswith("#")}

    left_out = listed(CLUSTERS / "kuberay" / "Dockerfile.dockerignore")
    assert {".git", ".env"} <= left_out
    assert {".venv*", "models", "runs", "bench", "wandb"} <= left_out & listed(REPO_ROOT / ".gitignore")


@pytest.mark.parametrize("preset", PRESETS)
def test_slurm_words_compose_and_its_nodes_hold_the_run(preset: str):
    text, sizes = (CLUSTERS / "slurm.sbatch").read_text(encoding="utf-8"), settings(preset)
    page = (REPO_ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    (told,) = re.findall(rf"^sbatch (.*)launch/clusters/slurm\.sbatch run={preset} ", page, re.MULTILINE)
    found = dict(re.findall(r"--(nodes|gpus-per-node)=(\d+)", "".join(re.findall(r"^#SBATCH .*\n", text, re.M)) + told))
    nodes, gpus = int(found["nodes"]), int(found["gpus-per-node"])
    assert (nodes, gpus) == (int(sizes["NODES"]), int(sizes["GPUS_PER_NODE"]))
    (command,) = re.findall(r"^    (python -m lwz_ray\.main .*?) &$", text.replace("\\\n", " "), re.MULTILINE)
    filled = command.replace('"$address"', "10.0.0.1:6379").replace('"$SLURM_JOB_NUM_NODES"', str(nodes))
    config = compose([*entry_words(filled.replace('"$@"', "")), f"run={preset}"])
    assert (config.cluster.address, config.cluster.nodes, config.run.resume) == ("10.0.0.1:6379", nodes, "auto")
    assert_fits(config, {"CPU": float(sizes["CPUS_PER_NODE"]), "GPU": float(gpus)}, nodes)


def test_scripts_pass_shellcheck():
    assert [p.name for p in SCRIPTS] == ["fill.sh", "node.sh", "slurm.sbatch", "setup_env.sh"]
    shellcheck = Path(sys.executable).parent / "shellcheck"
    command = [str(shellcheck), "--shell=bash", *map(str, SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert [p.name for p in SCRIPTS if not os.access(p, os.X_OK)] == ["slurm.sbatch"]  # sbatch reads it


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "node.sh: '': say head, or worker HEAD:PORT"),
        (["worker"], "node.sh: worker : name the head as HOST:PORT"),
        (["worker", "10.0.0.1"], "node.sh: worker 10.0.0.1: name the head as HOST:PORT"),
    ],
)
def test_the_nodes_script_answers_mistakes(words: list[str], line: str, tmp_path: Path):
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    command = [str(CLUSTERS / "node.sh"), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (2, line + "\n")
    assert list(tmp_path.iterdir()) == []
