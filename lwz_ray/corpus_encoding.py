"""Documents as tokens, and the pieces that they are cut into."""

import hashlib
from typing import Any

import numpy as np

from lwz_ray.errors import UserError
from lwz_ray.records import TrainSample


class DocumentEncoder:
    """Tokenizes a document: the tokenizer's own beginning, the text, and an EOS token that is trained as its end."""

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: a Hugging Face tokenizer. Raises UserError where it has no EOS token."""
        if tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer of model.path has no EOS token, so that no document could end; set eos_token in its "
                "tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        self._head = [tokenizer.bos_token_id] if begins else []

    def encode(self, text: str) -> np.ndarray:
        """Return int32 [num_tokens], at least 2; a special token's name in the text is text."""
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        return np.asarray([*self._head, *ids, self._tokenizer.eos_token_id], dtype=np.int32)


def fingerprint(tokenizer: Any) -> str:
    """Return a word that changes with anything that changes token ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def piece(token_ids: np.ndarray, source: int, token_weight: float) -> TrainSample:
    """Return a piece of a document: its first token is context, every other one is trained."""
    num = token_ids.shape[0]
    nothing = np.zeros(num, np.float32)
    mask = np.ones(num, bool)
    mask[0] = False
    return TrainSample(token_ids, 1, mask, nothing, nothing, token_weight, source=source)


def cut(token_ids: np.ndarray, longest: int) -> list[np.ndarray]:
    """Return the pieces of a document, each of at most `longest` tokens (at least 2).

    A piece begins with the last token of the one before it, so that every token but the document's first is trained
    exactly once.
    """
    last = token_ids.shape[0] - 1
    return [token_ids[start : start + longest] for start in range(0, last, longest - 1)]
