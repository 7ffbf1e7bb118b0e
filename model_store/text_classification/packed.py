"""BERT over texts of different lengths, without padding.

Linear layers are four fifths of the work, and treat every token by itself: they see the tokens of all
texts in one row. Attention is between the tokens of one text: it is computed for texts of equal length
together.
Source: Zhai et al., "ByteTransformer: A High-Performance Transformer Boosted for Variable-Length Inputs",
IPDPS 2023.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from bert import BertForSequenceClassification, Embeddings, Layer, SelfAttention


class PackedBert(nn.Module):
    """Token ids, a list for each text, none of them empty → logits (texts, labels).

    Fastest where texts of equal length are neighbours. What `inner` computes of the same texts, padded
    with `pad`, which stands for a text without tokens.
    """

    def __init__(self, inner: BertForSequenceClassification, pad: int) -> None:
        super().__init__()
        self.inner = inner
        self.pad = pad

    def forward(self, texts: list[list[int]]) -> Tensor:
        bert = self.inner.bert
        groups = [(length, len(list(those))) for length, those in groupby(map(len, texts))]
        states = embedded(bert.embeddings, texts)
        for layer in bert.encoder["layer"].children():
            states = through(layer, states, groups)
        if bert.pooler is None:
            pooled = torch.cat([each.mean(1) for each in by_text(states, groups)])
        else:
            pooled = torch.tanh(
                bert.pooler["dense"](torch.cat([each[:, 0] for each in by_text(states, groups)]))
            )
        logits: Tensor = self.inner.classifier(pooled)
        return logits


def embedded(embeddings: Embeddings, texts: list[list[int]]) -> Tensor:
    """(tokens, hidden)"""
    device = embeddings.word_embeddings.weight.device
    ids = torch.tensor([token for text in texts for token in text], device=device)
    positions = torch.tensor([place for text in texts for place in range(len(text))], device=device)
    segment = embeddings.token_type_embeddings.weight[0]
    words, places = embeddings.word_embeddings(ids), embeddings.position_embeddings(positions)
    normalised: Tensor = embeddings.LayerNorm(words + places + segment)
    return normalised


def through(layer: Layer, states: Tensor, groups: list[tuple[int, int]]) -> Tensor:
    """(tokens, hidden) → (tokens, hidden)"""
    states = layer.attention["output"](attended(layer.attention["self"], states, groups), states)
    output: Tensor = layer.output(functional.gelu(layer.intermediate["dense"](states)), states)
    return output


def attended(attention: SelfAttention, states: Tensor, groups: list[tuple[int, int]]) -> Tensor:
    """(tokens, hidden) → (tokens, hidden)"""
    projected = (attention.query(states), attention.key(states), attention.value(states))
    contexts = []
    for query, key, value in zip(*(by_text(each, groups) for each in projected), strict=True):
        split = (each.unflatten(2, (attention.heads, -1)).transpose(1, 2) for each in (query, key, value))
        context = functional.scaled_dot_product_attention(*split)
        contexts.append(context.transpose(1, 2).reshape(-1, states.shape[1]))
    return torch.cat(contexts)


def by_text(states: Tensor, groups: list[tuple[int, int]]) -> list[Tensor]:
    """(tokens, hidden) → for each (length, count) of `groups` a view (count, length, hidden)."""
    parts = states.split([length * count for length, count in groups])
    return [part.view(count, length, -1) for part, (length, count) in zip(parts, groups, strict=True)]
