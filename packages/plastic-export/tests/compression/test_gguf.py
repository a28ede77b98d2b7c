"""The guide's commands: right for the checkpoint at hand, and accepted by what they call."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from plastic_core.files import FormatError
from plastic_export import Budget
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.compression.gguf import OUTTYPES, gguf_guide
from plastic_export.folder.manifest import SCHEMA, sealed
from plastic_export.model.plastic_model import VERSION

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
CONVERTER = "llama.cpp/convert_hf_to_gguf.py"
HUB = {"name": "owner/model", "revision": "0123abc"}


def parsed(command: str, words: list[str]) -> dict[str, Any]:
    """The parameters as the ``plastic`` command itself understands the words."""
    from plastic_export.cli.command import plastic_command

    return plastic_command.commands[command].make_context(command, words).params


def make(folder: Path, dtype: mx.Dtype = mx.bfloat16, **config: Any) -> Path:
    """A folder that has what the guide looks at: configuration, tokenizer, one matrix."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "tokenizer.model").write_bytes(b"")
    weight = {"model.layers.0.mlp.up_proj.weight": mx.zeros((4, 32), dtype=dtype)}
    norm = {"model.norm.weight": mx.zeros((4,), dtype=mx.float32)}
    mx.save_safetensors(str(folder / "model.safetensors"), weight | norm)
    return folder


def make_quantized(folder: Path) -> Path:
    make(folder, quantization={"group_size": 32, "bits": 4})
    packed, scales, biases = mx.quantize(mx.ones((4, 32), mx.float16), 32, 4)
    path = "model.layers.0.mlp.up_proj"
    weights = {f"{path}.weight": packed, f"{path}.scales": scales, f"{path}.biases": biases}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def make_factored(
    folder: Path, options: dict[str, Any], source: dict[str, Any], *files: str
) -> Path:
    own = {"version": VERSION, "ranks": {}, "corrected": {}}
    make(folder, model_file="plastic_model.py", plastic=own)
    defaults = {"keep": 0.8, "strategy": "stable", "format": "factored"}
    defaults |= {"include": [], "exclude": [], "calibration": None}
    manifest = {
        "schema": SCHEMA,
        "options": defaults | options,
        "source": {"files": {}, "tensors": {}} | source,
        "matrices": [],
        "tensors": {},
        "rows": {},
        "files": {name: {"bytes": 0, "sha256": ""} for name in files},
    }
    (folder / "plastic.json").write_text(json.dumps(sealed(manifest)))
    return folder


def guide(folder: Path) -> list[str]:
    with open_checkpoint(folder) as checkpoint:
        return gguf_guide(checkpoint)


def commands(folder: Path) -> list[list[str]]:
    return [shlex.split(line) for line in guide(folder) if not line.startswith("#")]


def conversion(folder: Path) -> list[str]:
    found = [words for words in commands(folder) if words[1] == CONVERTER and "--outfile" in words]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("dtype", "outtype"), [(mx.bfloat16, "bf16"), (mx.float16, "f16"), (mx.float32, "f32")]
)
def test_the_file_type_is_that_of_most_weights(
    tmp_path: Path, dtype: mx.Dtype, outtype: str
) -> None:
    words = conversion(make(tmp_path / "small", dtype))
    assert outtype in OUTTYPES
    output = f"small-{outtype}.gguf"
    assert words[3:] == ["--outfile", output, "--outtype", outtype]


def test_a_dense_checkpoint_is_converted_as_it_is(tmp_path: Path) -> None:
    folder = make(tmp_path / "small")
    assert conversion(folder)[2] == str(folder)
    programs = [words[0] for words in commands(folder)]
    assert programs == ["git", "pip", "python", "python", "llama-quantize", "llama-cli"]


def test_each_command_reads_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    lines = commands(make_quantized(tmp_path / "small"))
    (dense,) = [words[words.index("--mlx-path") + 1] for words in lines if "--mlx-path" in words]
    convert = conversion(tmp_path / "small")
    assert convert[2] == dense
    quantize, run = lines[-2:]
    assert quantize == ["llama-quantize", convert[4], run[2], "Q4_K_M"]


def test_a_folder_with_spaces_and_quotes_stays_one_word(tmp_path: Path) -> None:
    folder = make(tmp_path / "my model's; rm -rf")
    words = conversion(folder)
    assert words[2] == str(folder)
    assert words[4] == "my_model_s__rm_-rf-bf16.gguf"


def test_an_mlx_quantised_checkpoint_is_made_dense_by_a_command_that_mlx_lm_accepts(
    tmp_path: Path,
) -> None:
    from mlx_lm.convert import configure_parser

    folder = make_quantized(tmp_path / "small")
    (words,) = [words for words in commands(folder) if words[0] == "mlx_lm.convert"]
    given = configure_parser().parse_args(words[1:])
    assert (given.hf_path, given.mlx_path, given.dequantize) == (
        str(folder),
        "small-dense",
        True,
    )
    copy = ["cp", str(folder / "tokenizer.model"), "small-dense"]
    assert copy in commands(folder)
    assert conversion(folder)[-1] == "f16"
    (folder / "tokenizer.model").unlink()
    assert copy not in commands(folder)


