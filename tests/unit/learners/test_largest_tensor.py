"""A whole forward and backward of the policy makes no [tokens, vocabulary] and no [tokens, tokens] tensor."""

import numpy as np
import pytest
import torch

from learners.policy_model import PolicyModel
from learners.policy_objective import PolicyObjective
from lwz_ray.packing import Microbatch, build_microbatch
from lwz_ray.records import TrainSample
from tests.algorithms import algorithm
from tests.largest_tensor import LargestTensor
from tests.padded_reference import annotated
from tests.small_model import write_small_model

PROMPT, COMPLETION = 40, 3000
TOKENS, VOCABULARY, CHUNK = PROMPT + COMPLETION, 4096, 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PolicyModel:
    folder = write_small_model(tmp_path_factory.mktemp("small"), vocab_size=VOCABULARY)
    return PolicyModel.load(str(folder), CHUNK, False, True)


def one_long_row() -> Microbatch:
    rng = np.random.default_rng(4)
    mask = np.arange(TOKENS) >= PROMPT
    logprobs, advantages = (np.where(mask, x, 0.0).astype(np.float32) for x in (-8.3, 1.0))
    ids = rng.integers(0, VOCABULARY, TOKENS).astype(np.int32)
    return build_microbatch(annotated([TrainSample(ids, PROMPT, mask, logprobs, advantages, 1.0 / COMPLETION)]), [[0]])


def test_no_tensor_is_larger_than_a_chunk_of_logits(model: PolicyModel) -> None:
    # Everything that asks for gradients of both: the entropy's path needs more buffers than the logprobs'.
    wanted = algorithm(entropy_coefficient=0.01, kl_coefficient=0.1, kl_in="loss")
    with LargestTensor() as watch:
        loss, _ = PolicyObjective(wanted, 0.8).loss(model, one_long_row(), torch.device("cpu"))
        loss.backward()
    chunk = CHUNK * VOCABULARY
    assert (watch.elements, watch.shape) == (chunk, (CHUNK, VOCABULARY))
    # The layers' largest: the gated MLP's [tokens, intermediate]; it is below a chunk, and attention has no matrix.
    assert TOKENS * 64 < chunk < min(TOKENS * TOKENS, TOKENS * VOCABULARY)


def test_the_watch_sees_plain_logits(model: PolicyModel) -> None:
    row = one_long_row()
    with LargestTensor() as watch:
        hidden = model.lm.get_decoder()(
            input_ids=torch.from_numpy(row.token_ids)[None],
            position_ids=torch.from_numpy(row.position_ids)[None],
            segments=row.segments,
        ).last_hidden_state[0, torch.from_numpy(row.rows)]
        logits = model.lm.lm_head(hidden)
        torch.log_softmax(logits, dim=1).gather(1, torch.from_numpy(row.targets)[:, None]).sum().backward()
    assert watch.elements == COMPLETION * VOCABULARY
