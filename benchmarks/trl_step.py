"""Time a training step of TRL's GRPOTrainer with the settings of the bench, on this machine's CPU.

    python -m benchmarks.trl_step --out bench/trl.json

Model, prompts and their order, group size, token limit, sampling, rewards, optimizer and stop string are those of our
run. Master weights are float32 and compute is bfloat16 (autocast), as in our learner. TRL generates with transformers.
"""

import argparse
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import StepTime, SystemTimes
from benchmarks.workload import WARM_UP_STEPS, bench_config
from lwz_ray.config import Config
from lwz_ray.data import PromptOrder, load_prompts
from lwz_ray.errors import UserError
from lwz_ray.records import Prompt
from lwz_ray.templates import parse_completion, render
from lwz_ray.text import count_words
from rewards.format import format_reward
from rewards.length import l_max_for, length_reward
from rewards.repetition_meter import RepetitionMeter

PACKAGES = ("trl", "torch", "transformers", "accelerate")


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


def count_completed(text: str, ids: list[int], stop: str, end_id: int) -> int:
    """Return the tokens that were sampled for a completion.

    TRL cuts completions after the first end token. One that ended with the stop string has none: transformers pads it
    to the longest with end tokens, and the first of them stays.
    """
    return len(ids) - (stop in text and ids[-1] == end_id)


def make_rewards(config: Config, end_id: int, steps: list[StepTime]) -> list[Any]:
    """Return the length and format rewards in TRL's form; the first also counts tokens into the running step."""
    arm, prefill, stop = config.template.arm, config.template.prefill, config.template.stop

    def length(
        completions: list[str], completion_ids: list[list[int]], low: list[int], high: list[int], **_: Any
    ) -> list[float]:
        pairs = zip(completions, completion_ids, strict=True)
        steps[-1].num_tokens += sum(count_completed(text, ids, stop, end_id) for text, ids in pairs)
        words = [count_words(parse_completion(text, arm, prefill).answer or "") for text in completions]
        factor = config.rewards.length.l_max_factor
        return [length_reward(n, lo, hi, l_max_for(hi, factor)) for n, lo, hi in zip(words, low, high, strict=True)]

    meter = RepetitionMeter(config.rewards.format)

    def format_(completions: list[str], **_: Any) -> list[float]:
        parsed = [parse_completion(text, arm, prefill) for text in completions]
        # The bench's requests are English.
        shares = [meter.measure(p.answer or "", "en").combined for p in parsed]
        return [format_reward(p, share, config.rewards.format) for p, share in zip(parsed, shares, strict=True)]

    return [length, format_]


def trl_settings(config: Config, folder: str) -> dict[str, Any]:
    """Return the arguments of TRL's GRPOConfig that say the same as our preset."""
    return {
        "output_dir": folder,
        "max_steps": config.steps,
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
        "epsilon": config.algorithm.clip_low,
        "epsilon_high": config.algorithm.clip_high,
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


def run_trl(config: Config) -> SystemTimes:
    """Train `config.steps` steps and return their times, the warm-up's too, with TRL's settings."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    steps: list[StepTime] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            steps.append(StepTime(seconds=-time.perf_counter()))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps[-1].seconds += time.perf_counter()
            steps[-1].train_s = steps[-1].seconds - steps[-1].generate_s

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
    dtypes = watch_dtypes(model, lambda: "training" if torch.is_grad_enabled() else "generation")
    with tempfile.TemporaryDirectory(prefix="lwz-bench-") as folder:
        settings = trl_settings(config, folder)
        trainer = GRPOTrainer(
            model=model,
            args=GRPOConfig(**settings),
            reward_funcs=make_rewards(config, tokenizer.pad_token_id, steps),
            train_dataset=make_dataset(config, tokenizer, config.steps * config.groups_per_step),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    settings.pop("output_dir")
    facts = {"model": config.model.path, "torch_threads": torch.get_num_threads(), "cpus": os.cpu_count()}
    return SystemTimes(
        f"TRL {importlib.metadata.version('trl')}", steps, WARM_UP_STEPS, config.steps,
        settings | facts | described(model, dtypes),
    )  # fmt: skip


def watch_dtypes(model: Any, phase: Callable[[], str]) -> dict[str, str]:
    """Return a dict that is filled with the dtype in which the model's first linear layer computes, by phase."""
    from torch.nn import Linear

    found: dict[str, str] = {}

    def note(_: Any, __: Any, output: Any) -> None:
        found[phase()] = str(output.dtype).removeprefix("torch.")

    next(m for m in model.modules() if isinstance(m, Linear)).register_forward_hook(note)
    return found


def described(model: Any, dtypes: dict[str, str]) -> dict[str, Any]:
    """Return the precision as it was found, and the versions."""
    master = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    return {
        "master weights": ", ".join(master),
        "compute": f"{dtypes['training']} in training",
        "generation": f"transformers generate, {dtypes['generation']}, padded to the longest of the batch",
        **{f"version of {name}": importlib.metadata.version(name) for name in PACKAGES},
    }


def main() -> None:
    """Time TRL and write its steps."""
    parser = argparse.ArgumentParser(description="Time TRL's GRPOTrainer with our settings.")
    parser.add_argument("--out", type=Path, default=Path("bench/trl.json"))
    parser.add_argument("words", nargs="*", help="config words, such as steps=6; also model=… and max_tokens=…")
    options = parser.parse_args()
    try:
        config = bench_config(options.words)
    except UserError as error:
        raise SystemExit(f"bench: {error}") from error
    times = run_trl(config)
    times.write(options.out)
    print(f"bench: {times.name}: median {times.median_s:.2f} s a step, {times.median_tokens:,.0f} tokens")
    print(f"bench: wrote {options.out}")


if __name__ == "__main__":
    main()
