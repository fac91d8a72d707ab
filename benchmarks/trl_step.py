"""Time a training step of TRL's GRPOTrainer with the settings of one of our presets, on this machine's CPU.

    python -m benchmarks.trl_step --steps 3 --out bench/trl.json run=demo_cpu

Model, prompts, group size, token limit, sampling, rewards, optimizer and stop string are the preset's. Master weights
are float32 and compute is bfloat16 (autocast), as in our learner. TRL generates with transformers.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.compose import compose
from lwz_ray.config import Config
from lwz_ray.data import PromptOrder, load_prompts
from lwz_ray.records import Prompt
from lwz_ray.templates import parse_completion, render
from lwz_ray.text import count_words
from rewards.format import format_reward
from rewards.length import l_max_for, length_reward
from rewards.repetition import repetition

WARM_UP_STEPS = 1


@dataclass(slots=True)
class StepTime:
    """One optimizer step, generation included."""

    seconds: float = 0.0
    generate_s: float = 0.0
    num_tokens: int = 0
    """Completion tokens up to and including the stop."""


def prompt_text(config: Config, tokenizer: Any, prompt: Prompt) -> str:
    """Return what the model reads: template, chat template where configured, prefill."""
    text = render(config.template, prompt.text, prompt.language)
    if config.template.chat:
        messages = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text + config.template.prefill


def make_dataset(config: Config, tokenizer: Any, num_prompts: int) -> Any:
    """Return the first prompts in the preset's order as a dataset with columns prompt, low, high (words)."""
    from datasets import Dataset

    def num_tokens(prompt: Prompt) -> int:
        return len(tokenizer(prompt_text(config, tokenizer, prompt), add_special_tokens=False)["input_ids"])

    prompts = load_prompts(config.data, config.rewards.length.on_missing_range, num_tokens).prompts
    order = PromptOrder(len(prompts), config.seed, config.data.shuffle)
    chosen = [prompts[order.index(position)] for position in range(num_prompts)]
    ranges = [p.length_range for p in chosen if p.length_range is not None]
    if len(ranges) != len(chosen):
        raise SystemExit("bench: every prompt needs a length range; use rewards.length.on_missing_range=drop")
    return Dataset.from_dict(
        {
            "prompt": [prompt_text(config, tokenizer, p) for p in chosen],
            "low": [low for low, _ in ranges],
            "high": [high for _, high in ranges],
        }
    )


def make_rewards(config: Config, steps: list[StepTime]) -> list[Callable[..., list[float]]]:
    """Return the length and format rewards in TRL's form; the first also counts tokens into the running step."""
    arm, prefill = config.template.arm, config.template.prefill

    def length(
        completions: list[str], completion_ids: list[list[int]], low: list[int], high: list[int], **_: Any
    ) -> list[float]:
        steps[-1].num_tokens += sum(len(ids) for ids in completion_ids)
        words = [count_words(parse_completion(text, arm, prefill).answer or "") for text in completions]
        factor = config.rewards.length.l_max_factor
        return [length_reward(n, lo, hi, l_max_for(hi, factor)) for n, lo, hi in zip(words, low, high, strict=True)]

    def format_(completions: list[str], **_: Any) -> list[float]:
        settings = config.rewards.format
        parsed = [parse_completion(text, arm, prefill) for text in completions]
        return [format_reward(p, repetition(p.answer or "", settings.repetition_ngram), settings) for p in parsed]

    return [length, format_]


