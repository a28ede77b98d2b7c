from __future__ import annotations

import errno
import json
import os
import re
import resource
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import mlx.core as mx
import numpy as np
import pytest
from plastic_core.files import FormatError, files_under
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.checkpoint.warning import CheckpointWarning

INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
Q_PROJ = "model.layers.0.self_attn.q_proj"

MakeCheckpoint = Callable[..., Path]


def pattern(array: mx.array) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.array(array.view(mx.uint16))


def edit_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def save(path: Path, **arrays: mx.array) -> None:
    mx.save_safetensors(str(path), arrays)


# What is read is what was written.


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_read_bit_for_bit(
    make_checkpoint: MakeCheckpoint, tiny_weights: dict[str, mx.array], shards: int
) -> None:
    with open_checkpoint(make_checkpoint(shards=shards)) as checkpoint:
        assert checkpoint.tensors.keys() == tiny_weights.keys()
        assert len(checkpoint.weight_files) == shards
        for name, expected in tiny_weights.items():
            found = checkpoint.read(name)
            assert found.dtype == mx.bfloat16
            assert np.array_equal(pattern(found), pattern(expected))
            assert checkpoint.raw(name).tobytes() == pattern(expected).tobytes()
            exact = np.array(expected.astype(mx.float32))
            assert np.array_equal(checkpoint.matrix(name), exact)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_every_pattern_of_16_bits_is_read_exactly(
    make_checkpoint: MakeCheckpoint, dtype: mx.Dtype
) -> None:
    patterns = mx.arange(65536).astype(mx.uint16).reshape(256, 256)
    folder = make_checkpoint(weights={"w": patterns.view(dtype)})
    with open_checkpoint(folder) as checkpoint:
        found = checkpoint.read("w")
    assert found.dtype == dtype
    assert np.array_equal(pattern(found), np.array(patterns))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_finite_weight_of_any_float_dtype_becomes_the_same_number_in_float32(
    make_checkpoint: MakeCheckpoint, dtype: mx.Dtype
) -> None:
    tiny = float(np.finfo(np.float16).smallest_subnormal)
    values = mx.array([[0.0, -0.0, 1.0], [-1.5, 65504.0, tiny]]).astype(dtype)
    with open_checkpoint(make_checkpoint(weights={"w": values})) as checkpoint:
        found = checkpoint.matrix("w")
    assert found.dtype == np.float32
    assert np.array_equal(found, np.array(values.astype(mx.float32)))
    assert np.signbit(found[0, 1])


def test_tensors_come_in_the_order_of_the_bytes(sharded_folder: Path) -> None:
    with open_checkpoint(sharded_folder) as checkpoint:
        places = [(info.file, info.start) for info in checkpoint.tensors.values()]
    assert places == sorted(places)


def test_name_revision_and_configuration_of_a_folder(checkpoint_folder: Path) -> None:
    with open_checkpoint(str(checkpoint_folder)) as checkpoint:
        assert (checkpoint.name, checkpoint.revision) == ("tiny", None)
        assert checkpoint.config["hidden_size"] == 64
        assert checkpoint.quantization is None
        assert checkpoint.folder == checkpoint_folder


def test_side_files_are_the_tokenizer_and_no_code(checkpoint_folder: Path) -> None:
    for name in (
        "modeling_tiny.py",
        "pytorch_model.bin",
        "LICENSE",
        "chat_template.jinja",
        "x.txt",
    ):
        (checkpoint_folder / name).write_text("raise SystemExit")
    with open_checkpoint(checkpoint_folder) as checkpoint:
        names = [*checkpoint.side_files()]
    assert names == [
        "LICENSE", "chat_template.jinja", "generation_config.json", "tokenizer.model",
        "tokenizer_config.json",
    ]  # fmt: skip


