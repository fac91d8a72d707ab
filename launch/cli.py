"""The command line: compose, check, then plan or run one stage."""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from launch.compose import choices, compose, scaled_keys, to_yaml
from launch.plan import plan_text
from launch.preflight import preflight
from launch.redaction import redact
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from lwz_ray.failures import BudgetExceededError

HELP = """\
usage: python -m lwz_ray.main [group=choice …] [key=value …]

Train a language model to write long texts with reinforcement learning on Ray.

stages (stage=…)
  rl        train with GRPO (default)
  train_rm  train a reward model on preference pairs
  pretrain  go on training on documents, from sources in given shares (corpus.sources.NAME.path=…)
  sft       train on the answers of chat pairs (sft.path=…)
  curate    make data (recipe=degradations: preference pairs from good texts; recipe=chat_logs: requests with word
            ranges from chat logs; recipe=distill_plans: plans of a run as documents)
  generate  texts to a file of prompts (data.path=…), or one that streams to the terminal (generate.text="…")
  evaluate  texts to a benchmark's requests, measured and judged (benchmark=…, benchmark.path=…)
  pipeline  stages in a row from one command (pipeline=zero: the paper's), resumable, their results side by side
  scale     give a run that goes on other numbers of replicas (actors.replicas=N, rewards.replicas=N)
  report    write report.html of a run folder again, or put evaluations side by side (report.runs=[…])

presets (run=…; smoke_cpu is the default)
  smoke_cpu  everything real with a 2-layer random model, 3 steps, under two minutes on two cores
  demo_cpu   a 135M model learns to write to length on two cores
  paper_32b  the paper's settings on 8 nodes x 8 GPUs; look at it with dry_run=true
  qwen7b_8gpu, qwen4b_4gpu    a 7B model on one node with 8 GPUs, a 4B model on one with 4
  curate_demo, rm_demo        pairs, and a reward model from them, in minutes on two cores
  curate_rm, rm_degradations  the same with more pairs and a longer training
  curate_logs                 writing requests from a few conversations, sorted by the 135M model
  zero_smoke, zero_small      the paper's pipeline: with a random model in minutes, with the 135M model in an evening
  pretrain_demo, sft_demo     the 135M model reads the package's own corpus; it learns the texts of generate_demo
  generate_demo               texts by the 135M model, at the paper's inference settings
  evaluate_demo               the 135M model on requests like LongBench-Write's (benchmark.path=…: the real ones)

groups and their choices
{groups}

options
  --cfg job         print the resolved config and stop
  --config-dir DIR  search DIR for groups too, such as DIR/run/mine.yaml; may be given several times
  --help            print this

examples
  python -m lwz_ray.main run=demo_cpu run.name=first sampling.temperature=0.9
  python -m lwz_ray.main run=demo_cpu run.name=first run.resume=auto
  python -m lwz_ray.main run=rm_demo preference.path=pairs.jsonl preference.eval_path=null
  python -m lwz_ray.main run=generate_demo generate.text="Write a letter about the first snow." > letter.txt
  python -m lwz_ray.main run=paper_32b dry_run=true
  ray job submit --working-dir . -- python -m lwz_ray.main run=smoke_cpu run.dir=/shared/runs \\
      model.path=/shared/models/tiny-random rewards.writing.path=/shared/models/tiny-classifier

Every key with its value: --cfg job. What each means: conf/ and docs/configuration.md.
"""


def main(argv: Sequence[str]) -> int:
    """Run a command line; return 0, 1 after a failure, 2 after a mistake of the user, 130 after an interruption."""
    config: Config | None = None
    try:
        printed = _printed(argv)
        if printed is not None:
            print(printed, end="")
            return 0
        config = compose(argv)
        preflight(config)
        if config.dry_run:
            print(plan_text(config), end="")
            return 0
        stage = importlib.import_module(f"launch.stages.{config.stage}")
        return stage.run(config, scaled_keys(argv)) if config.stage == "scale" else stage.run(config)
    except UserError as error:
        _say(f"error: {' '.join(str(error).split())}")
        return 2
    except BudgetExceededError as error:
        _say(f"error: {' '.join(str(error).split())}")
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe (such as head) has gone; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        _say(traceback.format_exc().rstrip())
        where = "" if config is None else f"; the run's files are in {Path(config.run.dir) / config.run.name}"
        _say(f"error: {type(error).__name__}: {' '.join(str(error).split())}{where}")
        return 1


def _say(text: str) -> None:
    """Print on stderr, which a cluster keeps in a file: without the secrets of the environment."""
    print(redact(text, os.environ), file=sys.stderr)


def _printed(argv: Sequence[str]) -> str | None:
    """Return what --help or --cfg job prints; None for a run."""
    if "--help" in argv or "-h" in argv:
        groups = "\n".join(f"  {group:<10} {', '.join(names)}" for group, names in choices().items())
        return HELP.format(groups=groups)
    rest = list(argv)
    for index, word in enumerate(argv):
        if word.startswith("--cfg"):
            given = word.partition("=")[2] if "=" in word else "".join(argv[index + 1 : index + 2])
            if given != "job":
                raise UserError(f"--cfg {given!r}: only --cfg job is known; it prints the resolved config")
            del rest[index : index + (1 if "=" in word else 2)]
            return to_yaml(compose(rest))
    return None
