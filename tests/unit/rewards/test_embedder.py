"""The embedding model: its folder is checked first, its embeddings are those of mean pooling."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwz_ray.config import FormatRewardConfig
from lwz_ray.errors import UserError
from rewards.embedder import SentenceEmbedder, check_embedder

FILES = ("config.json", "model.safetensors", "tokenizer.json")


def config(path: Path | None, semantic: str = "embedding") -> FormatRewardConfig:
    values: dict[str, Any] = {
        "partial_credit": False,
        "repetition_ngram": 4,
        "repetition_free": 0.1,
        "refrain_free": 0.35,
        "semantic": semantic,
        "minhash_threshold": 0.25,
        "embedding_path": None if path is None else str(path),
        "embedding_threshold": 0.85,
    }
    return FormatRewardConfig(**values)


@pytest.fixture(scope="module")
def embedder(embedder_dir: Path) -> SentenceEmbedder:
    return SentenceEmbedder(embedder_dir, threads=1)


def vectors(embedder: SentenceEmbedder, sentences: list[str]) -> np.ndarray:
    """Return the normalised mean-pooled embeddings, [n, width]."""
    sums, counts = embedder.embed(sentences)
    means = sums / counts[:, None]
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def test_the_folder_that_setup_writes_is_accepted(embedder_dir: Path) -> None:
    assert check_embedder(config(embedder_dir)) == embedder_dir


@pytest.mark.parametrize("semantic", ["none", "minhash"])
def test_nothing_is_looked_at_where_no_embedding_is_asked_for(semantic: str, tmp_path: Path) -> None:
    assert check_embedder(config(tmp_path / "nowhere", semantic)) is None


def test_a_null_path_is_refused() -> None:
    with pytest.raises(UserError, match=r"embedding_path=null: rewards\.format\.semantic=embedding needs the folder"):
        check_embedder(config(None))


@pytest.mark.parametrize("missing", FILES)
def test_a_folder_that_lacks_a_file_is_refused(missing: str, tmp_path: Path) -> None:
    for name in FILES:
        if name != missing:
            (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"embedding_path={tmp_path}: no {missing} there; `make setup` writes"):
        check_embedder(config(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"architectures": ["LlamaForCausalLM"]}), r"\['LlamaForCausalLM'\] hold no plain encoder"),
        ("{}", r"architectures \[\] hold no plain encoder"),
        ("not json", "config.json there is not JSON"),
    ],
)
def test_another_kind_of_model_is_refused(text: str, message: str, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        check_embedder(config(tmp_path))


def test_weights_that_lack_a_layer_are_refused(embedder_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(embedder_dir / name, tmp_path / name)
    weights = load_file(embedder_dir / "model.safetensors")
    name = "encoder.layer.3.attention.self.query.weight"
    save_file({k: v for k, v in weights.items() if k != name}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"the weights lack .*{name}"):
        SentenceEmbedder(tmp_path, threads=1)


def test_like_sentences_are_near_and_others_far(embedder: SentenceEmbedder) -> None:
    found = vectors(
        embedder,
        ["The crew plays football on deck.", "On the deck the sailors kick a ball.", "Compost needs air and water."],
    )
    cosines = found @ found.T
    # In float32; two decimals stand whatever the platform.
    assert cosines[0, 1] == pytest.approx(0.65, abs=0.01)
    assert cosines[0, 2] == pytest.approx(0.04, abs=0.01)


def test_neither_batch_nor_order_changes_an_embedding(embedder: SentenceEmbedder) -> None:
    texts = [f"Sentence {i} speaks of {'very ' * (i % 7)}old boats." for i in range(40)]
    together = vectors(embedder, texts)
    alone = np.concatenate([vectors(embedder, [text]) for text in texts[::13]])
    np.testing.assert_allclose(together[::13], alone, atol=1e-5)


def test_equal_sentences_are_read_once_and_given_twice(embedder: SentenceEmbedder) -> None:
    sums, counts = embedder.embed(["One boat.", "Two boats lie here.", "One boat."])
    assert counts.tolist() == [5.0, 7.0, 5.0]  # [CLS] one boat . [SEP]; two boats lie here . and the two marks
    np.testing.assert_array_equal(sums[0], sums[2])
    assert sums.shape == (3, 384)


def test_a_long_sentence_is_cut_at_the_models_length(embedder: SentenceEmbedder) -> None:
    assert embedder.embed(["boat " * 1000])[1].tolist() == [256.0]


def test_no_sentences_give_no_rows(embedder: SentenceEmbedder) -> None:
    sums, counts = embedder.embed([])
    assert (sums.shape, counts.shape) == ((0, 384), (0,))
