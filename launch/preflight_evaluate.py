"""What `stage=evaluate` can be refused for before a model is loaded, Ray started or a judge asked."""

from launch.chat_open import check_chat
from launch.evaluate_cost import check_cost, estimate_judging, has_judge
from launch.evaluate_texts import read_texts
from launch.preflight import check_address, check_policy
from lwz_ray.benchmarks.loading import load_benchmark
from lwz_ray.benchmarks.records import Benchmark
from lwz_ray.config import Config
from lwz_ray.errors import UserError


def check(config: Config) -> None:
    """Raise UserError on the first thing that would stop the stage later."""
    if config.evaluate.texts_path is None or config.evaluate.judge_path is not None:
        check_address(config)
    benchmark = load_benchmark(config.benchmark)
    _check_names(config, benchmark)
    texts = None
    if config.evaluate.texts_path is None:
        check_policy(config)
    else:
        texts = read_texts(config, benchmark).texts
    _check_judge(config)
    if has_judge(config):
        check_cost(config, estimate_judging(config, benchmark, texts))


def _check_names(config: Config, benchmark: Benchmark) -> None:
    anchor = config.evaluate.anchor
    if benchmark.name != "arena_write":
        return
    names = ", ".join(sorted(benchmark.baselines))
    if anchor is not None and anchor not in benchmark.baselines:
        raise UserError(f"evaluate.anchor={anchor!r} is none of the baselines ({names}): name one of them, or null")
    if config.run.name in benchmark.baselines:
        raise UserError(
            f"run.name={config.run.name}: a baseline has this name, and the ratings name a model by its run: choose "
            "another run.name"
        )


def _check_judge(config: Config) -> None:
    evaluate, judge = config.evaluate, config.judge
    if evaluate.judge_path is not None and judge.base_url is not None:
        raise UserError(
            f"evaluate.judge_path={evaluate.judge_path!r} and judge.base_url={judge.base_url!r}: two judges; set "
            "one of them to null"
        )
    named = {"model": judge.model, "api_key_env": judge.api_key_env}
    given = [f"judge.{key}={value!r}" for key, value in named.items() if value is not None]
    if given and judge.base_url is None and evaluate.judge_path is None:
        raise UserError(f"{given[0]} but judge.base_url is null: name the endpoint's address, or set it to null too")
    if evaluate.max_cost is not None and judge.base_url is not None and judge.price_input is None:
        raise UserError(
            f"evaluate.max_cost={evaluate.max_cost:g} without prices: give judge.price_input and judge.price_output, "
            "per million tokens"
        )
    check_chat(config, "judge")
