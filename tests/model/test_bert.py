"""Our BERT computes what transformers' BERT computes, and takes Hugging Face's weights as they are."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from bert import BertForSequenceClassification, covers, with_weights
from packed import PackedBert
from tiny_bert import CONFIG, weights

IDS = [[2, 4, 5, 7, 3], [2, 9, 10, 11, 12, 5, 7, 14, 3], [2, 8, 3], [2, 6, 1, 13, 15, 16, 18, 17, 3]]
# Made once with transformers 5.23.0 and torch 2.13.0, in float64 and so right in all digits shown:
# its BertForSequenceClassification of BertConfig(**CONFIG) with the same weights, each of IDS by itself.
EXPECTED = [
    [-0.2498237, 2.0604086, 0.3329597],
    [-0.1684242, 1.9452351, 0.4147527],
    [-0.388182, 1.9920132, 0.3181604],
    [-0.2817351, 2.1009372, 0.3693046],
]


@pytest.fixture(scope="module")
def model() -> BertForSequenceClassification:
    return with_weights(CONFIG, weights(CONFIG))


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, IDS))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in IDS])
    return ids, torch.tensor([[i < len(row) for i in range(length)] for row in IDS])


@torch.inference_mode()
def test_the_logits_of_a_padded_batch_are_those_of_transformers(model: BertForSequenceClassification) -> None:
    torch.testing.assert_close(model(*padded()), torch.tensor(EXPECTED), atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_texts_in_one_row_get_the_same_logits(
    model: BertForSequenceClassification, order: tuple[int, ...]
) -> None:
    found = PackedBert(model, pad=0)([IDS[i] for i in order])
    torch.testing.assert_close(found, torch.tensor([EXPECTED[i] for i in order]), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_mean_of_a_text_in_one_row_is_that_of_its_own_tokens() -> None:
    state = {name: value for name, value in weights(CONFIG).items() if "pooler" not in name}
    model = with_weights(CONFIG | {"pooling": "mean"}, state)
    torch.testing.assert_close(PackedBert(model, pad=0)(IDS), model(*padded()), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_attention_written_for_training_computes_the_same(model: BertForSequenceClassification) -> None:
    training = with_weights(CONFIG | {"hidden_dropout_prob": 0.0}, weights(CONFIG)).train()
    torch.testing.assert_close(training(*padded()), model(*padded()), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_names_from_old_tensorflow_checkpoints_are_understood(model: BertForSequenceClassification) -> None:
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in weights(CONFIG).items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(48)[None]
    assert torch.equal(with_weights(CONFIG, old)(*padded()), model(*padded()))


def test_weights_of_another_size_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"classifier\.weight"):
        with_weights(CONFIG | {"id2label": {"0": "no", "1": "yes"}}, weights(CONFIG))


def test_a_missing_weight_is_refused_by_name() -> None:
    state = weights(CONFIG)
    del state["bert.pooler.dense.bias"]
    with pytest.raises(ValueError, match=r"bert\.pooler\.dense\.bias"):
        with_weights(CONFIG, state)


@pytest.mark.parametrize(
    "variant",
    [
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"pruned_heads": {"0": [1]}},
        {"architectures": ["RobertaForSequenceClassification"]},
    ],
)
def test_variants_it_does_not_compute_are_left_to_transformers(variant: dict[str, object]) -> None:
    assert covers(CONFIG)
    assert not covers(CONFIG | variant)