CARRIED = (
    "additional_chat_templates/tool.jinja", "chat_template.jinja", "generation_config.json",
    "hf_quant_config.json", "sentencepiece.bpe.model", "source.spm", "tiktoken.model",
    "tokenizer.model", "tokenizer.model.v3", "tokenizer_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip


def test_files_of_every_kind_of_tokenizer_and_processor_are_carried_along(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    (checkpoint_folder / "additional_chat_templates").mkdir()
    (checkpoint_folder / "LICENSES").mkdir()
    code = ("tokenization_kimi.py", "additional_chat_templates/run.py", "LICENSES/MIT.txt")
    for name in (*CARRIED, *code):
        (checkpoint_folder / name).write_text("{}")
    (tmp_path / "new").mkdir()
    with open_checkpoint(checkpoint_folder) as checkpoint:
        assert (*checkpoint.side_files(),) == tuple(sorted(CARRIED))
        checkpoint.copy_side_files(tmp_path / "new")
    assert files_under(tmp_path / "new") == [tmp_path / "new" / name for name in sorted(CARRIED)]


def test_template_of_a_snapshot_is_a_link_to_its_blobs(hub_cache: Any, tmp_path: Path) -> None:
    (hub_cache.home / "blobs" / "b10b").write_text("{{ tools }}")
    templates = hub_cache.snapshot / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool.jinja").symlink_to("../../../blobs/b10b")
    with open_checkpoint(hub_cache.repository) as checkpoint:
        checkpoint.copy_side_files(tmp_path)
    assert (tmp_path / templates.name / "tool.jinja").read_text() == "{{ tools }}"
    (templates / "tool.jinja").unlink()
    (templates / "tool.jinja").symlink_to("/etc/hostname")
    with (
        open_checkpoint(hub_cache.repository) as checkpoint,
        pytest.raises(FormatError, match=r"templates/tool\.jinja: a link that leaves the folder"),
    ):
        checkpoint.side_files()


@pytest.mark.parametrize("place", ["hf_quant_config.json", "text_config"])
def test_quantisation_that_mlx_lm_finds_elsewhere_counts(
    make_checkpoint: MakeCheckpoint, tiny_weights: dict[str, mx.array], place: str
) -> None:
    weights = tiny_weights | {"codes": mx.zeros((4, 4), mx.int8)}
    quantization = {"quant_method": "unheard of", "quantization": {"quant_algo": "FP8"}}
    is_nested = place == "text_config"
    text = {"quantization_config": quantization} if is_nested else {}
    folder = make_checkpoint(weights=weights, text_config=text)
    if not is_nested:
        (folder / place).write_text(json.dumps(quantization))
    with pytest.raises(FormatError, match="quantised by 'unheard of'"):
        open_checkpoint(folder)


def test_three_hundred_shards_are_read_under_a_limit_of_64_open_files(
    make_checkpoint: MakeCheckpoint,
) -> None:
    weights = {f"w{i}": mx.full((4, 4), i) for i in range(300)}
    folder = make_checkpoint(weights=weights, shards=300)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        with open_checkpoint(folder) as checkpoint:
            assert all(checkpoint.read(f"w{i}")[0, 0].item() == i for i in range(300))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Weights that MLX packed.


@pytest.mark.parametrize(
    ("mode", "bits", "group_size"),
    [("affine", b, 32) for b in (2, 3, 4, 5, 6, 8)]
    + [("affine", 4, 64), ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)],
)
def test_packed_weight_is_dequantised(
    make_checkpoint: MakeCheckpoint,
    tiny_weights: dict[str, mx.array],
    mode: str,
    bits: int,
    group_size: int,
) -> None:
    name = f"{Q_PROJ}.weight"
    packed, scales, *biases = mx.quantize(tiny_weights[name], group_size, bits, mode)
    weights = tiny_weights | {name: packed, f"{Q_PROJ}.scales": scales}
    weights |= {f"{Q_PROJ}.biases": part for part in biases}
    how = {"bits": bits, "group_size": group_size, "mode": mode}
    with open_checkpoint(make_checkpoint(weights=weights, quantization=how)) as checkpoint:
        found = checkpoint.matrix(name)
        assert checkpoint.shape(name) == found.shape == (64, 64)
        assert checkpoint.packing(name) == (bits, group_size, mode)
        assert checkpoint.packing(f"{Q_PROJ}.scales") is None
    scale, bias = scales, None
    if biases:
        scale, bias = scales.astype(mx.float32), biases[0].astype(mx.float32)
    expected = mx.dequantize(packed, scale, bias, group_size, bits, mode, dtype=mx.float32)
    assert np.array_equal(found, np.array(expected))


def test_layer_with_a_packing_of_its_own_is_read_by_it(
    make_checkpoint: MakeCheckpoint, tiny_weights: dict[str, mx.array]
) -> None:
    name = f"{Q_PROJ}.weight"
    original = tiny_weights[name].astype(mx.float32)
    packed, scales, biases = mx.quantize(original, bits=8, group_size=32)
    weights = tiny_weights | {
        name: packed, f"{Q_PROJ}.scales": scales, f"{Q_PROJ}.biases": biases
    }  # fmt: skip
    quantization = {"bits": 4, "group_size": 64, Q_PROJ: {"bits": 8, "group_size": 32}}
    with open_checkpoint(make_checkpoint(weights=weights, quantization=quantization)) as checkpoint:
        found = checkpoint.matrix(name)
    step = np.array(scales).repeat(32, axis=1)
    assert (np.abs(found - np.array(original)) <= np.abs(step)).all()


@pytest.mark.parametrize(
    ("quantization", "reason"),
    [
        (4, "config.json: 'quantization' is not an object"),
        ({"bits": 7, "group_size": 64}, "MLX has no such quantization: .*bits 7"),
        ({"bits": 4, "group_size": 48}, "MLX has no such quantization: .*group_size 48"),
        ({"bits": [4], "group_size": 64}, "MLX has no such quantization"),
        ({"mode": "int3"}, "MLX has no such quantization: mode 'int3'"),
        ({"mode": ["affine"]}, "MLX has no such quantization"),
        (None, f"it has no 'quantization', and '{Q_PROJ}.weight' is packed"),
        (
            {"bits": 8, "group_size": 64},
            f"'{Q_PROJ}.weight': its shape .* do not fit 8 bits",
        ),
        ({"bits": 4, "group_size": 64, Q_PROJ: {"bits": 9}}, f"no such .* of '{Q_PROJ}'"),
    ],
)
def test_packing_that_cannot_be_is_refused(
    make_checkpoint: MakeCheckpoint,
    tiny_weights: dict[str, mx.array],
    quantization: Any,
    reason: str,
) -> None:
    name = f"{Q_PROJ}.weight"
    packed, scales, biases = mx.quantize(tiny_weights[name], bits=4, group_size=64)
    weights = tiny_weights | {
        name: packed, f"{Q_PROJ}.scales": scales, f"{Q_PROJ}.biases": biases
    }  # fmt: skip
    folder = make_checkpoint(weights=weights, quantization=quantization)
    with pytest.raises(FormatError, match=reason), open_checkpoint(folder) as checkpoint:
        checkpoint.matrix(name)


def test_packed_weight_without_its_biases_is_refused(
    make_checkpoint: MakeCheckpoint, tiny_weights: dict[str, mx.array]
) -> None:
    packed, scales, _ = mx.quantize(tiny_weights[f"{Q_PROJ}.weight"], bits=4, group_size=64)
    weights = tiny_weights | {f"{Q_PROJ}.weight": packed, f"{Q_PROJ}.scales": scales}
    folder = make_checkpoint(weights=weights, quantization={"bits": 4, "group_size": 64})
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(FormatError, match=rf"'{Q_PROJ}\.biases': the checkpoint has no such"),
    ):
        checkpoint.matrix(f"{Q_PROJ}.weight")


