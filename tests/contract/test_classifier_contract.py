"""One suite over both engines of the reward model: the same raw scores, the same refusals."""

import shutil
import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scoring_parts import make_scorer
from lwz_ray.config import WritingRewardConfig
from lwz_ray.errors import UserError
from rewards.classifier import Classifier, load_classifier

MAX_TOKENS = 96
# Both engines compute in float32 with the same weights and tokens; sums in another order move a score by about 1e-6,
# a token too many or too few moves it by 1e-2 or more.
TOLERANCE = 1e-4
BFLOAT16_SHARE = 0.4
"""Of the scores' standard deviation: about twice the largest error measured."""
PROMPTS = [
    "Write about tea.",
    "Write a letter to your landlord about the broken heating.",
    "写一首关于春天的诗。",
    "Write about tea.",
    "Say nothing.",
]
TEXTS = [
    "Tea is a leaf that became a habit.",
    "Dear Sir, the heating has been cold since Monday, and so have we. Please send somebody before the weekend.",
    "春眠不觉晓，处处闻啼鸟。",
    "Coffee.",
    "",
]


def writing(folder: Path | str, engine: str, **changes: Any) -> WritingRewardConfig:
    plain: dict[str, Any] = {
        "path": str(folder),
        "engine": engine,
        "max_length_tokens": MAX_TOKENS,
        "batch_size": 2,
        "dtype": "float32",
        "kv_cache_mib": 64,
        "memory_utilization": 0.05,
        "window_overlap_tokens": 8,
        "max_windows": 3,
        "aggregation": "mean",
    }
    return WritingRewardConfig(**plain | changes)


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def classifier(request: pytest.FixtureRequest, tiny_classifier_dir: Path, device: str) -> Iterator[Classifier]:
    """Serve the tiny classifier with each engine in turn."""
    served = load_classifier(writing(tiny_classifier_dir, request.param), threads=1, num_gpus=int(device == "cuda"))
    yield served
    served.close()


class Reference:
    """The scores by hand: one pair at a time, the score head on the last token's hidden state."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.torch = torch
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids if text else []

    def parts(self, prompt: str, text: str) -> tuple[list[int], list[int], list[int]]:
        """Return what comes before the answer, the answer, and what follows, tokenized apart."""
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "ANSWER"}]
        before, after = self.tokenizer.apply_chat_template(turns, tokenize=False).split("ANSWER")
        return self.tokens(before), self.tokens(text), self.tokens(after)

    def score(self, prompt: str, text: str) -> float:
        head, body, tail = self.parts(prompt, text)
        return self.score_ids([*head, *body, *tail])

    def score_ids(self, token_ids: list[int]) -> float:
        with self.torch.inference_mode():
            hidden = self.model.model(self.torch.tensor([token_ids])).last_hidden_state
            return float(hidden[0, -1] @ self.model.score.weight[0])


@pytest.fixture(scope="module")
def reference(tiny_classifier_dir: Path) -> Reference:
    return Reference(tiny_classifier_dir)


def test_scores_are_the_raw_outputs_in_order(classifier: Classifier, reference: Reference) -> None:
    got = classifier.score(PROMPTS, TEXTS)
    expected = [reference.score(p, t) for p, t in zip(PROMPTS, TEXTS, strict=True)]
    assert list(got.values) == pytest.approx(expected, abs=TOLERANCE)
    assert (got.coverage, got.num_windowed) == ((1.0,) * 5, 0)
    # The tolerance tells these pairs apart, or the line above would say little.
    ordered = sorted(expected)
    assert min(b - a for a, b in pairwise(ordered)) > 10 * TOLERANCE


def test_a_pair_scores_the_same_alone_and_in_company(classifier: Classifier) -> None:
    alone = classifier.score(PROMPTS[:1], TEXTS[:1])
    assert alone.values[0] == pytest.approx(classifier.score(PROMPTS, TEXTS).values[0], abs=TOLERANCE)


def test_a_long_answer_is_scored_in_windows(classifier: Classifier, reference: Reference) -> None:
    """Two windows that overlap where it takes no more, three spread evenly where it would take more."""
    head, _, tail = reference.parts(PROMPTS[0], "")
    room = MAX_TOKENS - len(head) - len(tail)
    for num_words, starts, covered in ((60, 2, "all"), (400, 3, "some")):
        text = " ".join(f"w{i}" for i in range(num_words))
        body = reference.tokens(text)[: 2 * room - 10] if covered == "all" else reference.tokens(text)
        text = reference.tokenizer.decode(body)
        assert reference.tokens(text) == body, "the cut text has the tokens it was cut to"
        got = classifier.score([PROMPTS[0]] * 2, [text, "Short."])
        last = len(body) - room
        begins = [round(i * last / (starts - 1)) for i in range(starts)]
        scores = [reference.score_ids([*head, *body[b : b + room], *tail]) for b in begins]
        assert got.values[0] == pytest.approx(sum(scores) / starts, abs=TOLERANCE)
        assert got.values[1] == pytest.approx(reference.score(PROMPTS[0], "Short."), abs=TOLERANCE)
        expected = 1.0 if covered == "all" else starts * room / len(body)
        assert got.coverage == (pytest.approx(expected), 1.0)
        assert got.num_windowed == 1


def test_no_pairs_no_scores(classifier: Classifier) -> None:
    assert classifier.score([], []).values == ()


def test_unequal_numbers_are_refused(classifier: Classifier) -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 texts"):
        classifier.score(["a", "b"], ["c"])


def test_a_request_without_room_for_an_answer_is_refused(classifier: Classifier) -> None:
    with pytest.raises(UserError, match=rf"leaves no room for an answer in the reward model's context of {MAX_TOKENS}"):
        classifier.score(["tea " * 200], ["An answer."])


@pytest.mark.vllm
@pytest.mark.slow
def test_engines_agree_on_a_real_model_in_bfloat16(scorer_135m: Path, device: str) -> None:
    """Compare both engines' bfloat16 with float32, on short, long (windowed) and empty texts.

    In float32 they differ by 3e-6 where the scores have a standard deviation of 0.19 (the tests above hold that, with
    the small model). bfloat16 keeps 8 bits, and each engine rounds at other places of 30 layers: neither is nearer to
    the truth, so each is held to it. A random head reads the rounding of all directions alike and its scores spread
    little, which makes this the hard case: errors stay well below the spread, so texts keep their order unless they are
    nearly equal.
    """
    sentence = "The river rose in the night and took the old bridge with it, and nobody in the village slept."
    words = sentence.split()
    texts = ["", "No.", *(" ".join(words[i % 7 :] + words * n) for i, n in enumerate((0, 1, 2, 4, 8, 16, 60)))]
    prompts = [f"Write {n} words about the flood." for n in range(len(texts))]
    got = []
    for engine, dtype in (("transformers", "float32"), ("transformers", "bfloat16"), ("vllm", "bfloat16")):
        config = writing(scorer_135m, engine, dtype=dtype, max_length_tokens=256, batch_size=4)
        served = load_classifier(config, threads=2, num_gpus=int(device == "cuda"))
        try:
            got.append(served.score(prompts, texts))
        finally:
            served.close()
    truth, *rounded = got
    spread = statistics.pstdev(truth.values)
    errors = [max(abs(a - b) for a, b in zip(r.values, truth.values, strict=True)) for r in rounded]
    print(f"largest bfloat16 error: transformers {errors[0]:.2g}, vllm {errors[1]:.2g}; scores spread {spread:.2g}")
    assert max(errors) < BFLOAT16_SHARE * spread
    assert [g.num_windowed for g in got] == [2, 2, 2]
    assert truth.coverage[:-1] == (1.0,) * 8
    assert truth.coverage[-1] < 1 and all(g.coverage == truth.coverage for g in got)


@pytest.fixture(scope="module")
def scorer_135m(smol_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return SmolLM2-135M with a random score head: real activations, real rounding."""
    return make_scorer(smol_model_dir, tmp_path_factory.mktemp("scorer"))


