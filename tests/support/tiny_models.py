"""The language models of transformers, shrunk to run in a test, and what their noise should be."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from recorder import Call
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    EncoderDecoderConfig,
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
LENGTHS = (13, 9, 6)

# What a config's fields are called differs from model to model; each takes those it has.
_SIZES: dict[int, str] = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input src_vocab_size tgt_vocab_size "
    "pronunciation_vocab_size shape_vocab_size",
    128: "max_position_embeddings n_positions n_ctx max_seq_len",
    96: "intermediate_size n_inner ffn_dim d_ff dim_ff mlp_dim encoder_ffn_dim decoder_ffn_dim "
    "ffn_hidden_size expert_ffn_hidden_size",
    64: "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size word_embed_proj_dim "
    "lru_width hidden_dim output_dim out_hidden_size audio_hidden_size adapter_in_dim "
    "adapter_out_dim adapter_input_size pronunciation_embed_dim shape_embed_dim "
    "nemo_conv_channels ext_pw_out_channel depthwise_separable_out_channel",
    32: "moe_intermediate_size shared_expert_intermediate_size q_lora_rank mamba_d_head "
    "mamba_head_dim router_hidden_size image_size crop_size",
    16: "head_dim d_kv v_head_dim dim_head linear_key_head_dim linear_value_head_dim "
    "linear_head_dim attention_head_dim index_head_dim kv_lora_rank "
    "hidden_size_per_layer_input patch_size",
    8: "attention_window block_size time_step_rank mamba_dt_rank mamba_d_state state_size "
    "chunk_size mamba_chunk_size qk_rope_head_dim qk_nope_head_dim rotary_dim adapter_rank "
    "index_topk o_lora_rank hc_lowrank prompt_length output_channels downsample_hidden_size "
    "bias_max_distance",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads mamba_n_heads mamba_num_heads n_mamba_heads "
    "linear_num_value_heads linear_num_key_heads linear_num_heads index_n_heads num_experts "
    "n_routed_experts num_local_experts moe_num_experts zero_expert_num prompt_types",
    2: "num_hidden_layers n_layer n_layers num_layers num_blocks encoder_layers decoder_layers "
    "num_encoder_layers num_decoder_layers depth num_key_value_heads kv_n_heads num_kv_heads "
    "num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k",
    1: "n_group topk_group n_groups num_expert_group mamba_n_groups num_mem_blocks o_groups "
    "adapter_merge_size spatial_merge_size",
}
SMALL: dict[str, Any] = {
    **{name: size for size, names in _SIZES.items() for name in names.split()},
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "scale_embedding": True,
    "use_cache": False,
}

# Fields that list a kind for every layer, and those that say how many layers there are.
LAYER_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types")
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

_QWEN4_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
_TINY_CODEC = {"num_filters": 4, "depths": [1, 1], "downsampling_ratios": [2]}

# Where that does not do: constraints between a config's fields.
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


class NotBuiltError(Exception):
    """Why a model type is not tested."""


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
    if model_type == "encoder-decoder":
        return EncoderDecoderConfig.from_encoder_decoder_configs(
            tiny_config("bert"), tiny_config("bert"), decoder_start_token_id=1, pad_token_id=PAD
        )
    return _shrink(CONFIG_MAPPING[model_type], {**SPECIAL.get(model_type, {}), **fields})


def tiny_model(model_type: str, auto: Any = AutoModelForCausalLM, **fields: Any) -> PreTrainedModel:
    """A randomly initialised model of under ``MAX_PARAMETERS``, in training mode."""
    config = tiny_config(model_type, **fields)
    # Counted before memory is taken: a default size that slipped through may be billions.
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"{size:,} parameters after shrinking")
    torch.manual_seed(0)
    return auto.from_config(config).train()


def build(case: Case) -> PreTrainedModel:
    """The case's model, shown to run.

    Raises:
        NotBuiltError: If this version of transformers cannot build it small, or cannot run it on
            text alone.
    """
    auto = AutoModelForCausalLM if case.task == "causal" else AutoModelForSeq2SeqLM
    try:
        model = tiny_model(case.model_type, auto)
        with torch.no_grad():
            model(**padded_batch(model))
    except Exception as error:
        # What a config, a missing dependency or a kernel raises is any kind of exception.
        lines = str(error).strip().splitlines()
        raise NotBuiltError(
            f"{type(error).__name__}: {lines[-1] if lines else ''}"[:200]
        ) from error
    return model


def padded_batch(model: PreTrainedModel, side: str = "right") -> dict[str, Tensor]:
    """(3, 13) tokens, padded, as ``unique_ids``; for an encoder-decoder, the decoder's too."""
    ids = unique_ids(LENGTHS, side=side)
    batch = {"input_ids": ids, "attention_mask": (ids != PAD).to(torch.int64)}
    if model.config.is_encoder_decoder:
        target = torch.where(ids != PAD, ids + 100, PAD)
        batch |= {"decoder_input_ids": target, "decoder_attention_mask": batch["attention_mask"]}
    if model.config.model_type == "voxtral_realtime":  # adds audio to every token's embedding
        frames = model.config.downsample_factor * ids.shape[1]
        batch["encoder_inputs_embeds"] = torch.zeros(ids.shape[0], frames, 64)
    return batch