def test_codes_of_another_tool_are_told_from_what_its_settings_say(
    make_checkpoint: MakeCheckpoint, tiny_weights: dict[str, mx.array]
) -> None:
    settings = {"quantization_config": {"quant_method": "fp8"}}
    with open_checkpoint(make_checkpoint("plain", **settings)) as checkpoint:
        assert not checkpoint.holds_codes  # though the configuration says so
    codes = tiny_weights | {f"{Q_PROJ}.weight": mx.zeros((64, 64), mx.uint8)}
    with open_checkpoint(make_checkpoint("codes", weights=codes, **settings)) as checkpoint:
        assert checkpoint.holds_codes
        assert checkpoint.quantizer.method == "fp8"


# Values that no factorisation can take.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
@pytest.mark.parametrize("place", [(0, 0), (2, 3)])
def test_value_that_is_not_finite_is_named(
    make_checkpoint: MakeCheckpoint, value: float, dtype: mx.Dtype, place: tuple[int, int]
) -> None:
    weight = np.ones((3, 4), np.float32)
    weight[place] = value
    folder = make_checkpoint(weights={"layer.weight": mx.array(weight).astype(dtype)})
    where = rf"'layer\.weight': 1 of 12 values .* first at \({place[0]}, {place[1]}\); repair it"
    with open_checkpoint(folder) as checkpoint, pytest.raises(FormatError, match=where):
        checkpoint.matrix("layer.weight")


