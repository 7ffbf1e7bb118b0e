"""A real BERT classifier, small enough to make in a millisecond: the same numbers on every machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from bert import BertForSequenceClassification
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["a", "good", "bad", "film", "dull", "it", "was", "not", "very", "fun", "##ny", "##s", "!", ".", ","]
VOCABULARY = {word: number for number, word in enumerate(SPECIAL + WORDS)}
CONFIG: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 48,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 0,
    "id2label": {"0": "negative", "1": "positive", "2": "neutral"},
    "label2id": {"negative": 0, "positive": 1, "neutral": 2},
}


def weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """Weights from a formula rather than a generator: element i of all of them is sin(i²) / 2."""
    state = BertForSequenceClassification(config).state_dict()
    begin = 0
    for name, value in state.items():
        i = torch.arange(begin, begin + value.numel(), dtype=torch.float64)
        state[name] = (torch.sin(i * i) / 2).float().view(value.shape)
        begin += value.numel()
    return state


def tokenizer() -> Tokenizer:
    made = Tokenizer(WordPiece(VOCABULARY, unk_token="[UNK]"))
    made.normalizer = BertNormalizer()
    made.pre_tokenizer = BertPreTokenizer()
    special = [(token, VOCABULARY[token]) for token in ("[CLS]", "[SEP]")]
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return made


def write_tiny_bert(folder: Path, **changes: object) -> Path:
    """A Hugging Face directory in `folder`; `changes` go over CONFIG, and None takes an entry out."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tokenizer().save(str(folder / "tokenizer.json"))
    save_file(
        weights(CONFIG | {"id2label": config.get("id2label", CONFIG["id2label"])}),
        folder / "model.safetensors",
    )
    return folder