def test_an_adapter_is_fused_by_a_command_that_mlx_lm_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm.fuse import parse_arguments

    folder = make_quantized(tmp_path / "small")
    file = "adapters/adapters.safetensors"
    make_factored(tmp_path / "other", {"format": "adapter"}, HUB, file)
    (tmp_path / "other" / "plastic.json").rename(folder / "plastic.json")
    (folder / "adapters").mkdir()
    (folder / "adapters" / "adapter_config.json").write_text("{}")
    factors = {"lm_head.lora_a": mx.zeros((4, 2))}
    mx.save_safetensors(str(folder / "adapters" / "adapters.safetensors"), factors)
    (words,) = [words for words in commands(folder) if words[0].startswith("mlx_lm")]
    monkeypatch.setattr("sys.argv", words)
    given = parse_arguments()
    assert words[0] == "mlx_lm.fuse"
    assert (given.model, given.adapter_path) == (str(folder), str(folder / "adapters"))
    assert (given.save_path, given.dequantize) == ("small-dense", True)


def test_corrections_of_a_plan_have_no_place_in_gguf(tmp_path: Path) -> None:
    own = {"version": VERSION, "ranks": {}, "corrected": {"model.layers.0.mlp.up_proj": {}}}
    folder = make(tmp_path / "small", plastic=own)
    with pytest.raises(FormatError, match=r"GGUF has no tensors for; take what it was made from"):
        guide(folder)
    bare = make_factored(tmp_path / "bare", {"format": "corrected"}, HUB)
    with pytest.raises(FormatError, match="GGUF has no tensors for"):
        guide(bare)


def test_a_factored_checkpoint_is_made_dense_by_the_command_that_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("CALIBRATION_TEXT").write_text("text")
    windows = {"sha256": "0" * 64, "window": 128, "windows": 7}
    options = {"keep": 0.6, "strategy": "activation", "calibration": windows, "exclude": ["*.9.*"]}
    folder = make_factored(tmp_path / "small", options, HUB)
    (words,) = [words for words in commands(folder) if words[0] == "plastic"]
    given = parsed("compress", words[2:])
    expected = {
        "src": "owner/model",
        "revision": "0123abc",
        "out": Path("small-dense"),
        "format_": "dense",
        "keep": Budget("keep", 0.6),
        "strategy": "activation",
        "window": 128,
        "windows": 7,
        "exclude": ("*.9.*",),
        "include": (),
    }
    assert {name: given[name] for name in expected} == expected
    assert conversion(folder)[2] == "small-dense"


def test_a_dense_copy_calibrates_with_the_shipped_texts_where_the_original_did(
    tmp_path: Path,
) -> None:
    shipped = {"sha256": "0" * 64, "window": 128, "windows": 7, "set": {"name": "s", "version": 1}}
    options = {"keep": 0.6, "strategy": "activation", "calibration": shipped}
    folder = make_factored(tmp_path / "small", options, HUB)
    (words,) = [words for words in commands(folder) if words[0] == "plastic"]
    given = parsed("compress", words[2:])
    assert (given["calibration"], given["window"], given["windows"]) == (None, 128, 7)


def test_the_original_behind_a_factored_checkpoint_is_offered_too(tmp_path: Path) -> None:
    folder = make_factored(tmp_path / "small", {}, {"name": "lm", "revision": None})
    (line,) = [line for line in guide(folder) if "plastic restore" in line]
    words = shlex.split(line, comments=False)[1:]
    given = parsed("restore", words[2:])
    assert (given["src"], given["out"]) == (folder, Path("small-dense"))


def test_without_a_manifest_the_unknown_words_are_in_capitals(tmp_path: Path) -> None:
    folder = make(tmp_path / "small", plastic={"version": VERSION, "ranks": {}, "corrected": {}})
    (words,) = [words for words in commands(folder) if words[0] == "plastic"]
    assert words[2:] == ["SOURCE", "small-dense", "--keep", "KEEP", "--format", "dense"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["tokenizer.model"], "tokenizer.model (sentencepiece)"),
        (["tokenizer.model", "tokenizer.json"], "takes it before tokenizer.json"),
        (["tokenizer.json"], "BPE pre-tokenizer was not recognized"),
        ([], "tokenizer: none here"),
    ],
)
def test_the_guide_says_which_tokenizer_is_used(
    tmp_path: Path, files: list[str], said: str
) -> None:
    folder = make(tmp_path / "small")
    (folder / "tokenizer.model").unlink()
    for name in files:
        (folder / name).write_text("{}")
    assert said in "\n".join(guide(folder))


def test_the_chat_template_is_where_the_converter_looks_first(tmp_path: Path) -> None:
    folder = make(tmp_path / "small")
    places = {
        "chat_template.json": "{}",
        "chat_template.jinja": "template",
        "tokenizer_config.json": json.dumps({"chat_template": "template"}),
    }
    assert any("chat template: none here" in line for line in guide(folder))
    for name, content in places.items():
        (folder / name).write_text(content)
        assert any(f"chat template: from {name}" in line for line in guide(folder))


@pytest.mark.parametrize("architectures", [None, [], "LlamaForCausalLM", [7]])
def test_a_missing_architecture_is_said(tmp_path: Path, architectures: Any) -> None:
    lines = guide(make(tmp_path / "small", architectures=architectures))
    assert any("names no 'architectures'" in line for line in lines)


def test_a_damaged_manifest_is_an_error_of_the_file(tmp_path: Path) -> None:
    folder = make_factored(tmp_path / "small", {}, HUB)
    (folder / "plastic.json").write_text("{}")
    with pytest.raises(FormatError, match=r"plastic\.json"):
        guide(folder)


@pytest.mark.parametrize("options", [{}, {"heal": {"step": 3}}])
def test_a_healed_factored_checkpoint_is_said_to_lose_its_healing(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = make_factored(tmp_path / "small", options, HUB)
    assert any("HEALED" in line for line in guide(folder)) is bool(options)
