"""Every measure of repetition of a text, as the config asks for them."""

from typing import Literal

from lwz_ray.config import FormatRewardConfig
from rewards.embedder import SentenceEmbedder, check_embedder
from rewards.repetition import (
    RepetitionScores,
    repeated_ngrams,
    repeated_paragraphs,
    repeated_sentences,
    set_aside_refrains,
    share_of_words,
)
from rewards.semantic import repeats_by_cosine, repeats_by_minhash, split_passages


class RepetitionMeter:
    """Measures texts; one meter may be used from several threads (an embedding model lets them take turns).

    The embedding model is loaded here, once; raises UserError where its folder does not hold one.
    """

    def __init__(self, config: FormatRewardConfig, threads: int = 1) -> None:
        folder = check_embedder(config)
        self._config = config
        self._embedder = SentenceEmbedder(folder, threads) if folder else None

    def measure(self, text: str, language: Literal["en", "zh"]) -> RepetitionScores:
        """Return each share of `text` that repeats earlier text; time linear in the text.

        `language` says how passages are compared: by characters, and English with an embedding model by meaning too
        (the packaged one does not read Chinese).
        """
        ngram = self._config.repetition_ngram
        body, refrain = set_aside_refrains(text, self._config.refrain_free)
        return RepetitionScores(
            ngram=repeated_ngrams(body, ngram),
            sentence=repeated_sentences(body, ngram),
            paragraph=repeated_paragraphs(body, ngram),
            semantic=0.0 if self._config.semantic == "none" else self._semantic(body, language),
            refrain=refrain,
        )

    def _semantic(self, text: str, language: Literal["en", "zh"]) -> float:
        """Return the share of words in sentences of passages that resemble an earlier passage."""
        passages = split_passages(text, language)
        if not passages.spans or not passages.num_earlier(len(passages.spans) - 1):
            return 0.0
        repeated = repeats_by_minhash(passages, language, self._config.minhash_threshold).repeated
        if self._embedder is not None and language == "en":
            # Either way counts: a copy with the names exchanged keeps its characters and changes its meaning.
            sums, num_tokens = self._embedder.embed(passages.sentences)
            meant = repeats_by_cosine(passages, sums, num_tokens, self._config.embedding_threshold).repeated
            repeated = [a or b for a, b in zip(repeated, meant, strict=True)]
        return share_of_words(passages.sentences, passages.mark(repeated))