def test_integer_tensor_is_no_weight(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(weights={"ids": mx.arange(4)})
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(FormatError, match="'ids': it holds I32, and a weight is"),
    ):
        checkpoint.matrix("ids")


def test_tensor_that_is_not_there_is_named(checkpoint_folder: Path) -> None:
    with (
        open_checkpoint(checkpoint_folder) as checkpoint,
        pytest.raises(FormatError, match="tiny: tensor 'nope': the checkpoint has no such tensor"),
    ):
        checkpoint.raw("nope")


# Folders that are no checkpoint, or no safe one.


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"none: there is no such folder; check the path"):
        open_checkpoint(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.gguf", "a GGUF file, not a folder"),
        ("model.bin", "a pickle, which can run code when it is loaded, not a folder"),
        ("model.safetensors", "it is not a folder"),
    ],
)
def test_file_in_place_of_a_folder_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FormatError, match=rf"{name}: {reason}"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pytorch_model.bin", "a pickle, which can run code"),
        ("consolidated.00.pth", "a pickle, which can run code"),
        ("model.pt", "a pickle, which can run code"),
        ("weights.npz", "a NumPy file"),
        ("model-Q4_K_M.gguf", "a GGUF file"),
        ("README.md", r"it holds no model\*\.safetensors;"),
        ("consolidated.safetensors", r"it holds no model\*\.safetensors \(there is consolidated"),
    ],
)
def test_folder_without_safetensors_is_refused_by_what_it_holds(
    checkpoint_folder: Path, name: str, reason: str
) -> None:
    (checkpoint_folder / "model.safetensors").rename(checkpoint_folder / name)
    with pytest.raises(FormatError, match=reason) as caught:
        open_checkpoint(checkpoint_folder)
    assert name in str(caught.value) or "README" in name


def test_pickle_beside_safetensors_does_no_harm(checkpoint_folder: Path) -> None:
    (checkpoint_folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with open_checkpoint(checkpoint_folder) as checkpoint:
        assert [path.name for path in checkpoint.weight_files] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "tiny: it holds no config.json"),
        ("", "config.json: not valid JSON"),
        ("[]", "config.json: the JSON is not an object"),
        ('{"a": 1, "a": 2}', "config.json: the key 'a' appears twice"),
        ('{"a": ' + "[" * 1000 + "]" * 1000 + "}", "config.json: .*nested more than 32 deep"),
    ],
)
def test_configuration_that_is_missing_or_broken_is_named(
    checkpoint_folder: Path, text: str | None, reason: str
) -> None:
    (checkpoint_folder / "config.json").unlink()
    if text is not None:
        (checkpoint_folder / "config.json").write_text(text)
    with pytest.raises(FormatError, match=reason):
        open_checkpoint(checkpoint_folder)


def shard_missing(folder: Path) -> None:
    (folder / SECOND).unlink()


def all_shards_missing(folder: Path) -> None:
    for shard in folder.glob("model*.safetensors"):
        shard.unlink()


def all_but_a_forgotten_file_missing(folder: Path) -> None:
    all_shards_missing(folder)
    save(folder / "model-mtp.safetensors", extra=mx.zeros(1))


def shard_missing_without_an_index(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / INDEX).unlink()


def shard_outside(folder: Path) -> None:
    save(folder.parent / "elsewhere.safetensors", extra=mx.zeros(1))
    edit_index(folder, lambda names: names.update(extra="../elsewhere.safetensors"))


def tensor_in_two_shards(folder: Path) -> None:
    first = mx.load(str(folder / FIRST))
    assert isinstance(first, dict)
    save(folder / FIRST, **{**first, "lm_head.weight": mx.zeros((2, 2))})


def shard_is_a_pickle(folder: Path) -> None:
    (folder / SECOND).write_bytes(b"\x80\x04\x95" + bytes(100))


def shard_cut(folder: Path) -> None:
    os.truncate(folder / SECOND, (folder / SECOND).stat().st_size - 10)


def shard_is_a_pipe(folder: Path) -> None:
    (folder / SECOND).unlink()
    os.mkfifo(folder / SECOND)


def shard_is_a_folder(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / SECOND).mkdir()


