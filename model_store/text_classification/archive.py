"""Make NAME.mar, a TorchServe archive, from any Hugging Face model that classifies texts.

    python model_store/text_classification/archive.py DIRECTORY_OR_HUB_ID --name NAME

The directory holds config.json, tokenizer.json and the weights as safetensors.
Its own model-config.yaml, where there is one, sets workers and timeouts.
Exit status: 0, or 2 with one sentence on stderr when the model is not one that can be served.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from bert import covers
from classifier import WEIGHTS, Classifier, labels_of

HERE = Path(__file__).resolve().parent
CODE = ("handler.py", "inputs.py", "classifier.py", "bert.py", "packed.py", "weights.py")
INT8 = "model.int8.safetensors"
INDEX = "model.safetensors.index.json"
FROM_HUB = ["config.json", "tokenizer.json", "tokenizer_config.json", "model*.safetensors", INDEX]
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"  # what TorchServe accepts
DEFAULT_MAX_TOKENS = 512  # for models without a table of positions
SANE_MAX_TOKENS = 1_000_000  # tokenizers without a limit of their own write 10^30

WORKERS = """\
minWorkers: {workers}
maxWorkers: {workers}
"""
MODEL_CONFIG = """\
batchSize: 1          # the gateway sends lists of instances, which is faster than batching here
maxBatchDelay: 1      # ms
responseTimeout: 60   # s; when it passes, TorchServe kills the worker
startupTimeout: 120   # s
handler:
  precision: auto     # auto (measured when the model is loaded), fp32 or bf16
  # torch_threads: 1  # default: half of the cores, shared among the workers
"""


class UnfitError(Exception):
    """The model cannot be served; the message is one sentence that says why and what to do."""


def main(argv: list[str] | None = None) -> None:
    chosen = parse(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="archive-") as work:
            source = source_folder(chosen.source, chosen.revision)
            target = make(source, Path(work), chosen)
    except UnfitError as error:
        say(f"archive.py: {error}")
        sys.exit(2)
    say(f"{target} is ready ({target.stat().st_size / 1e6:.0f} MB).")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a directory, or org/name on the Hugging Face hub")
    parser.add_argument("--name", required=True, help="the model's name in TorchServe")
    parser.add_argument("--version", default="1.0")
    parser.add_argument(
        "--output", type=Path, default=HERE.parent, help="folder for NAME.mar (default: model_store)"
    )
    parser.add_argument(
        "--workers", type=int, help="TorchServe workers (default: what TorchServe is configured for)"
    )
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    return parser.parse_args(argv)


def make(source: Path, work: Path, chosen: argparse.Namespace) -> Path:
    """Stage, try and pack the model in `work`; the archive appears in `chosen.output` whole or not at all."""
    for value in (chosen.name, chosen.version):
        if not re.fullmatch(NAME, value):
            raise UnfitError(f"{value!r} is no name for TorchServe: letters, digits, '_', '-' and '.' only.")
    stage(source, work / "files", chosen.workers)
    try_out(work / "files")
    say("Packing …")
    archived = pack(work, chosen.name, chosen.version)
    chosen.output.mkdir(parents=True, exist_ok=True)
    part: Path = chosen.output / f".{chosen.name}.mar.part"
    shutil.copyfile(archived, part)  # a rename cannot leave /tmp, and TorchServe must not find half a file
    return part.replace(chosen.output / f"{chosen.name}.mar")


def source_folder(source: str, revision: str | None) -> Path:
    """`source` as a folder, downloaded where it is not one but looks like the name of a model on the hub."""
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(f"{NAME}/{NAME}", source):
        raise UnfitError(f"{source} is neither a directory nor the name of a model on the hub (org/name).")
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415  (only this way in needs it)
    except ImportError:
        raise UnfitError(
            f"{source} is no directory; to fetch it from the hub: pip install huggingface_hub."
        ) from None
    say(f"Fetching {source} …")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=FROM_HUB))
    except (OSError, ValueError) as error:  # what huggingface_hub raises derives from these
        raise UnfitError(f"{source} could not be fetched from the hub: {first_line(error)}") from None


def stage(source: Path, folder: Path, workers: int | None = None) -> None:
    """Fill `folder` with what the archive will hold: code, settings, tokenizer, weights in their served form.

    Raises UnfitError.
    """
    config = checked_config(source)
    files = weight_files(source)
    say(f"Reading {source}: {config['architectures'][0]}, {len(config['id2label'])} labels …")
    folder.mkdir(parents=True)
    for name in CODE:
        shutil.copyfile(HERE / name, folder / name)
    config |= {"max_tokens": max_tokens(source, config)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    write_model_config(source, folder, workers)
    if covers(config):
        torch.save(read_weights(files), folder / WEIGHTS)
        return
    if files[0].name == INT8:
        raise UnfitError(
            f"{INT8} is read by our BERT only, and {config['architectures'][0]} as configured is another."
        )
    for file in [*files, *source.glob(INDEX)]:
        shutil.copyfile(file, folder / file.name)


def checked_config(source: Path) -> dict[str, Any]:
    """The model's config.json. Raises UnfitError unless it is a classifier without code of its own."""
    config = read_json(source / "config.json")
    architecture = next(iter(config.get("architectures") or ["an unnamed architecture"]))
    if "auto_map" in config:
        raise UnfitError("The model brings code of its own (auto_map in config.json), which is never run.")
    if not architecture.endswith("ForSequenceClassification"):
        raise UnfitError(f"The model is {architecture}; only *ForSequenceClassification can be served.")
    if config.get("problem_type") == "regression":
        raise UnfitError("The model's problem_type is regression: it has no labels to predict.")
    try:
        labels = labels_of(config)
    except (KeyError, ValueError, AttributeError):
        raise UnfitError('config.json needs id2label, such as {"0": "negative", "1": "positive"}.') from None
    if len(set(labels)) != len(labels) or not labels:
        raise UnfitError("id2label in config.json must give each id a label of its own.")
    if not (source / "tokenizer.json").is_file():
        raise UnfitError(
            "tokenizer.json is missing; make it with transformers: "
            f"AutoTokenizer.from_pretrained({str(source)!r}).save_pretrained({str(source)!r})"
        )
    return config


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError:
        raise UnfitError(f"{path} cannot be read: a Hugging Face model directory has one.") from None
    except ValueError:
        raise UnfitError(f"{path} is not JSON.") from None
    if not isinstance(value, dict):
        raise UnfitError(f"{path} is not a JSON object.")
    return value