def unique_ids(lengths: Sequence[int], side: str = "right") -> Tensor:
    """(B, T) tokens, padded; no real token occurs twice, so its id says where it was."""
    shape = len(lengths), max(lengths)
    ids = torch.arange(10, 10 + shape[0] * shape[1]).view(shape)
    place = torch.arange(shape[1]).expand(shape)
    length = torch.tensor(lengths).unsqueeze(1)
    real = place < length if side == "right" else place >= shape[1] - length
    return torch.where(real, ids, PAD)


class Side(NamedTuple):
    """What one embedding of a model should have noised.

    Attributes:
        ids: (B, T) tokens; no noised one twice.
        noised: (B, T) bool.
        lengths: L of each row's document.
    """

    ids: Tensor
    noised: Tensor
    lengths: list[int]

    @classmethod
    def of(cls, ids: Tensor) -> "Side":
        """All tokens but padding, one document in each row."""
        return cls(ids, ids != PAD, (ids != PAD).sum(1).tolist())


def check_noise(calls: list[Call], *sides: Side, alpha: float, scale: float | None = None) -> None:
    """One noised call per side: g * alpha / sqrt(3 L D) on its noised tokens, exactly 0 elsewhere.

    Args:
        calls: From ``recorder.noised``, of a pass with ``distribution="rademacher"``, where |eps|
            is 1/sqrt(3) in every draw and so the magnitude is known, not an average.
        *sides: The embeddings that should have been noised.
        alpha: alpha of the pass.
        scale: g; None to measure it.
    """
    assert len(calls) == len(sides)
    for call in calls:
        fits = [side for side in sides if torch.isin(side.ids[side.noised], call.ids).all()]
        assert len(fits) == 1, "the noised tokens are not the batch's"
        ids, noised, lengths = fits[0]
        # By token id, not by place: some models transpose, flatten or lengthen the batch.
        magnitude = torch.zeros(4 * VOCABULARY)
        for row, mask, length in zip(ids, noised, lengths, strict=True):
            magnitude[row[mask]] = alpha / (3 * length * call.clean.shape[-1]) ** 0.5
        g = lookup_scale(call) if scale is None else scale
        expected = (g * magnitude[call.ids.long()]).unsqueeze(-1).expand_as(call.noise)
        torch.testing.assert_close(call.noise.abs(), expected, rtol=1e-4, atol=1e-6)
        assert not call.noise[expected == 0].any()
        hit = call.ids[call.noise.any(-1)].sort().values.long()
        assert torch.equal(hit, ids[noised].sort().values)
        assert call.noise.min() < 0 < call.noise.max()


def lookup_scale(call: Call) -> float:
    """g, measured: what the module multiplied the rows of its table by."""
    table: Tensor = call.module.weight.detach()  # pyright: ignore
    rows = nn.functional.embedding(call.ids, table)
    scale = float(call.clean.norm() / rows.norm())
    # Inkling normalises each row, so there is no one factor, and g is 1.
    return scale if torch.allclose(call.clean, scale * rows, rtol=1e-4) else 1.0


def _shrink(kind: type[PreTrainedConfig], given: Mapping[str, Any]) -> PreTrainedConfig:
    default = kind()
    known = set(default.to_dict())
    if default.is_encoder_decoder:
        known.add("decoder_start_token_id")
    fields = {name: value for name, value in SMALL.items() if name in known}
    for name in LAYER_LISTS:
        if name in known and isinstance(getattr(default, name), list):
            fields[name] = getattr(default, name)
    if "qk_rope_head_dim" in known:  # latent attention: its heads are as wide as their rotary part
        fields["head_dim"] = SMALL["qk_rope_head_dim"]
        fields["num_key_value_heads"] = SMALL["num_attention_heads"]
    for name in kind.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PreTrainedConfig):
            fields[name] = _shrink(type(part), given.get(name, {}))
    own = {name: value for name, value in given.items() if name not in kind.sub_configs}
    return kind(**(_few_layers(fields) | own))


def _few_layers(fields: dict[str, Any]) -> dict[str, Any]:
    """One layer of each kind in place of the default's dozens, as many in every list."""
    kinds = {name: list(dict.fromkeys(fields[name])) for name in LAYER_LISTS if name in fields}
    if not kinds:
        return fields
    depth = max(2, *map(len, kinds.values()))
    lists = {name: some + some[-1:] * (depth - len(some)) for name, some in kinds.items()}
    return fields | {name: depth for name in DEPTHS if name in fields} | lists
