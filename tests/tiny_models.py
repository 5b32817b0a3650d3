"""Every causal and sequence-to-sequence language model of transformers, shrunk to run in a test."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

PAD = 0
VOCABULARY = 300
MAX_PARAMETERS = 3_000_000

# What a config's fields are called differs from model to model; each takes those it has.
SMALL: dict[str, Any] = {
    **dict.fromkeys(
        "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size word_embed_proj_dim "
        "lru_width hidden_dim output_dim out_hidden_size audio_hidden_size adapter_in_dim "
        "adapter_out_dim adapter_input_size pronunciation_embed_dim shape_embed_dim "
        "nemo_conv_channels ext_pw_out_channel depthwise_separable_out_channel".split(),
        64,
    ),
    **dict.fromkeys(
        "num_hidden_layers n_layer n_layers num_layers num_blocks encoder_layers decoder_layers "
        "num_encoder_layers num_decoder_layers depth".split(),
        2,
    ),
    **dict.fromkeys(
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
        "decoder_attention_heads mamba_n_heads mamba_num_heads n_mamba_heads "
        "linear_num_value_heads linear_num_key_heads linear_num_heads index_n_heads".split(),
        4,
    ),
    **dict.fromkeys("num_key_value_heads kv_n_heads num_kv_heads".split(), 2),
    **dict.fromkeys(
        "head_dim d_kv v_head_dim dim_head linear_key_head_dim linear_value_head_dim "
        "linear_head_dim attention_head_dim index_head_dim hidden_size_per_layer_input".split(),
        16,
    ),
    **dict.fromkeys(
        "intermediate_size n_inner ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim "
        "dim_ff mlp_dim ffn_hidden_size expert_ffn_hidden_size".split(),
        96,
    ),
    **dict.fromkeys(
        "moe_intermediate_size shared_expert_intermediate_size q_lora_rank mamba_d_head "
        "mamba_head_dim router_hidden_size shared_intermediate_size".split(),
        32,
    ),
    **dict.fromkeys(
        "num_experts zero_expert_num prompt_types n_routed_experts num_local_experts moe_num_experts num_experts_per_layer".split(),
        4,
    ),
    **dict.fromkeys("num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k".split(), 2),
    **dict.fromkeys(
        "n_group topk_group n_groups num_expert_group o_groups prompt_types mamba_n_groups num_mem_blocks".split(), 1
    ),
    **dict.fromkeys("vocab_size vocab_size_per_layer_input src_vocab_size tgt_vocab_size "
        "pronunciation_vocab_size shape_vocab_size".split(), VOCABULARY),
    **dict.fromkeys("max_position_embeddings n_positions n_ctx max_seq_len".split(), 128),
    **dict.fromkeys(
        "attention_window block_size time_step_rank mamba_dt_rank mamba_d_state state_size "
        "chunk_size mamba_chunk_size qk_rope_head_dim qk_nope_head_dim rotary_dim adapter_rank "
        "prompt_length output_channels downsample_hidden_size o_lora_rank bias_max_distance hc_lowrank "
        "index_topk gated_norm_rank".split(),
        8,
    ),
    "kv_lora_rank": 16,
    "image_size": 32,
    "crop_size": 32,
    "patch_size": 16,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "use_cache": False,
}

# One entry for each field that lists a kind for every layer.
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
LAYER_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types")

_QWEN4_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
_TINY_CODEC = {"num_filters": 4, "depths": [1, 1], "downsampling_ratios": [2]}

# Where the rule does not do: constraints between a config's fields.
SPECIAL: dict[str, dict[str, Any]] = {
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_config": {"hidden_size_global": 64},
        "decoder_config": {"hidden_size_global": 64},
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {
        "text_config": {"per_layer_config": {}, "head_dim": 16},
        "vision_config": {"per_layer_config": {}},
    },
    "dots3_note_text": {"per_layer_config": {}, "head_dim": 16},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"head_dim": 32},
    "nemo_speechlm": {"word_timestamp_config": {"blank_token_id": VOCABULARY - 1}},
    "qwen4_exp": {"text_config": _QWEN4_INDEXER},
    "qwen4_exp_text": _QWEN4_INDEXER,
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "axial_pos_embds": False,
    },
    "vibevoice_asr": {
        "acoustic_tokenizer_encoder_config": _TINY_CODEC,
        "semantic_tokenizer_encoder_config": _TINY_CODEC,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "zaya": {"num_experts_per_tok": 1},
}


class Case(NamedTuple):
    """A model type, and the task it is built for."""

    model_type: str
    task: str

    def __str__(self) -> str:
        return f"{self.model_type}-{self.task}"


CASES = [Case(name, "causal") for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES] + [
    Case(name, "seq2seq") for name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
]


def tiny_config(model_type: str, **fields: Any) -> PreTrainedConfig:
    """The model type's default config, shrunk, with some fields as given."""
    return _shrink(CONFIG_MAPPING[model_type], {**SPECIAL.get(model_type, {}), **fields})


def tiny_model(case: Case, **fields: Any) -> PreTrainedModel:
    """A randomly initialised model of a few ten thousand parameters, in training mode."""
    config = tiny_config(case.model_type, **fields)
    auto = AutoModelForCausalLM if case.task == "causal" else AutoModelForSeq2SeqLM
    # Counted before any memory is taken: a default size that slipped through may be billions.
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"{size:,} parameters after shrinking")
    return auto.from_config(config).train()


def _shrink(kind: type[PreTrainedConfig], given: Mapping[str, Any]) -> PreTrainedConfig:
    default = kind()
    known = set(default.to_dict())
    if default.is_encoder_decoder:
        known.add("decoder_start_token_id")
    fields = {name: value for name, value in SMALL.items() if name in known}
    for name in LAYER_LISTS:
        kinds = getattr(default, name, None)
        if name in known and isinstance(kinds, list):
            fields[name] = kinds
    if "qk_rope_head_dim" in known:  # latent attention: derived from it
        fields["head_dim"] = SMALL["qk_rope_head_dim"]
        fields["num_key_value_heads"] = fields.get("num_attention_heads")
    for name in kind.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PreTrainedConfig):
            fields[name] = _shrink(type(part), given.get(name, {}))
    own = {name: value for name, value in given.items() if name not in kind.sub_configs}
    return kind(**(_few_layers(fields) | own))


def _few_layers(fields: dict[str, Any]) -> dict[str, Any]:
    """One layer of each kind in place of the default's dozens, as many in every list."""
    kinds = {
        name: list(dict.fromkeys(value))
        for name, value in fields.items()
        if name in LAYER_LISTS and isinstance(value, list)
    }
    if not kinds:
        return fields
    depth = max(2, *map(len, kinds.values()))
    lists = {name: some + some[-1:] * (depth - len(some)) for name, some in kinds.items()}
    return fields | {name: depth for name in DEPTHS if name in fields} | lists
