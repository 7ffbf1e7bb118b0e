"""What the command makes loads in TorchServe; a model that cannot be served is refused in a sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import archive
import pytest
import torch
from classifier import Classifier
from conftest import MODEL_STORE
from safetensors.torch import load_file, save_file
from tiny_bert import CONFIG, weights, write_tiny_bert
from weights import save_int8

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# As TorchServe's worker does it: its own loader, the unpacked archive as the only folder on the path.
LOAD_AND_ASK = """
import json, sys
from ts.context import RequestProcessor
from ts.model_loader import ModelLoaderFactory
service = ModelLoaderFactory.get_model_loader().load("tiny", sys.argv[1], "handler.py", None, 1)
service.context.request_processor = [RequestProcessor({})]
(body,) = service._entry_point([{"body": {"instances": ["a good film", ""]}}], service.context)
print(json.dumps([json.loads(body), sorted({"safetensors", "transformers"} & sys.modules.keys())]))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    command = [sys.executable, str(MODEL_STORE / "text_classification" / "archive.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def load_and_ask(folder: Path) -> list[Any]:
    """[the answer, which modules that serving must not need were loaded]."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", LOAD_AND_ASK, str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: list[Any] = json.loads(done.stdout)
    return answer


def test_the_archive_loads_and_predicts_in_torchserve_s_own_loader(tmp_path: Path, served: Path) -> None:
    source = write_tiny_bert(tmp_path / "a, b")  # a comma would split torch-model-archiver's list of files
    done = run(
        str(source), "--name", "tiny", "--version", "2.1", "--workers", "3", "--output", str(tmp_path / "out")
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny.mar"]
    with zipfile.ZipFile(tmp_path / "out" / "tiny.mar") as mar:
        mar.extractall(tmp_path / "mar")
    manifest = json.loads((tmp_path / "mar" / "MAR-INF" / "MANIFEST.json").read_text())
    assert manifest["model"]["modelVersion"] == "2.1"
    assert manifest["model"]["configFile"] == "model-config.yaml"
    assert "minWorkers: 3\nmaxWorkers: 3\n" in (tmp_path / "mar" / "model-config.yaml").read_text()
    refusal = {"error": {"code": 422, "message": "The text is empty."}}
    expected = Classifier(served, precision="fp32")(["a good film"])
    assert load_and_ask(tmp_path / "mar") == [{"predictions": [*expected, refusal]}, []]


def make(source: Path, *options: str) -> Path:
    archive.main([str(source), "--name", "tiny", "--output", str(source.parent), *options])
    return source.parent / "tiny.mar"


def test_making_it_again_replaces_it(tmp_path: Path) -> None:
    first = make(write_tiny_bert(tmp_path / "m")).stat()
    again = make(tmp_path / "m").stat()
    assert again.st_ino != first.st_ino  # a new file took its place: nobody reads half of one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "tiny.mar"]


def test_the_directory_s_own_model_config_wins(tmp_path: Path) -> None:
    source = write_tiny_bert(tmp_path / "m")
    (source / "model-config.yaml").write_text("minWorkers: 7\n")
    with zipfile.ZipFile(make(source)) as mar:
        assert mar.read("model-config.yaml") == b"minWorkers: 7\n"


def test_int8_weights_stay_small_in_the_archive_and_answer_alike(tmp_path: Path) -> None:
    config = CONFIG | {"hidden_size": 128}  # large enough to be packed
    plain, packed = write_tiny_bert(tmp_path / "plain"), write_tiny_bert(tmp_path / "packed")
    for source in (plain, packed):
        (source / "config.json").write_text(json.dumps(config))
    save_file(weights(config), plain / "model.safetensors")
    (packed / "model.safetensors").unlink()
    save_int8(weights(config), packed / "model.int8.safetensors")
    answers = []
    for source in (plain, packed):
        archive.stage(source, source / "served")
        answers.append(Classifier(source / "served", precision="fp32")(["a good film"])[0]["scores"])
    assert answers[0] == pytest.approx(answers[1], abs=0.05)
    size = [(source / "served" / "weights.pt").stat().st_size for source in (plain, packed)]
    assert size[1] < 0.45 * size[0]


def test_weights_in_shards_are_put_together(tmp_path: Path) -> None:
    source = write_tiny_bert(tmp_path / "m")
    state = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(state)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: state[name] for name in names if files[name] == file}, source / file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    archive.stage(source, tmp_path / "served")
    assert torch.load(tmp_path / "served" / "weights.pt").keys() == state.keys()


def test_independent_labels_have_probabilities_of_their_own(tmp_path: Path) -> None:
    archive.stage(
        write_tiny_bert(tmp_path / "m", problem_type="multi_label_classification"), tmp_path / "served"
    )
    prediction = Classifier(tmp_path / "served", precision="fp32")(["a good film"])[0]
    assert sum(prediction["scores"].values()) > 1.1
    assert prediction["score"] == max(prediction["scores"].values())


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 48),
        ({"tokenizer_config": 10**30}, 48),
        ({"tokenizer_config": 40}, 40),
        ({"tokenizer_config": 40, "truncation": 20}, 20),
        ({"tokenizer_config": 40, "truncation": 20, "config": 10}, 10),
    ],
)
def test_texts_are_cut_at_the_smallest_limit_the_model_brings(
    tmp_path: Path, limits: dict[str, int], expected: int
) -> None:
    source = write_tiny_bert(tmp_path / "m", max_tokens=limits.get("config"))
    if "tokenizer_config" in limits:
        (source / "tokenizer_config.json").write_text(
            json.dumps({"model_max_length": limits["tokenizer_config"]})
        )
    if "truncation" in limits:
        tokenizer = archive.read_json(source / "tokenizer.json")
        tokenizer["truncation"] = {
            "direction": "Right", "max_length": limits["truncation"], "strategy": "LongestFirst", "stride": 0
        }  # fmt: skip
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    archive.stage(source, tmp_path / "served")
    assert Classifier(tmp_path / "served").config["max_tokens"] == expected


# ---- models for transformers


def test_another_architecture_goes_into_the_archive_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # missing, on every machine
    source = write_tiny_bert(tmp_path / "m", architectures=["RobertaForSequenceClassification"])
    with zipfile.ZipFile(make(source)) as mar:
        assert mar.read("model.safetensors") == (source / "model.safetensors").read_bytes()
        # RoBERTa's positions begin after the padding's id: one of 48 is taken
        assert json.loads(mar.read("config.json"))["max_tokens"] == 47
        assert "weights.pt" not in mar.namelist()
    assert "Not tried: RobertaForSequenceClassification needs transformers" in capsys.readouterr().err


def test_without_transformers_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    archive.stage(write_tiny_bert(tmp_path / "m", hidden_act="relu"), tmp_path / "served")
    command = re.escape(f"{sys.executable} -m pip install transformers")
    with pytest.raises(RuntimeError, match=f"needs transformers where TorchServe runs: {command}"):
        Classifier(tmp_path / "served")


# ---- refusals


def changed(**changes: object) -> Callable[[Path], object]:
    return lambda source: write_tiny_bert(source, **changes)


def without(name: str) -> Callable[[Path], object]:
    return lambda source: (source / name).unlink()


def only_a_pickle(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")


def an_index_that_leaves_the_folder(source: Path) -> None:
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')


def int8_for_another_architecture(source: Path) -> None:
    write_tiny_bert(source, hidden_act="relu")
    save_int8(weights(CONFIG), source / "model.int8.safetensors")


def weights_of_another_size(source: Path) -> None:
    save_file(weights(CONFIG | {"hidden_size": 16}), source / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without("config.json"), "config.json cannot be read"),
        (lambda source: (source / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda source: (source / "config.json").write_text("[]"), "config.json is not a JSON object"),
        (changed(architectures=["BertForMaskedLM"]), "The model is BertForMaskedLM"),
        (changed(architectures=None), "an unnamed architecture"),
        (changed(auto_map={"AutoModel": "evil.Model"}), "code of its own"),
        (changed(problem_type="regression"), "regression"),
        (changed(id2label=None), "needs id2label"),
        (changed(id2label={"0": "a", "2": "b"}), "needs id2label"),
        (changed(id2label={"0": "a", "1": "a"}), "a label of its own"),
        (without("tokenizer.json"), "AutoTokenizer.from_pretrained"),
        (without("model.safetensors"), "no model.safetensors"),
        (only_a_pickle, "pickles"),
        (an_index_that_leaves_the_folder, "which is not there"),
        (int8_for_another_architecture, "by our BERT only"),
        (weights_of_another_size, "The weights do not fit config.json"),
        (lambda source: (source / "tokenizer.json").write_text("{}"), "The model does not work"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], reason: str
) -> None:
    spoil(write_tiny_bert(tmp_path / "m"))
    with pytest.raises(SystemExit) as stopped:
        make(tmp_path / "m")
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2
    assert last.startswith("archive.py: ")
    assert reason in last
    assert not (tmp_path / "tiny.mar").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--name", "no/name"], "is no name for TorchServe"),
        (["--name", "x", "--version", "1 0"], "is no name for TorchServe"),
        (["--name", "x", "--workers", "2"], "rather than by --workers"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], reason: str
) -> None:
    source = write_tiny_bert(tmp_path / "m")
    (source / "model-config.yaml").write_text("minWorkers: 1\n")
    with pytest.raises(SystemExit):
        archive.main([str(source), "--output", str(tmp_path), *options])
    assert reason in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        archive.main(["/no/such/folder", "--name", "x"])
    assert "/no/such/folder is neither a directory nor the name of a model" in capsys.readouterr().err
