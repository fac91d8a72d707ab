"""What the scoring bench scores, with what model, and the loop that it is compared with."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEAD_STD = 0.02
REQUEST = "Write about the following, at the length that suits it: the river and the village."


def make_scorer(model: Path, folder: Path, seed: int = 1) -> Path:
    """Save a causal model as a sequence classifier with one output and a random, seeded head; return the folder."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    scorer: Any = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.bfloat16)
    torch.nn.init.normal_(scorer.score.weight, std=HEAD_STD)
    scorer.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def mixed_texts(tokenizer: Any, num: int, shortest: int, longest: int, spread: str, seed: int = 1) -> list[str]:
    """Return texts of random words whose lengths lie between `shortest` and `longest` tokens, in random order.

    spread: "uniform" in tokens, or "log" uniform in their logarithm, which gives many short texts and few long ones.
    """
    rng = random.Random(seed)
    pool = [w for w in VOCABULARY.split() if len(tokenizer(" " + w, add_special_tokens=False).input_ids) == 1]
    texts = []
    for _ in range(num):
        share = rng.random()
        length = shortest + (longest - shortest) * share
        if spread == "log":
            length = shortest * (longest / shortest) ** share
        texts.append(" ".join(rng.choice(pool) for _ in range(round(length))))
    return texts


VOCABULARY = """the river rose in night and took old bridge with it nobody slept water stone house light road field
voice winter morning letter garden window mother summer evening silence story market child island
harbor train city memory music paper coffee table shadow mountain village history promise question
answer small long quiet green early"""


class PlainLoop:
    """What a user would write with transformers alone: texts in the order in which they come, padded to the longest.

    The tokenizer's chat template, the model's own dtype, no gradient.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._torch = torch
        torch.set_num_threads(threads)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self._model.config.pad_token_id = self._tokenizer.pad_token_id

    @property
    def dtype(self) -> str:
        return str(self._model.dtype).removeprefix("torch.")

    def score(self, prompts: Sequence[str], texts: Sequence[str], batch_size: int) -> list[float]:
        """Return one raw score a pair."""
        torch, values = self._torch, []
        for start in range(0, len(texts), batch_size):
            pairs = zip(prompts[start : start + batch_size], texts[start : start + batch_size], strict=True)
            rendered = [
                self._tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}], tokenize=False
                )
                for prompt, text in pairs
            ]
            batch = self._tokenizer(rendered, padding=True, return_tensors="pt", add_special_tokens=False)
            with torch.no_grad():
                values += self._model(**batch).logits[:, 0].float().tolist()
        return values