def weight_files(source: Path) -> list[Path]:
    """The safetensors files with the weights; pickles are refused, as loading one runs what is in it."""
    for name in (INT8, "model.safetensors"):
        if (source / name).is_file():
            return [source / name]
    if not (source / INDEX).is_file():
        raise UnfitError(
            f"{source} has no model.safetensors (weights as pickles, *.bin or *.pt, are not loaded); "
            f"make it with transformers: AutoModelForSequenceClassification.from_pretrained({str(source)!r})"
            f".save_pretrained({str(source)!r})"
        )
    names = sorted(set(read_json(source / INDEX).get("weight_map", {}).values()))
    for name in names:
        if Path(name).name != name or not (source / name).is_file():
            raise UnfitError(f"{INDEX} names {name}, which is not there.")
    return [source / name for name in names]


def read_weights(files: list[Path]) -> dict[str, torch.Tensor]:
    """All tensors of `files` as they are; int8 stays int8, which keeps the archive small."""
    from safetensors.torch import load_file  # noqa: PLC0415  (a message first, where the model is unfit anyway)

    return {name: value for file in files for name, value in load_file(file).items()}


def max_tokens(source: Path, config: dict[str, Any]) -> int:
    """How many tokens the model reads: the smallest of the limits it comes with."""
    tokenizer = source / "tokenizer_config.json"
    limit = read_json(tokenizer).get("model_max_length") if tokenizer.is_file() else None
    truncation = read_json(source / "tokenizer.json").get("truncation") or {}
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if positions and not covers(config):  # RoBERTa and its kin begin to count after the padding's id
        positions -= (config.get("pad_token_id") or 0) + 1
    limits = [config.get("max_tokens"), truncation.get("max_length"), limit, positions]
    sane = [n for n in limits if isinstance(n, (int, float)) and 0 < n < SANE_MAX_TOKENS]
    return int(min(sane, default=DEFAULT_MAX_TOKENS))


def write_model_config(source: Path, folder: Path, workers: int | None) -> None:
    own = source / "model-config.yaml"
    if not own.is_file():
        text = (WORKERS.format(workers=workers) if workers else "") + MODEL_CONFIG
    elif workers is None:
        text = own.read_text("utf-8")
    else:
        raise UnfitError(f"{own} sets the number of workers: change it there rather than by --workers.")
    (folder / "model-config.yaml").write_text(text, "utf-8")


def try_out(folder: Path) -> None:
    """Have the staged model predict, so that what does not work fails here and not in TorchServe's log."""
    try:
        classifier = Classifier(folder, precision="fp32")
        too_long = "on and on " * classifier.config["max_tokens"]
        say(f"Trying it: {classifier(['A text to try the model with.', too_long])[0]}")
    except RuntimeError as error:
        if not isinstance(error.__cause__, ImportError):
            raise UnfitError(f"The model does not work: {first_line(error)}") from error
        say(f"Not tried: {error}")
    except Exception as error:  # whatever a broken model raises, the user gets a sentence
        raise UnfitError(f"The model does not work: {first_line(error)}") from error


def pack(work: Path, name: str, version: str) -> Path:
    """Run torch-model-archiver on `work`/files; it clears $TMPDIR/NAME first and so gets its own TMPDIR."""
    for folder in ("tmp", "out"):
        (work / folder).mkdir()
    command = [
        sys.executable,
        "-m",
        "model_archiver.model_packaging",
        "--model-name",
        name,
        "--version",
        version,
    ]
    command += [
        "--handler",
        "files/handler.py",
        "--extra-files",
        "files",
        "--config-file",
        "files/model-config.yaml",
    ]
    command += ["--export-path", "out", "--archive-format", "zip-store"]  # weights hardly deflate
    done = subprocess.run(  # noqa: S603  (our own interpreter; name and version were checked)
        command,
        cwd=work,
        env=os.environ | {"TMPDIR": str(work / "tmp")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnfitError(f"torch-model-archiver failed: {reason} (pip install torch-model-archiver==0.12.0)")
    return work / "out" / f"{name}.mar"


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def say(message: str) -> None:
    sys.stderr.write(f"{message}\n")


if __name__ == "__main__":
    main()
