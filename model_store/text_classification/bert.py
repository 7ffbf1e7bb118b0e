"""BERT with a classification head, under Hugging Face's parameter names.

It loads the weights of a `BertForSequenceClassification` as they are,
so that serving needs torch and tokenizers only, not transformers.
Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2018.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

POSITIONS = "bert.embeddings.position_ids"  # a constant that older checkpoints carry along


def table(rows: int, hidden: int) -> nn.Embedding:
    """An embedding of zeros, for weights to come: on "meta", normal numbers would cost 1.5 s of imports."""
    made: nn.Embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
        torch.zeros(rows, hidden), freeze=False
    )
    return made


class Embeddings(nn.Module):
    """Token, position and segment embeddings: ids (batch, length) → (batch, length, hidden)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.word_embeddings = table(config["vocab_size"], hidden)
        self.position_embeddings = table(config["max_position_embeddings"], hidden)
        self.token_type_embeddings = table(config["type_vocab_size"], hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=config.get("layer_norm_eps", 1e-12))

    def forward(self, ids: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: ids.shape[1]]
        segment = self.token_type_embeddings.weight[0]
        embedded: Tensor = self.LayerNorm(self.word_embeddings(ids) + positions + segment)
        return embedded


class SelfAttention(nn.Module):
    """Multi-head self-attention without its output projection."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """`states` (batch, length, hidden); `bias` (batch, 1, 1, length), 0 or -inf where padded."""
        batch, length, hidden = states.shape

        def split(projected: Tensor) -> Tensor:
            return projected.view(batch, length, self.heads, -1).transpose(1, 2)

        query, key, value = split(self.query(states)), split(self.key(states)), split(self.value(states))
        if self.training:  # the fused kernel's backward pass is three times slower on a CPU
            scores = query @ key.transpose(-1, -2) / math.sqrt(hidden // self.heads)
            context = (scores + bias).softmax(-1) @ value
        else:
            context = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return context.transpose(1, 2).reshape(batch, length, hidden)


class Residual(nn.Module):
    """A projection back to the hidden size, added to what went in, then normalised."""

    def __init__(self, inner: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, config["hidden_size"])
        self.LayerNorm = nn.LayerNorm(config["hidden_size"], eps=config.get("layer_norm_eps", 1e-12))
        self.dropout = SequenceDropout(config.get("hidden_dropout_prob", 0.1))

    def forward(self, states: Tensor, residual: Tensor) -> Tensor:
        normalised: Tensor = self.LayerNorm(self.dropout(self.dense(states)) + residual)
        return normalised


class SequenceDropout(nn.Module):
    """Dropout with one mask a sequence: drawing a mask for each token costs more than the layer."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, states: Tensor) -> Tensor:
        if not self.training:
            return states
        keep = 1 - self.rate
        mask = torch.rand(states.shape[0], 1, states.shape[-1], device=states.device) < keep
        return states * mask.to(states.dtype) / keep


class Layer(nn.Module):
    """One encoder layer. The nesting of its modules spells Hugging Face's parameter names."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(config), "output": Residual(hidden, config)},
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(hidden, inner)})
        self.output = Residual(inner, config)

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        states = self.attention["output"](self.attention["self"](states, bias), states)
        output: Tensor = self.output(functional.gelu(self.intermediate["dense"](states)), states)
        return output


class Bert(nn.Module):
    """The encoder and what makes one vector of it: ids (batch, length) → (batch, hidden).

    That is BERT's pooler over the [CLS] token, or, with `"pooling": "mean"` in the configuration,
    the mean of all tokens, which sentence encoders are trained with (Reimers and Gurevych, 2019).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.encoder = nn.ModuleDict({"layer": layers})
        hidden = config["hidden_size"]
        mean = config.get("pooling") == "mean"
        self.pooler = None if mean else nn.ModuleDict({"dense": nn.Linear(hidden, hidden)})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.embeddings(ids)
        bias = torch.zeros(mask.shape, dtype=states.dtype, device=ids.device)
        bias = bias.masked_fill(~mask, -math.inf)[:, None, None, :]
        for layer in self.encoder["layer"].children():
            states = layer(states, bias)
        if self.pooler is not None:
            return torch.tanh(self.pooler["dense"](states[:, 0]))
        weights = mask[:, :, None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)


class BertForSequenceClassification(nn.Module):
    """ids and mask (batch, length), int64 and bool → logits (batch, labels).

    `config` is the model's `config.json`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.bert = Bert(config)
        self.dropout = SequenceDropout(config.get("hidden_dropout_prob", 0.1))
        self.classifier = nn.Linear(config["hidden_size"], len(config["id2label"]))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        pooled = self.dropout(self.bert(ids, mask)[:, None])[:, 0]
        logits: Tensor = self.classifier(pooled)
        return logits


def covers(config: dict[str, Any]) -> bool:
    """Whether the module above computes what this `config.json` asks for; BERT has grown variants."""
    return (
        config.get("architectures") == ["BertForSequenceClassification"]
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and config.get("pooling", "cls") in {"cls", "mean"}
        and not config.get("is_decoder")
        and not config.get("pruned_heads")
    )


def with_weights(config: dict[str, Any], state: dict[str, Tensor]) -> BertForSequenceClassification:
    """The model around the tensors of `state`, which it takes over without a copy.

    Raises ValueError where names or shapes do not fit.
    """
    with torch.device("meta"):  # drawing random weights, only to replace them, takes longer than loading
        model = BertForSequenceClassification(config)
    try:
        model.load_state_dict(
            {modern(name): value for name, value in state.items() if name != POSITIONS}, assign=True
        )
    except RuntimeError as error:
        raise ValueError("The weights do not fit config.json: " + " ".join(str(error).split())) from error
    return model.eval()


def modern(name: str) -> str:
    """Checkpoints that came from TensorFlow call a normalisation's weight gamma and its bias beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