ENGINES = pytest.mark.parametrize("engine", ["transformers", "vllm"])


@pytest.fixture(scope="module")
def other_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a classifier with two labels and a causal model, as their library writes them."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("models")
    for name, kind, num_labels in (
        ("two", LlamaForSequenceClassification, 2),
        ("five", LlamaForSequenceClassification, 5),
        ("causal", LlamaForCausalLM, 1),
    ):
        config: Any = LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
        config.num_labels = num_labels
        kind(config).save_pretrained(folder / name)
    return folder


@ENGINES
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("two", "the model has 2 outputs, a reward model has 1"),
        ("five", "the model has 5 outputs, a reward model has 1"),
        ("causal", r"architectures \['LlamaForCausalLM'\] hold no sequence classifier"),
        ("missing", "no config.json there"),
    ],
)
def test_other_models_are_refused_before_they_load(engine: str, name: str, reason: str, other_models: Path) -> None:
    with pytest.raises(UserError, match=reason):
        load_classifier(writing(other_models / name, engine), threads=1, num_gpus=0)


@ENGINES
def test_a_hub_name_that_cannot_be_had_is_refused(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hub:nobody/nothing: neither in the local cache nor to be had from the hub"):
        load_classifier(writing("nobody/nothing", engine), threads=1, num_gpus=0)


@ENGINES
def test_more_tokens_than_positions_are_refused(engine: str, tiny_classifier_dir: Path) -> None:
    with pytest.raises(UserError, match="max_length_tokens=9000 exceeds the 8192 positions"):
        load_classifier(writing(tiny_classifier_dir, engine, max_length_tokens=9000), threads=1, num_gpus=0)


def test_weights_without_the_score_head_are_refused(tiny_classifier_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_classifier_dir, tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the weights lack score\.weight"):
        load_classifier(writing(folder, "transformers"), threads=1, num_gpus=0)


def test_a_tokenizer_without_chat_template_gets_request_blank_line_answer(
    tiny_classifier_dir: Path, reference: Reference, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_classifier_dir, tmp_path / "plain", ignore=shutil.ignore_patterns("*.jinja"))
    got = load_classifier(writing(folder, "transformers"), threads=1, num_gpus=0).score(["A?"], ["B."])
    expected = reference.score_ids(reference.tokens("A?\n\n") + reference.tokens("B."))
    assert got.values[0] == pytest.approx(expected, abs=TOLERANCE)
