"""The guide's commands: right for the source at hand, and accepted by what they call."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from plastic_core.files import FormatError
from plastic_export.adapters.adapter import Adapter, LoraPair
from plastic_export.adapters.writing import write_adapter
from plastic_export.gguf import guide
from plastic_export.gguf.guide import OUTTYPES, gguf_guide
from plastic_export.model.plastic_model import VERSION

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
OTHER = {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}
CONVERTER = "llama.cpp/convert_hf_to_gguf.py"


def parsed(words: list[str]) -> dict[str, Any]:
    """The parameters as the ``plastic`` command itself understands the words."""
    from plastic_export.cli.command import plastic_command

    assert words[0] == "plastic"
    return plastic_command.commands[words[1]].make_context(words[1], words[2:]).params


def make(folder: Path, dtype: mx.Dtype = mx.bfloat16, **config: Any) -> Path:
    """A folder that has what the guide looks at: configuration, one matrix."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    weight = {"model.layers.0.mlp.up_proj.weight": mx.zeros((4, 32), dtype=dtype)}
    norm = {"model.norm.weight": mx.zeros((4,), dtype=mx.float32)}
    mx.save_safetensors(str(folder / "model.safetensors"), weight | norm)
    return folder


def make_quantized(folder: Path, **config: Any) -> Path:
    make(folder, quantization={"group_size": 32, "bits": 4}, **config)
    packed, scales, biases = mx.quantize(mx.ones((4, 32), mx.float16), 32, 4)
    path = "model.layers.0.mlp.up_proj"
    weights = {f"{path}.weight": packed, f"{path}.scales": scales, f"{path}.biases": biases}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def make_run(folder: Path, base: str) -> Path:
    """A run that names its base, as far as the guide looks."""
    path = "model.layers.0.mlp.up_proj"
    layers = {path: LoraPair(mx.ones((2, 32)), mx.ones((4, 2)))}
    folder.mkdir()
    write_adapter(Adapter(layers, base), folder / "peft", "peft", uniform=True)
    (folder / "plastic-run.json").write_text("{}")
    return folder


def commands(source: str | Path) -> list[list[str]]:
    return [shlex.split(line) for line in gguf_guide(source) if not line.startswith("#")]


def conversion(source: str | Path) -> list[str]:
    """The words after those of the converter."""
    found = [w for w in commands(source) if CONVERTER in w and "--outfile" in w]
    assert len(found) == 1
    return found[0][2:]


def export_of(source: str | Path) -> dict[str, Any]:
    return parsed(next(words for words in commands(source) if words[0] == "plastic"))


@pytest.mark.parametrize(
    ("dtype", "type"), [(mx.bfloat16, "bf16"), (mx.float16, "f16"), (mx.float32, "f32")]
)
def test_what_is_written_here_takes_one_command(tmp_path: Path, dtype: mx.Dtype, type: str) -> None:
    folder = make(tmp_path / "small", dtype)
    given = export_of(folder)
    assert (given["src"], given["to"]) == (str(folder), "gguf")
    assert given["dest"] == Path(f"small-{type}.gguf")
    assert [w[0] for w in commands(folder)] == ["plastic", "llama-quantize", "llama-completion"]


def test_a_model_is_completed_and_not_chatted_with(tmp_path: Path) -> None:
    for folder in (make(tmp_path / "a"), make(tmp_path / "b", **OTHER)):
        run = commands(folder)[-1]
        assert run[:3] == ["llama-completion", "-no-cnv", "-m"]


def test_each_command_reads_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    written, quantize, run = commands(make(tmp_path / "small"))
    assert quantize[1:] == [written[3], run[3], "Q4_K_M"]


def test_what_is_packed_is_not_packed_again(tmp_path: Path) -> None:
    folder = make_quantized(tmp_path / "small")
    assert [w[0] for w in commands(folder)] == ["plastic", "llama-completion"]


