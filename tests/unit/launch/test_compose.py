"""One command line in, one typed config or one line of error out."""

import json
from pathlib import Path

import pytest
import yaml

from launch.compose import choices, compose, scaled_keys, to_yaml
from launch.paths import is_submitted_job, job_folder
from lwz_ray.errors import UserError

JOB = json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_x", "job_name": "raysubmit_x"}})


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)


def error_of(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        compose(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_smoke_is_the_default_preset():
    config = compose([])
    assert (config.run.name, config.steps, config.samples_per_step) == ("smoke_cpu", 3, 8)
    assert config.rewards.active == ("length", "format")
    assert config.cluster.address == "local"


@pytest.mark.parametrize(
    "argv",
    [
        ["run=demo_cpu", "run.name=x", "run.dir=y", "run.resume=auto", "learners=fsdp", "optimizer.lr=1e-5"],
        ["optimizer.lr=1e-5", "run.resume=auto", "learners=fsdp", "run.dir=y", "run.name=x", "run=demo_cpu"],
        ["run.name=x", "+run.dir=y", "run=demo_cpu", "++run.resume=auto", "++optimizer.lr=0.00001"],
    ],
)
def test_preset_and_values_go_together_in_any_order(argv: list[str], tmp_path: Path):
    config = compose(argv)
    assert (config.run.name, config.run.dir, config.run.resume) == ("x", str(tmp_path / "y"), "auto")
    assert (config.steps, config.optimizer.lr, config.learners.backend) == (32, 1e-5, "fsdp")


def test_a_group_on_the_command_line_wins_over_the_preset():
    assert compose(["run=demo_cpu"]).template.arm == "direct"
    assert compose(["template=think", "run=demo_cpu"]).template.arm == "think"


def test_presets_fit_two_cores():
    smoke, demo = compose([]), compose(["run=demo_cpu"])
    for config in (smoke, demo):
        cpus = config.actors.replicas * config.actors.num_cpus + config.learners.ranks * config.learners.num_cpus
        if config.rewards.writing.path is not None:
            cpus += config.rewards.replicas * config.rewards.num_cpus
        assert round(cpus, 6) <= 2
    assert (smoke.actors.num_cpus, smoke.rewards.num_cpus, smoke.learners.num_cpus) == (0.8, 0.1, 0.4)


def test_a_choice_of_numbers_is_a_number():
    assert compose(["learners=deepspeed", "learners.zero_stage=3"]).learners.zero_stage == 3
    assert error_of("learners.zero_stage=4") == "learners.zero_stage=4 (int): needs one of 1, 2, 3"


def test_paper_settings():
    config = compose(["run=paper_32b"])
    assert config.model.path == "Qwen/Qwen2.5-32B"
    assert (config.sampling.max_tokens, config.sampling.temperature, config.sampling.top_p) == (14000, 0.8, 1.0)
    assert (config.algorithm.clip_low, config.algorithm.kl_coefficient) == (0.2, 0.0)
    assert (config.steps, config.samples_per_step, config.template.arm) == (150, 32, "think")
    assert config.rewards.active == ("length", "writing", "format")


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_unknown_key_names_the_nearest(prefix: str):
    assert error_of(f"{prefix}stepz=3") == "unknown key 'stepz': did you mean 'steps'?"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("group_sizes=8", "unknown key 'group_sizes': did you mean 'group_size'?"),
        ("lr=1", "unknown key 'lr': did you mean 'optimizer.lr'?"),
        ("learnrs.ranks=2", "unknown key 'learnrs.ranks': did you mean 'learners.ranks'?"),
        ("rewards.weights.lenght=1", "unknown key 'rewards.weights.lenght': did you mean 'rewards.weights.length'?"),
        ("model={pathh: x}", "unknown key 'model.pathh': did you mean 'model.path'?"),
        ("hydra.run.dir=x", "unknown key 'hydra.run.dir': did you mean 'run.dir'?"),
        ("lerners=fsdp", "unknown group 'lerners': did you mean 'learners=fsdp'?"),
        (
            "run=demo",
            "run='demo': no such choice, did you mean 'rm_demo'? (there are curate_demo, curate_logs, curate_rm, "
            "demo_cpu, evaluate_demo, generate_demo, paper_32b, pretrain_demo, qwen4b_4gpu, qwen7b_8gpu, "
            "rm_degradations, rm_demo, sft_demo, smoke_cpu, smoke_ppo, zero_small, zero_smoke)",
        ),
        ("steps=many", "steps='many' (str): needs an integer > 0"),
        ("steps=2.5", "steps=2.5 (float): needs an integer > 0"),
        ("steps=", "steps='' (str): needs an integer > 0"),
        ("dry_run=yes", "dry_run='yes' (str): needs true or false"),
        ("max_staleness=-1", "max_staleness=-1 (int): needs an integer >= 0"),
        ("optimizer.lr=inf", "optimizer.lr=inf (float): needs a number > 0"),
        ("actors.kv_cache_mib=x", "actors.kv_cache_mib='x' (str): needs an integer > 0 or null"),
        ("learners.dtype=int8", "learners.dtype='int8' (str): needs one of bfloat16, float32"),
        ("data.languages=[fr]", "data.languages[0]='fr' (str): needs a list, each one of en, zh (at least 1)"),
        ("group_size=1", "group_size=1: GRPO compares samples of one prompt, a group needs at least 2"),
        ("steps=1,2", "'steps=1,2': several values; one run takes one, write a list as steps=[1,2]"),
        ("~steps", "'~steps': a key cannot be removed, each has a reader; set another value instead"),
        ("steps", "'steps': write key=value or group=choice, such as steps=5 or run=demo_cpu"),
        (
            "benchmark.baselines=[a]",
            "benchmark.baselines=['a'] (list): needs a map from text to text",
        ),
        ("--multirun", "unknown option '--multirun': the options are --help, --cfg job and --config-dir DIR"),
    ],
)
def test_mistakes_get_one_line(word: str, message: str):
    assert error_of(word) == message


