"""projections: the matrices of real mlx-lm models, found by type."""

from importlib import import_module

import mlx.core as mx
import mlx.nn as nn
import pytest
from plastic_core.layer.projection import projections
from plastic_core.layer.rank_layer import RankLayer

LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
EXPERTS = {
    "num_experts": 6,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
GPT2 = {
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 64,
    "n_ctx": 64,
    "layer_norm_epsilon": 1e-5,
    "vocab_size": 40,
}


def build(name, **config):
    pytest.importorskip("mlx_lm")
    module = import_module(f"mlx_lm.models.{name}")
    return module.Model(module.ModelArgs.from_dict({**LLAMA, "model_type": name, **config}))


def roles(model, block=0):
    """Role, shape and experts by path within one block."""
    found = {}
    for p in projections(model):
        _, here, name = p.path.partition(f".{block}.")
        if here:
            found[name] = (p.role, p.shape, p.experts)
    return found


ATTENTION = {
    "self_attn.q_proj": ("q", (32, 32), None),
    "self_attn.k_proj": ("k", (16, 32), None),
    "self_attn.v_proj": ("v", (16, 32), None),
    "self_attn.o_proj": ("o", (32, 32), None),
}
MLP = {
    "mlp.gate_proj": ("gate", (48, 32), None),
    "mlp.up_proj": ("up", (48, 32), None),
    "mlp.down_proj": ("down", (32, 48), None),
}


def experts(prefix, hidden):
    return {
        f"{prefix}.switch_mlp.gate_proj": ("gate", (hidden, 32), 6),
        f"{prefix}.switch_mlp.up_proj": ("up", (hidden, 32), 6),
        f"{prefix}.switch_mlp.down_proj": ("down", (32, hidden), 6),
    }


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2", "olmo2"])
def test_the_seven_matrices_of_a_llama_like_block_are_found_and_nothing_else(name):
    extra = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    model = build(name, query_pre_attn_scalar=8, **extra)
    assert roles(model, 0) == roles(model, 1) == {**ATTENTION, **MLP}


def test_fused_matrices_are_reported_as_fused():
    found = roles(build("phi3"))
    assert found == {
        "self_attn.qkv_proj": ("qkv", (64, 32), None),
        "self_attn.o_proj": ("o", (32, 32), None),
        "mlp.gate_up_proj": ("gate_up", (96, 32), None),
        "mlp.down_proj": ("down", (32, 48), None),
    }


def test_a_layer_that_returns_several_arrays_is_left_out():
    sizes = {"hidden_dim": 32, "num_heads": 4, "num_kv_heads": 2, "hidden_dim_scale_factor": 1.5}
    model = build("afm7", num_layers=2, num_kv_reuse_layers=1, **sizes)
    assert roles(model, 0).keys() == {
        "self_attn.out_proj",
        "self_attn.q_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    }


def test_the_same_name_is_told_apart_by_its_parent():
    assert roles(build("gpt2", **GPT2)) == {
        "attn.c_attn": ("qkv", (96, 32), None),
        "attn.c_proj": ("o", (32, 32), None),
        "mlp.c_fc": ("up", (128, 32), None),
        "mlp.c_proj": ("down", (32, 128), None),
    }


def test_numbered_feed_forward_weights_are_known_by_their_third():
    assert roles(build("internlm2", bias=False)) == {
        "attention.wqkv": ("qkv", (64, 32), None),
        "attention.wo": ("o", (32, 32), None),
        "feed_forward.w1": ("gate", (48, 32), None),
        "feed_forward.w2": ("down", (32, 48), None),
        "feed_forward.w3": ("up", (48, 32), None),
    }


def test_a_query_key_value_matrix_is_found_under_its_long_name():
    found = roles(build("gpt_neox", rotary_emb_base=10000, rotary_pct=0.5, layer_norm_eps=1e-5))
    assert {role for role, *_ in found.values()} == {"qkv", "o", "up", "down"}


def test_experts_are_stacks_and_their_router_is_left_out():
    found = roles(build("mixtral", **EXPERTS))
    assert found == {**ATTENTION, **experts("block_sparse_moe", 48)}


def test_shared_experts_are_found_and_both_gates_are_left_out():
    shared = {
        "mlp.shared_expert.gate_proj": ("gate", (28, 32), None),
        "mlp.shared_expert.up_proj": ("up", (28, 32), None),
        "mlp.shared_expert.down_proj": ("down", (32, 28), None),
    }
    found = roles(build("qwen2_moe", **EXPERTS))
    assert found == {**ATTENTION, **experts("mlp", 20), **shared}
    assert roles(build("qwen3_moe", **EXPERTS)) == {**ATTENTION, **experts("mlp", 20)}


def test_a_matrix_with_as_many_outputs_as_there_are_experts_is_no_router_for_that():
    sizes = {"num_experts": 16, "shared_expert_intermediate_size": 16}
    found = roles(build("qwen2_moe", **{**EXPERTS, **sizes}))
    assert found["self_attn.k_proj"] == ("k", (16, 32), None)
    assert found["mlp.shared_expert.up_proj"] == ("up", (16, 32), None)
    assert "mlp.gate" not in found


@pytest.mark.parametrize("name", ["llama", "qwen2_moe"])
def test_quantising_changes_neither_paths_nor_shapes(name):
    config = {**EXPERTS, "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32}
    config["shared_expert_intermediate_size"] = 32
    dense, packed = (build(name, **config) for _ in range(2))
    nn.quantize(packed, group_size=32, bits=4)
    assert roles(packed) == roles(dense)


@pytest.mark.parametrize("keep_base", [False, True])
def test_a_rank_layer_is_one_matrix_with_or_without_backbone(keep_base):
    model = build("llama")
    attention = model.layers[0].self_attn
    attention.q_proj = RankLayer.from_linear(attention.q_proj, 3, keep_base=keep_base)
    found = projections(model)
    assert roles(model) == {**ATTENTION, **MLP}
    assert found[0].module is attention.q_proj


def test_the_order_is_that_of_definition_and_of_the_blocks():
    paths = [p.path for p in projections(build("llama", num_hidden_layers=11))]
    names = [*ATTENTION, "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"]
    assert paths == [f"model.layers.{i}.{name}" for i in range(11) for name in names]


def test_a_path_leads_update_modules_to_the_layer():
    model = build("llama")
    for p in projections(model):
        module = model
        for part in p.path.split("."):
            module = module[int(part)] if part.isdigit() else module[part]
        assert module is p.module


class Block(nn.Module):
    """A block without mlx-lm: a known name, an unknown one, a gate with one output."""

    def __init__(self, shared):
        super().__init__()
        self.q_proj = nn.Linear(4, 8)
        self.mystery = nn.Linear(4, 3)
        self.gate = nn.Linear(4, 1)
        self.shared = shared


def test_an_unknown_name_is_other_and_what_blocks_share_comes_once():
    model = nn.Module()
    shared = nn.Linear(4, 4)
    model.embed, model.head = nn.Embedding(5, 4), nn.Linear(4, 5)
    model.blocks = [Block(shared), Block(shared)]
    assert [(p.path, p.role) for p in projections(model)] == [
        ("blocks.0.q_proj", "q"),
        ("blocks.0.mystery", "other"),
        ("blocks.0.shared", "other"),
        ("blocks.1.q_proj", "q"),
        ("blocks.1.mystery", "other"),
    ]


def test_the_matrix_inside_a_lora_keeps_its_role():
    lora = pytest.importorskip("mlx_lm.tuner.lora")
    model = build("llama")
    attention = model.layers[0].self_attn
    attention.q_proj = lora.LoRALinear.from_base(attention.q_proj)
    assert roles(model)["self_attn.q_proj.linear"] == ("q", (32, 32), None)


def test_nothing_is_evaluated():
    model = build("llama", hidden_size=32, intermediate_size=48)
    before = mx.get_active_memory()
    projections(model)
    assert mx.get_active_memory() <= before
