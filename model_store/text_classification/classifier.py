"""A classifier of texts, from a folder as `archive.py` lays it out."""

from __future__ import annotations

import copy
import json
import sys
import time
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from bert import with_weights
from packed import PackedBert
from tokenizers import Tokenizer
from torch import Tensor, nn
from weights import unpack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WEIGHTS = "weights.pt"
MOST_TOKENS = 1024  # in one forward pass, padding included: beyond it a processor gains nothing more
PRECISIONS = ("auto", "fp32", "bf16")
WORTH_IT = 1.2  # bf16 costs three digits: it has to be at least this many times faster
PROBE = (8, 24)  # instances and tokens in the trial that decides


class Prediction(TypedDict):
    """`label` is the best of `scores`: every label's probability to six digits, by label."""

    label: str
    score: float
    scores: dict[str, float]


class Classifier:
    """Texts → predictions, in order. Texts must not be empty and must be encodable as UTF-8.

    `folder` holds config.json (with `max_tokens`), tokenizer.json, and either `weights.pt`, for our own BERT,
    or safetensors, for transformers. `precision` is one of PRECISIONS; "auto" measures which is faster here.
    Raises ValueError for another precision or weights that do not fit,
    RuntimeError where transformers is needed and missing, OSError for a file that cannot be read.
    """

    def __init__(self, folder: Path, *, device: str = "cpu", precision: str = "auto") -> None:
        self.config = json.loads((folder / "config.json").read_text("utf-8"))
        self.labels = labels_of(self.config)
        self.device = torch.device(device)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.config["max_tokens"])
        load = load_bert if (folder / WEIGHTS).exists() else load_transformers
        model = load(folder, self.config)
        self.pad, self.most = (0, 0) if model.pad is None else (model.pad, MOST_TOKENS)
        self.model = in_precision(model.eval().to(self.device), precision)

    def __call__(self, texts: list[str]) -> list[Prediction]:
        """Sorted by length, so that a forward pass carries little or no padding."""
        tokens = [encoding.ids or [self.pad] for encoding in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        predictions: dict[int, Prediction] = {}
        for chosen in cut(order, [len(tokens[i]) for i in order], self.most):
            rows = self.probabilities([tokens[i] for i in chosen])
            predictions.update(zip(chosen, map(self.prediction, rows), strict=True))
        return [predictions[i] for i in range(len(texts))]

    @torch.inference_mode()
    def probabilities(self, tokens: list[list[int]]) -> list[list[float]]:
        """Token ids, a list for each text → probabilities (texts, labels)."""
        logits = self.model(tokens).float()
        chances = logits.sigmoid() if self.multi_label else logits.softmax(-1)
        rows: list[list[float]] = chances.tolist()
        return rows

    def prediction(self, probabilities: list[float]) -> Prediction:
        best = max(range(len(self.labels)), key=probabilities.__getitem__)
        scores = {label: round(p, 6) for label, p in sorted(zip(self.labels, probabilities, strict=True))}
        return {"label": self.labels[best], "score": scores[self.labels[best]], "scores": scores}

    @property
    def multi_label(self) -> bool:
        """Whether each label has a probability of its own; the softmax of a single label is always 1."""
        return self.config.get("problem_type") == "multi_label_classification" or len(self.labels) == 1

    @property
    def precision(self) -> str:
        return "bf16" if next(self.model.parameters()).dtype == torch.bfloat16 else "fp32"


def cut(order: list[int], lengths: list[int], most: int) -> list[list[int]]:
    """`order` in parts whose longest, by `lengths`, times their number is `most` at most, or one each."""
    parts: list[list[int]] = []
    for which, length in zip(order, lengths, strict=True):
        if parts and length * (len(parts[-1]) + 1) <= most:
            parts[-1].append(which)
        else:
            parts.append([which])
    return parts


class TransformersModel(nn.Module):
    """A transformers model behind the signature of ours: token ids, a list for each text → logits.

    Without an id of its own for padding (GPT-2), transformers takes no batches.
    """

    def __init__(self, inner: nn.Module, pad: int | None) -> None:
        super().__init__()
        self.inner = inner
        self.pad = pad

    def forward(self, texts: list[list[int]]) -> Tensor:
        device = next(self.inner.parameters()).device
        length = max(map(len, texts))
        ids = torch.tensor([text + [self.pad or 0] * (length - len(text)) for text in texts], device=device)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        mask = torch.arange(length, device=device) < lengths[:, None]
        logits: Tensor = self.inner(input_ids=ids, attention_mask=mask.long()).logits
        return logits


def labels_of(config: dict[str, Any]) -> list[str]:
    """The labels in the order of the model's outputs. Raises KeyError unless ids run from 0 without a gap."""
    by_id = {int(key): str(label) for key, label in config["id2label"].items()}
    return [by_id[i] for i in range(len(by_id))]


def load_bert(folder: Path, config: dict[str, Any]) -> PackedBert:
    state = torch.load(folder / WEIGHTS, weights_only=True, mmap=True)
    return PackedBert(with_weights(config, unpack(state)), config.get("pad_token_id") or 0)


def load_transformers(folder: Path, config: dict[str, Any]) -> TransformersModel:
    try:
        from transformers import AutoModelForSequenceClassification  # noqa: PLC0415  (126 MB that BERT needs not)
    except ImportError as error:
        raise RuntimeError(
            f"{config['architectures'][0]} needs transformers where TorchServe runs: "
            f"{sys.executable} -m pip install transformers"
        ) from error
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):  # transformers would make numbers up for them
        raise ValueError(f"The weights lack {len(missing)} tensors, {missing[0]} among them.")
    return TransformersModel(model.float(), model.config.pad_token_id)


def in_precision(model: nn.Module, precision: str) -> nn.Module:
    """`model` in the precision asked for; "auto" takes bf16 where this processor is WORTH_IT faster with it.

    AMX and AVX512-BF16 make bf16 two to three times faster than fp32, processors without them far slower:
    that is measured rather than looked up.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}.")
    if precision == "fp32":
        return model
    half = copy.deepcopy(model).to(torch.bfloat16)
    return half if precision == "bf16" or is_faster(half, model) else model


def is_faster(half: nn.Module, model: nn.Module) -> bool:
    """Whether one of three passes of `half` is WORTH_IT times as fast as the best of three of `model`."""
    limit = min(passes(model)) / WORTH_IT
    for seconds in passes(half):
        if seconds <= limit:
            return True
        if seconds > 2 * limit:  # a processor that has to emulate bf16: no need to wait for more of it
            return False
    return False


def passes(model: nn.Module) -> Iterator[float]:
    """Seconds of three forward passes over PROBE, after one to warm up."""
    count, length = PROBE
    for i in range(4):
        begun = time.perf_counter()
        with torch.inference_mode():
            model(
                [[0] * length] * count
            ).sum().item()  # a GPU answers before it is done: reading waits for it
        if i > 0:
            yield time.perf_counter() - begun