def test_another_architecture_takes_the_converter_in_an_environment_of_its_own(
    tmp_path: Path,
) -> None:
    folder = make(tmp_path / "small", **OTHER)
    words = commands(folder)
    assert words[0][:2] == ["git", "clone"]
    assert words[1] == ["python", "-m", "venv", "gguf-env"]
    assert words[2][:4] == ["gguf-env/bin/python", "-m", "pip", "install"]
    assert conversion(folder) == [str(folder), "--outfile", "small-bf16.gguf", "--outtype", "bf16"]
    assert "bf16" in OUTTYPES


@pytest.mark.parametrize("kind", ["packed", "factored"])
def test_the_converter_gets_a_dense_copy(tmp_path: Path, kind: str) -> None:
    own = {"version": VERSION, "ranks": {}, "corrected": {"model.layers.0.mlp.up_proj": {}}}
    if kind == "packed":
        folder = make_quantized(tmp_path / "small", **OTHER)
    else:
        folder = make(tmp_path / "small", plastic=own, **OTHER)
    given = export_of(folder)
    assert (given["src"], given["to"], given["dest"]) == (str(folder), "dense", Path("small-dense"))
    assert conversion(folder)[0] == "small-dense"


def test_a_folder_with_spaces_and_quotes_stays_one_word(tmp_path: Path) -> None:
    folder = make(tmp_path / "my model's; rm -rf")
    given = export_of(folder)
    assert given["src"] == str(folder)
    assert given["dest"] == Path("my_model_s__rm_-rf-bf16.gguf")


def test_a_run_becomes_an_adapter_over_the_base_that_it_names(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    run = make_run(tmp_path / "run", str(base))
    lora, model, complete, fused, *converter = commands(run)
    assert parsed(lora)["dest"] == Path("run-lora.gguf")
    assert parsed(model)["src"] == str(base)
    assert complete[complete.index("--lora") + 1] == "run-lora.gguf"
    assert parsed(fused)["piece"] == "whole"
    assert converter[-1][1:5] == [
        "llama.cpp/convert_lora_to_gguf.py",
        str(run / "peft"),
        "--base",
        str(base),
    ]


def test_a_run_whose_base_is_gone_asks_for_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "gone")
    assert parsed(commands(run)[0])["base"] == "BASE"


def test_of_a_hub_id_no_weights_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "snapshot"
    make(folder, dtype_="", torch_dtype="float16")
    (folder / "model.safetensors").unlink()
    asked: list[bool] = []

    def fetch(repository: str, revision: str | None, *, weights: bool) -> Path:
        asked.append(weights)
        return folder

    monkeypatch.setattr(guide, "fetch", fetch)
    given = export_of("acme/tiny")
    assert (given["src"], given["dest"]) == ("acme/tiny", Path("tiny-f16.gguf"))
    assert not any(asked)


@pytest.mark.parametrize("architectures", [None, [], "LlamaForCausalLM", [7]])
def test_a_missing_architecture_is_said(tmp_path: Path, architectures: Any) -> None:
    lines = gguf_guide(make(tmp_path / "small", **(OTHER | {"architectures": architectures})))
    assert any("names no 'architectures'" in line for line in lines)


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
    folder = make(tmp_path / "small", **OTHER)
    for name in files:
        (folder / name).write_text("{}")
    assert said in "\n".join(gguf_guide(folder))


def test_a_tokenizer_that_is_not_written_here_takes_the_converter(tmp_path: Path) -> None:
    folder = make(tmp_path / "small")
    split = {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated"}
    content = {"model": {"type": "BPE"}, "pre_tokenizer": split}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert conversion(folder)[0] == str(folder)


def test_the_chat_template_is_where_the_converter_looks_first(tmp_path: Path) -> None:
    folder = make(tmp_path / "small", **OTHER)
    places = {
        "chat_template.json": "{}",
        "chat_template.jinja": "template",
        "tokenizer_config.json": json.dumps({"chat_template": "template"}),
    }
    assert any("chat template: none here" in line for line in gguf_guide(folder))
    for name, content in places.items():
        (folder / name).write_text(content)
        assert any(f"chat template: from {name}" in line for line in gguf_guide(folder))


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"config\.json"):
        gguf_guide(tmp_path)