def shard_is_a_device(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to("/dev/zero")


def shard_leads_outside(folder: Path) -> None:
    (folder / SECOND).rename(folder.parent / "outside.safetensors")
    (folder / SECOND).symlink_to("../outside.safetensors")


def shard_leads_nowhere(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to("gone.safetensors")


def shard_leads_to_itself(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to(SECOND)


def index_leads_outside(folder: Path) -> None:
    (folder / INDEX).rename(folder.parent / INDEX)
    (folder / INDEX).symlink_to(f"../{INDEX}")


def configuration_leads_outside(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("spoil", "file", "reason"),
    [
        (shard_missing, SECOND, "a shard of this checkpoint that is not there"),
        (all_shards_missing, FIRST, "a shard of this checkpoint that is not there"),
        (all_but_a_forgotten_file_missing, FIRST, "a shard of this checkpoint that is not there"),
        (shard_missing_without_an_index, SECOND, "a shard of this checkpoint that is not there"),
        (shard_outside, INDEX, r"'extra': its shard '\.\./elsewhere\.safetensors' is not the pl"),
        (tensor_in_two_shards, "model-0000", r"'lm_head\.weight': it is in model-0000.*too"),
        (shard_is_a_pickle, SECOND, "a pickle, which can run code"),
        (shard_cut, SECOND, r"tensor '.*': its data end at byte \d+ of a file of \d+ bytes"),
        (shard_is_a_pipe, SECOND, "a named pipe, not a regular file"),
        (shard_is_a_folder, SECOND, "a directory, not a regular file"),
        (shard_is_a_device, SECOND, "a device, not a regular file"),
        (shard_leads_outside, SECOND, "a link that leaves the folder"),
        (shard_leads_nowhere, SECOND, r"a link to gone\.safetensors, which does not exist"),
        (shard_leads_to_itself, SECOND, "a link that leads back to itself"),
        (index_leads_outside, INDEX, "a link that leaves the folder"),
        (configuration_leads_outside, "config.json", "a link that leaves the folder"),
    ],
)
def test_spoilt_folder_is_refused_with_the_file_at_fault(
    sharded_folder: Path, spoil: Callable[[Path], None], file: str, reason: str
) -> None:
    spoil(sharded_folder)
    with pytest.raises(FormatError, match=reason) as caught:
        open_checkpoint(sharded_folder)
    assert str(caught.value).startswith(str(sharded_folder / file))


# An index that is wrong: mlx-lm reads the files, and so it is done here.


def file_left_out(folder: Path) -> None:
    save(folder / "model-mtp.safetensors", **{"mtp.fc.weight": mx.zeros((2, 2))})


def tensor_in_another_shard(folder: Path) -> None:
    edit_index(folder, lambda names: names.update({"lm_head.weight": SECOND}))


def tensor_nowhere(folder: Path) -> None:
    edit_index(folder, lambda names: names.update({"mtp.fc.weight": FIRST, "mtp.norm": FIRST}))


def tensor_of_no_file(folder: Path) -> None:
    edit_index(folder, lambda names: names.update({"mtp.fc.weight": "model-mtp.safetensors"}))


def tensor_left_out(folder: Path) -> None:
    edit_index(folder, lambda names: names.pop("lm_head.weight"))


def merged(folder: Path) -> None:
    shards = sorted(folder.glob("model-*.safetensors"))
    whole = {name: array for shard in shards for name, array in mx.load(str(shard)).items()}
    save(folder / "model.safetensors", **whole)
    for shard in shards:
        shard.unlink()


def merged_without_a_tensor(folder: Path) -> None:
    merged(folder)
    tensor_nowhere(folder)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (tensor_nowhere, rf"'mtp.fc.weight': it should be in {FIRST} and is nowhere \(and 1 more"),
        (tensor_of_no_file, r"'mtp.fc.weight': it should be in model-mtp.safetensors and is nowh"),
        (merged_without_a_tensor, rf"'mtp.fc.weight': it should be in {FIRST} and is nowhere \("),
        (tensor_in_another_shard, rf"'lm_head.weight': it should be in {SECOND} and is in model-"),
        (merged, r"tensor '.*': it should be in model-0000.* and is in model.safetensors \(and 20"),
        (tensor_left_out, r"'lm_head.weight': it is in model-0000.*, and the index leaves it out"),
        (file_left_out, r"'mtp.fc.weight': it is in model-mtp.safetensors, and the index leaves"),
    ],
)
def test_files_count_whatever_the_index_says(
    sharded_folder: Path,
    tiny_weights: dict[str, mx.array],
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    spoil(sharded_folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with open_checkpoint(sharded_folder) as checkpoint:
            extra = {"mtp.fc.weight"} if spoil is file_left_out else set()
            assert checkpoint.tensors.keys() == tiny_weights.keys() | extra
            for name, expected in tiny_weights.items():
                assert np.array_equal(pattern(checkpoint.read(name)), pattern(expected))
    said = [str(one.message) for one in caught if one.category is CheckpointWarning]
    assert any(re.search(reason, line) for line in said), said
    assert all(line.startswith(f"{sharded_folder / INDEX}: tensor ") for line in said)


def test_link_inside_the_folder_is_followed(sharded_folder: Path) -> None:
    (sharded_folder / SECOND).rename(sharded_folder / "data")
    (sharded_folder / SECOND).symlink_to("data")
    with open_checkpoint(sharded_folder) as checkpoint:
        assert all(checkpoint.raw(name).size for name in checkpoint.tensors)


def test_side_file_that_leads_outside_is_refused(checkpoint_folder: Path) -> None:
    (checkpoint_folder / "tokenizer.json").symlink_to("/etc/hostname")
    with (
        open_checkpoint(checkpoint_folder) as checkpoint,
        pytest.raises(FormatError, match=r"tokenizer\.json: a link that leaves the folder"),
    ):
        checkpoint.side_files()


def test_tensors_of_two_files_without_an_index_must_differ(checkpoint_folder: Path) -> None:
    save(checkpoint_folder / "model-copy.safetensors", **{"lm_head.weight": mx.zeros((2, 2))})
    with pytest.raises(FormatError, match=r"'lm_head\.weight': it is in model-copy\.safetensors"):
        open_checkpoint(checkpoint_folder)


def test_file_replaced_after_opening_is_noticed(
    sharded_folder: Path, make_checkpoint: MakeCheckpoint
) -> None:
    other = make_checkpoint("other", shards=3)
    with open_checkpoint(sharded_folder) as checkpoint:
        checkpoint.check_unchanged()
        (other / SECOND).replace(sharded_folder / SECOND)
        name = next(n for n, info in checkpoint.tensors.items() if info.file.name == SECOND)
        with pytest.raises(FormatError, match=rf"{SECOND}: it changed while it was being read"):
            checkpoint.raw(name)
        with pytest.raises(FormatError, match=rf"{SECOND}: it changed while it was being read"):
            checkpoint.check_unchanged()


# The Hub, out of reach, and its cache.


@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_repository_is_read_from_the_cache_of_the_hub(
    hub_cache: Any, tiny_weights: dict[str, mx.array], revision: str | None
) -> None:
    revision = hub_cache.commit if revision == "commit" else revision
    with open_checkpoint(hub_cache.repository, revision=revision) as checkpoint:
        assert checkpoint.name == hub_cache.repository
        assert checkpoint.revision == hub_cache.commit
        assert checkpoint.tensors.keys() == tiny_weights.keys()
        assert np.array_equal(
            pattern(checkpoint.read("lm_head.weight")), pattern(tiny_weights["lm_head.weight"])
        )
        assert [*checkpoint.side_files()] == [
            "generation_config.json", "tokenizer.model", "tokenizer_config.json"
        ]  # fmt: skip


def test_snapshot_folder_knows_its_repository(hub_cache: Any) -> None:
    with open_checkpoint(hub_cache.snapshot) as checkpoint:
        assert (checkpoint.name, checkpoint.revision) == (hub_cache.repository, hub_cache.commit)


def test_link_to_the_blobs_of_another_repository_is_refused(hub_cache: Any) -> None:
    blobs = hub_cache.folder / "models--someone--else" / "blobs"
    blobs.mkdir(parents=True)
    shard = hub_cache.snapshot / SECOND
    shard.resolve().rename(blobs / "blob")
    shard.unlink()
    shard.symlink_to(blobs / "blob")
    with pytest.raises(FormatError, match=rf"{SECOND}: a link that leaves the folder"):
        open_checkpoint(hub_cache.repository)


def test_snapshot_that_lacks_a_shard_is_refused(hub_cache: Any) -> None:
    (hub_cache.snapshot / SECOND).unlink()
    with pytest.raises(FormatError, match=rf"{SECOND}: a shard of this checkpoint that is not"):
        open_checkpoint(hub_cache.repository)


def list_files(hub_cache: Any, *names: str) -> None:
    """Write the listing of a repository that the Hub's library keeps beside its snapshots."""
    listed = [*(path.name for path in hub_cache.snapshot.iterdir()), *names]
    files = {name: {"size": 1, "blob_id": "0" * 40} for name in listed}
    (hub_cache.home / "trees").mkdir()
    listing = json.dumps({"format_version": 1, "files": files})
    (hub_cache.home / "trees" / f"{hub_cache.commit}.json").write_text(listing)


def test_cache_that_lacks_what_is_not_needed_will_do_offline(
    hub_cache: Any, tiny_weights: dict[str, mx.array]
) -> None:
    list_files(hub_cache, "LICENSE")  # which mlx-lm does not download
    with open_checkpoint(hub_cache.repository) as checkpoint:
        assert checkpoint.tensors.keys() == tiny_weights.keys()


def test_link_to_nothing_in_the_cache_is_named(hub_cache: Any) -> None:
    list_files(hub_cache)
    (hub_cache.snapshot / SECOND).resolve().unlink()
    with pytest.raises(FormatError, match=rf"{SECOND}: a link to .*, which does not exist; downl"):
        open_checkpoint(hub_cache.repository)


def test_cache_that_cannot_be_written_is_read(
    hub_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = huggingface_hub.snapshot_download

    def refused(*words: Any, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            return original(*words, local_files_only=True, **options)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(hub_cache.home / "blobs"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    open_checkpoint(hub_cache.repository).close()
    with pytest.raises(OSError, match=r"Read-only file system: '.*blobs'"):
        open_checkpoint("someone/unknown")


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("revision", [None, "v2", "f" * 40])
def test_repository_that_neither_hub_nor_cache_can_give_is_one_line(revision: str | None) -> None:
    with pytest.raises(FormatError, match=r"someone/unknown: .*Hub cannot be reached") as caught:
        open_checkpoint("someone/unknown", revision=revision)
    assert str(caught.value).isprintable()


@pytest.mark.usefixtures("hub_cache")
def test_name_that_can_be_no_repository_is_one_line() -> None:
    with pytest.raises(FormatError, match=r"a--b/c: .* no name for a repository; check the name"):
        open_checkpoint("a--b/c")


class Refusal(BaseHTTPRequestHandler):
    """A Hub that answers every request for a repository with the error of that name."""

    def do_GET(self) -> None:
        code = self.path.split("/")[4]
        self.send_response({"GatedRepo": 403, "Teapot": 418}.get(code, 404))
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def refusing_hub(hub_cache: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("refusing_hub")
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("RepoNotFound", "there is no such folder, nor such a repository on the Hub; check"),
        ("RevisionNotFound", "the repository has no revision 'v7'; name a branch"),
        ("GatedRepo", "the Hub asks for permission; accept its terms there, then run `hf auth"),
        ("Teapot", "the Hub cannot be reached, and its cache lacks files|the Hub answered"),
    ],
)
def test_answer_of_the_hub_becomes_one_line(code: str, reason: str) -> None:
    with pytest.raises(FormatError, match=f"someone/{code}: .*{reason}") as caught:
        open_checkpoint(f"someone/{code}", revision="v7")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["llama", "./owner/name", "/owner/name", "a/b/c", "a/../b", "-a/b"]
)
def test_name_without_owner_or_with_a_path_is_never_looked_up(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(FormatError, match="there is no such folder; check the path"):
        open_checkpoint(name)


def test_only_the_files_needed_are_asked_for(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(checkpoint_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    open_checkpoint("owner/name", revision="v1").close()
    patterns = asked.pop("allow_patterns")
    assert asked == {"repository": "owner/name", "revision": "v1"}
    assert {"config.json", INDEX, "model*.safetensors", "tokenizer.json"} <= set(patterns)
    assert not any(pattern.endswith((".py", ".bin", "*.json", "*")) for pattern in patterns[:3])


def test_revision_of_a_folder_is_refused(checkpoint_folder: Path) -> None:
    with pytest.raises(ValueError, match="`revision` must be None for a folder, got 'main'"):
        open_checkpoint(checkpoint_folder, revision="main")