def test_malformed_value_says_what_the_key_needs():
    assert error_of("steps=[").startswith("'steps=[': cannot be read (")
    assert error_of("steps=[").endswith("); steps needs an integer > 0")
    assert error_of("pipeline.words.base=[steps=3]").endswith(
        "needs a list, each text; quote a text with other signs than letters in it: pipeline.words.base=['a=b']"
    )


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "x" * 129])
def test_run_names_stay_in_their_folder(name: str):
    message = error_of(f"run.name={name}")
    assert message.startswith("run.name='")
    assert message.endswith("that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


def test_text_is_taken_as_typed(tmp_path: Path):
    config = compose(["run.git_revision=1234567e10", "run.name=2024", "run.dir=/a b/(c)", "template.stop='</answer>'"])
    assert (config.run.git_revision, config.run.name, config.run.dir) == ("1234567e10", "2024", "/a b/(c)")
    assert config.template.stop == "</answer>"
    assert compose(["run.git_revision=null"]).run.git_revision is None


def test_an_unset_variable_is_named():
    assert "Environment variable 'NOT_THERE' not found" in error_of("run.dir=${oc.env:NOT_THERE}")


def test_a_name_of_the_users_may_hold_dots(tmp_path: Path):
    one, two = f"{tmp_path}/one.jsonl", f"{tmp_path}/two.jsonl"
    words = [f"benchmark.baselines.gpt-4.1={one}", f"benchmark.baselines={{Qwen2.5 72B: {two}}}"]
    assert compose(words).benchmark.baselines == {"gpt-4.1": one, "Qwen2.5 72B": two}
    assert error_of("pipeline.words.base.more=[a]", "pipeline=zero").startswith("pipeline.words.base.more: no such")
    assert error_of("model.path.more=a").startswith("unknown key 'model.path.more'")


def test_a_map_is_laid_over_the_rest():
    weights = {"length": 2.0, "writing": 0.0, "format": 1.0, "judge": 0.0, "function": 0.0}
    assert compose(["rewards.weights={length: 2}"]).rewards.weights == weights


def test_a_number_of_replicas_must_be_given_to_scale() -> None:
    assert error_of("stage=scale", "run.name=x") == (
        "stage=scale needs actors.replicas=N or rewards.replicas=N, or both: the number of Ray actors that the run is "
        "to have"
    )
    words = ["stage=scale", "run.name=x", "rewards.replicas=3"]
    assert (compose(words).rewards.replicas, scaled_keys(words)) == (3, ["rewards.replicas"])
    assert scaled_keys([*words, "actors.replicas=2"]) == ["actors.replicas", "rewards.replicas"]


def test_a_submitted_stage_that_loads_no_model_needs_a_durable_run_folder_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_1"}}')
    words = ["stage=scale", "run.name=x", "rewards.replicas=3"]
    assert compose([*words, "run.dir=/shared/runs"]).run.dir == "/shared/runs"
    assert error_of(*words, "run.dir=runs").startswith("run.dir='runs': relative, or inside the temporary folder")


def test_paths_become_absolute(tmp_path: Path):
    config = compose(["model.path=m", "data.path=d.jsonl", "eval.path=hub:a/b", "rewards.writing.path=hub:c/d"])
    assert config.model.path == str(tmp_path / "m")
    assert config.data.path == str(tmp_path / "d.jsonl")
    assert (config.eval.path, config.rewards.writing.path) == ("hub:a/b", "c/d")
    assert compose([]).data.path == "package://lwz_ray/prompts/train.jsonl"
    assert error_of("model.path=hub:just-a-name") == ("model.path='hub:just-a-name': write a folder or hub:owner/name")


def test_hydra_leaves_no_trace(tmp_path: Path):
    compose(["run=demo_cpu"])
    assert (list(tmp_path.iterdir()), Path.cwd()) == ([], tmp_path)


def test_a_config_folder_of_ones_own(tmp_path: Path):
    mine = tmp_path / "mine"
    (mine / "run").mkdir(parents=True)
    (mine / "run" / "tiny.yaml").write_text("# @package _global_\ndefaults: [smoke_cpu, _self_]\nsteps: 7\n")
    assert compose(["--config-dir", str(mine), "run=tiny"]).steps == 7
    assert choices([mine])["run"] == sorted([*choices()["run"], "tiny"])
    (mine / "run" / "wrong.yaml").write_text("# @package _global_\ndefaults: [smoke_cpu, _self_]\nstepz: 7\n")
    assert error_of(f"--config-dir={mine}", "run=wrong") == "unknown key 'stepz': did you mean 'steps'?"
    (mine / "run" / "broken.yaml").write_text("steps: [\n")
    assert "broken.yaml" in error_of(f"--config-dir={mine}", "run=broken")
    assert error_of("--config-dir", "nowhere") == (
        "--config-dir 'nowhere': no such folder; name one with groups inside, as in conf/"
    )


def test_printed_config_reads_back():
    config = compose(["run=demo_cpu"])
    assert type(config).model_validate(yaml.safe_load(to_yaml(config))) == config


def test_a_submitted_job_is_known_by_what_ray_sets():
    assert is_submitted_job({"RAY_JOB_CONFIG_JSON_ENV_VAR": JOB})
    assert not is_submitted_job({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"})
    assert not is_submitted_job({})
    folder = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_ab")
    assert job_folder(folder / "deeper") == folder


def test_a_submitted_job_refuses_what_would_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_ab"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", JOB)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    message = error_of()
    assert message.startswith(
        "run.dir='runs', model.path='models/tiny-random', rewards.writing.path='models/tiny-classifier': relative, or"
    )
    assert message.endswith("give absolute paths on storage that every node sees")
    good = [f"run.dir={tmp_path}", f"model.path={tmp_path}/m", f"rewards.writing.path={tmp_path}/c"]
    assert error_of(*good, f"run.dir={folder}/runs").startswith(f"run.dir='{folder}/runs': relative, or inside")
    config = compose(good)
    assert (config.run.dir, config.cluster.address) == (str(tmp_path), "10.0.0.1:6379")