def trl_settings(config: Config, num_steps: int, folder: str) -> dict[str, Any]:
    """Return the arguments of TRL's GRPOConfig that say the same as our preset."""
    return {
        "output_dir": folder,
        "max_steps": num_steps,
        "use_cpu": True,
        "bf16": config.learners.dtype == "bfloat16",
        "per_device_train_batch_size": config.group_size,
        "gradient_accumulation_steps": config.groups_per_step,
        "num_generations": config.group_size,
        "max_completion_length": config.sampling.max_tokens,
        "temperature": config.sampling.temperature,
        "top_p": config.sampling.top_p,
        "top_k": 0,
        "generation_kwargs": {"stop_strings": [config.template.stop]},
        "beta": config.algorithm.kl_coefficient,
        "epsilon": config.algorithm.clip_epsilon,
        "num_iterations": 1,
        "loss_type": "grpo",
        "scale_rewards": "group",
        "learning_rate": config.optimizer.lr,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": config.optimizer.warmup_steps,
        "adam_beta1": config.optimizer.betas[0],
        "adam_beta2": config.optimizer.betas[1],
        "weight_decay": config.optimizer.weight_decay,
        "max_grad_norm": config.optimizer.max_grad_norm,
        "gradient_checkpointing": config.learners.activation_checkpointing,
        "shuffle_dataset": False,
        "dataloader_pin_memory": False,
        "seed": config.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def run_trl(config: Config, num_steps: int) -> tuple[dict[str, Any], list[StepTime]]:
    """Train `num_steps` steps after the warm-up; return TRL's settings and every step's times, warm-up first."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    steps: list[StepTime] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            steps.append(StepTime(seconds=-time.perf_counter()))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps[-1].seconds += time.perf_counter()

    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    model: Any = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    generate = model.generate

    def timed_generate(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        # Stop strings need the tokenizer, which TRL does not hand on.
        result = generate(*args, tokenizer=tokenizer, **kwargs)
        steps[-1].generate_s += time.perf_counter() - start
        return result

    model.generate = timed_generate
    total = WARM_UP_STEPS + num_steps
    with tempfile.TemporaryDirectory(prefix="lwz-bench-") as folder:
        settings = trl_settings(config, total, folder)
        trainer = GRPOTrainer(
            model=model,
            args=GRPOConfig(**settings),
            reward_funcs=make_rewards(config, steps),
            train_dataset=make_dataset(config, tokenizer, total * config.groups_per_step),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    settings.pop("output_dir")
    threads = {"torch_threads": torch.get_num_threads(), "cpus": os.cpu_count()}
    return settings | threads | {"master_dtype": "float32", "generation": "transformers"}, steps


def summarise(config: Config, settings: dict[str, Any], steps: list[StepTime]) -> dict[str, Any]:
    """Return the result as JSON; the warm-up steps are listed and left out of the medians."""
    measured = steps[WARM_UP_STEPS:]
    rates = [s.num_tokens / s.seconds for s in measured]
    return {
        "system": f"trl {importlib.metadata.version('trl')}",
        "model": Path(config.model.path).name,
        "samples_per_step": config.samples_per_step,
        "settings": settings,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")},
        "steps": [asdict(s) for s in steps],
        "warm_up_steps": WARM_UP_STEPS,
        "median_step_s": statistics.median(s.seconds for s in measured),
        "median_generate_s": statistics.median(s.generate_s for s in measured),
        "median_tokens": statistics.median(s.num_tokens for s in measured),
        "median_tokens_per_s": statistics.median(rates),
    }


def main() -> None:
    """Run the bench and print its settings and medians."""
    parser = argparse.ArgumentParser(description="Time TRL's GRPOTrainer with a preset's settings.")
    parser.add_argument("--steps", type=int, default=3, help="measured steps after one warm-up step (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("bench/trl.json"))
    parser.add_argument("words", nargs="*", help="config words, such as run=demo_cpu (the default)")
    options = parser.parse_args()
    if options.steps < 3:
        parser.error(f"--steps {options.steps}: a median needs at least 3")
    config = compose(options.words or ["run=demo_cpu"])
    settings, steps = run_trl(config, options.steps)
    result = summarise(config, settings, steps)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "steps"}, indent=2))
    print(f"bench: wrote {options.out}")


if __name__ == "__main__":
    main()
