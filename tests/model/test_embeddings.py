"""Which module is noised, and which of its tokens, where a model or PEFT goes its own way."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from recorder import Call, noised, recorded, snapshot
from tiny_models import (
    PAD,
    Side,
    check_noise,
    lookup_scale,
    padded_batch,
    tiny_model,
    unique_ids,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
)

from neft_plugins import NEFTConfig, NEFTHandle, attach_neft
from neft_plugins.model import embeddings as finder

ALPHA = 5.0
CONFIG = NEFTConfig(alpha=ALPHA, distribution="rademacher", seed=7)


@contextmanager
def noise_on(model: nn.Module, config: NEFTConfig = CONFIG, **options: Any) -> Iterator[NEFTHandle]:
    """The noise; nothing of it may be left behind."""
    before = snapshot(model)
    with attach_neft(model, config, **options) as neft:
        yield neft
    assert snapshot(model) == before


def check(calls: list[Call], *sides: Side, scale: float | None = None) -> None:
    check_noise(calls, *sides, alpha=ALPHA, scale=scale)


# Models that are neither causal nor encoder-decoders


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "deberta-v2", "longformer", "albert"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_masked_language_models(model_type: str, side: str) -> None:
    """Longformer lengthens the batch to its attention window; those tokens get nothing."""
    model = tiny_model(model_type, AutoModelForMaskedLM)
    batch = padded_batch(model, side)
    with noise_on(model):
        calls = noised(model, **batch)
    check(calls, Side.of(batch["input_ids"]))
    width = batch["input_ids"].shape[1]
    assert calls[0].ids.shape[1] == (16 if model_type == "longformer" else width)
    assert calls[0].module is model.get_input_embeddings()


# Models that rearrange the batch


@pytest.mark.parametrize("lengths", [(13, 9, 6), (3, 2, 1), (2, 3, 1), (1, 1)], ids=str)
def test_xlnet_transposes_its_tokens(lengths: tuple[int, ...]) -> None:
    """Also where B == T, and shapes do not tell."""
    model = tiny_model("xlnet")
    ids = unique_ids(lengths)
    with noise_on(model):
        calls = noised(model, input_ids=ids, attention_mask=(ids != PAD).long())
    assert torch.equal(calls[0].ids, ids.T)
    check(calls, Side.of(ids))


@pytest.mark.parametrize("lengths", [(3, 2, 1), (2, 3, 1), (4, 4, 1, 2)], ids=str)
def test_a_square_batch_is_not_transposed(lengths: tuple[int, ...]) -> None:
    model = tiny_model("llama")
    ids = unique_ids(lengths)
    with noise_on(model):
        check(noised(model, input_ids=ids, attention_mask=(ids != PAD).long()), Side.of(ids))


def test_cpmant_puts_prompt_tokens_before() -> None:
    model = tiny_model("cpmant")
    batch = padded_batch(model)
    with noise_on(model):
        calls = noised(model, **batch)
    check(calls, Side.of(batch["input_ids"]))
    prompt = model.config.prompt_length
    assert calls[0].noise.shape[1] == batch["input_ids"].shape[1] + prompt
    assert not calls[0].noise[:, :prompt].any()


@pytest.mark.parametrize(
    ("model_type", "width"),
    [("led", 13), ("led", 16), ("led", 4), ("bigbird_pegasus", 90), ("bigbird_pegasus", 96)],
)
def test_padding_that_a_model_embeds_by_itself(model_type: str, width: int) -> None:
    """It fills up the last window or block in a second call, which may be as wide as the first."""
    model = tiny_model(model_type, AutoModelForSeq2SeqLM)
    ids = unique_ids([width, 3, 1] if width < 20 else [width, 40])
    batch = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    with noise_on(model):
        with recorded(model, model.modules()) as every:
            calls = noised(model, **batch, decoder_input_ids=ids[:, :3])
    embedded = [call for call in every if call.module is calls[0].module]
    assert len(embedded) == (1 if width % 8 == 0 else 2)
    check(calls, Side.of(ids))


class Flat(nn.Module):
    """As ModernBERT with FlashAttention: one long row, with its padding or without."""

    def __init__(self, unpad: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 16)
        self.unpad = unpad

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.words(input_ids[attention_mask.bool()] if self.unpad else input_ids.flatten())


@pytest.mark.parametrize("unpad", [True, False])
@pytest.mark.parametrize("side", ["right", "left"])
def test_flattened_tokens(unpad: bool, side: str) -> None:
    model = Flat(unpad)
    ids = unique_ids((7, 4, 1), side=side)
    with noise_on(model, embedding="words"):
        calls = noised(model, input_ids=ids, attention_mask=(ids != PAD).long())
    assert calls[0].ids.ndim == 1
    check(calls, Side.of(ids))


# Scaled, tied, multimodal


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text", "gemma4_text", "xglm"])
def test_noise_is_relative_to_the_lookup_where_the_module_scales_it(model_type: str) -> None:
    model = tiny_model(model_type)
    batch = padded_batch(model)
    with noise_on(model):
        check(noised(model, **batch), Side.of(batch["input_ids"]), scale=64**0.5)


@pytest.mark.parametrize(("scale_embedding", "scale"), [(True, 8.0), (False, 1.0)])
def test_bart_scales_if_its_config_says_so(scale_embedding: bool, scale: float) -> None:
    model = tiny_model("bart", AutoModelForSeq2SeqLM, scale_embedding=scale_embedding)
    batch = padded_batch(model)
    with noise_on(model):
        check(noised(model, **batch), Side.of(batch["input_ids"]), scale=scale)


def test_tied_output_weights_stay_clean() -> None:
    model = tiny_model("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    batch = padded_batch(model)
    before = model.lm_head.weight.detach().clone()
    states: list[Tensor] = []
    tap = model.lm_head.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    with noise_on(model):
        logits = model(**batch).logits
    tap.remove()
    torch.testing.assert_close(logits, states[0] @ before.T)
    assert torch.equal(model.lm_head.weight, before)
    logits.sum().backward()
    assert model.lm_head.weight.grad is not None


IMAGE = 299
TOKENS_PER_IMAGE = 4


def tiny_llava() -> tuple[PreTrainedModel, dict[str, Tensor]]:
    model = tiny_model("llava", AutoModelForImageTextToText, image_token_id=IMAGE)
    return model, {"pixel_values": torch.randn(2, 3, 32, 32)}


def tiny_qwen_vl() -> tuple[PreTrainedModel, dict[str, Tensor]]:
    vision = {"temporal_patch_size": 2, "in_channels": 3, "hidden_size": 64}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    model = tiny_model(
        "qwen2_vl",
        AutoModelForImageTextToText,
        image_token_id=IMAGE,
        vision_start_token_id=298,
        vision_config=vision,
        text_config={"rope_parameters": rope},
    )
    grid = torch.tensor([[1, 2, 2], [1, 2, 2]])
    kinds = torch.zeros(3, 11, dtype=torch.long)
    kinds[:2, 2:6] = 1
    pixels = torch.randn(2 * TOKENS_PER_IMAGE, 3 * 2 * 16 * 16)
    return model, {"pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": kinds}


@pytest.mark.parametrize("build", [tiny_llava, tiny_qwen_vl])
@pytest.mark.parametrize("length", ["sequence", "noised"])
def test_images_get_no_noise(build: Any, length: str) -> None:
    """The placeholders are tokens of the document, and so in L, but none is noised."""
    model, images = build()
    ids = unique_ids((11, 9, 6))
    ids[:2, 2:6] = IMAGE
    batch = {"input_ids": ids, "attention_mask": (ids != PAD).long(), **images}
    text = (ids != PAD) & (ids != IMAGE)
    given: list[Tensor] = []
    tap = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**batch)
    config = NEFTConfig(alpha=ALPHA, distribution="rademacher", length=length)
    with noise_on(model, config) as neft:
        calls = noised(model, **batch)
        fraction = neft.metrics()["neft/noised_tokens"]
    tap.remove()
    lengths = (text if length == "noised" else ids != PAD).sum(1).tolist()
    check(calls, Side(ids, text, lengths))
    assert fraction == pytest.approx(18 / 26)
    # What reaches the language model at the placeholders is the image, the same in both passes.
    clean, noisy = given
    assert torch.equal(clean[ids == IMAGE], noisy[ids == IMAGE])
    table = model.get_input_embeddings()(torch.tensor(IMAGE))
    assert not torch.isclose(noisy[ids == IMAGE], table).all(-1).any()
    assert (clean != noisy)[text].all()


class Replacing(nn.Module):
    """As PaliGemma and Gemma 3, whose image token is outside their table."""

    config = SimpleNamespace(image_token_id=500, pad_token_id=PAD)

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 16)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.words(torch.where(input_ids == 500, 0, input_ids))


@pytest.mark.parametrize("lengths", [(5, 4, 2), (3, 3, 2)], ids=["wide", "square"])
def test_placeholders_that_the_table_does_not_have(lengths: tuple[int, ...]) -> None:
    model = Replacing()
    ids = unique_ids(lengths)
    ids[0, 1] = 500
    lookup = torch.where(ids == 500, PAD, ids)
    with noise_on(model, embedding="words"):
        calls = noised(model, input_ids=ids, attention_mask=(ids != PAD).long())
    check(calls, Side(lookup, lookup != PAD, list(lengths)))


@pytest.mark.parametrize(
    ("model_type", "auto", "placeholders"),
    [
        ("llama", AutoModelForCausalLM, []),
        ("qwen2_vl", AutoModelForImageTextToText, [151655, 151656]),
        ("gemma3", AutoModelForImageTextToText, [262144]),
        ("granite_speech", AutoModelForSeq2SeqLM, [49155]),
        ("phi4_multimodal", AutoModelForCausalLM, [200010, 200011]),
        ("t5gemma2", AutoModelForSeq2SeqLM, [256001]),
    ],
)
def test_placeholders_are_read_from_the_config(
    model_type: str, auto: Any, placeholders: list[int]
) -> None:
    """Some keep them in the config of a part: Phi-4 in the image's and the sound's."""
    assert finder.placeholder_ids(tiny_model(model_type, auto)) == placeholders


# Encoder-decoders


@pytest.mark.parametrize("model_type", ["t5", "bart", "marian", "prophetnet"])
def test_decoder_tokens_are_the_labels_one_place_to_the_right(model_type: str) -> None:
    """With labels alone, the decoder's document is a start token and its labels."""
    model = tiny_model(model_type, AutoModelForSeq2SeqLM)
    ids = unique_ids((13, 9, 6))
    with noise_on(model, decoder=True):
        calls = noised(model, input_ids=ids, attention_mask=(ids != PAD).long(), labels=LABELS)
    encoder, decoder = sorted(calls, key=lambda call: int(call.ids.max()))
    check([encoder], Side.of(ids))
    check_decoder(decoder, DECODER_INPUTS)


@pytest.mark.parametrize("by_name", [True, False])
def test_a_decoder_embedding_by_name_is_the_decoders(by_name: bool) -> None:
    """Whisper's encoder is given sound, so its decoder is the one to name."""
    model = tiny_model("whisper", AutoModelForSpeechSeq2Seq, max_source_positions=32)
    sound = torch.randn(3, model.config.num_mel_bins, 64)
    embedding = "model.decoder.embed_tokens" if by_name else model.model.decoder.embed_tokens
    with noise_on(model, embedding=embedding):
        (call,) = noised(model, input_features=sound, labels=LABELS)
    check_decoder(call, DECODER_INPUTS)


LABELS = torch.where(unique_ids((8, 5, 1)) == PAD, -100, unique_ids((8, 5, 1)) + 100)
DECODER_INPUTS = (8, 6, 2)  # the start token, and as many labels as fit behind it


def check_decoder(call: Call, lengths: tuple[int, ...]) -> None:
    """By place, for every row begins with the same start token."""
    for row, length in zip(call.noise, lengths, strict=True):
        size = lookup_scale(call) * ALPHA / (3 * length * row.shape[-1]) ** 0.5
        torch.testing.assert_close(row[:length].abs(), torch.full_like(row[:length], size))
        assert not row[length:].any()


def test_the_shared_table_that_nobody_calls_is_not_the_embedding() -> None:
    model = tiny_model("t5", AutoModelForSeq2SeqLM)
    found = finder.find_embeddings(model, decoder=True)
    assert [(one.name, one.side) for one in found] == [
        ("encoder.embed_tokens", "encoder"),
        ("decoder.embed_tokens", "decoder"),
    ]
    assert model.get_input_embeddings() not in [one.module for one in found]


def test_decoder_of_a_model_without_one_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"`decoder=True` is for encoder-decoder models, and Llama"
    ):
        attach_neft(tiny_model("llama"), CONFIG, decoder=True)


# PEFT

LORA = {"r": 4, "task_type": TaskType.CAUSAL_LM}
PEFT: dict[str, PeftConfig] = {
    "lora": LoraConfig(target_modules=["q_proj"], **LORA),
    "lora_on_embedding": LoraConfig(target_modules=["embed_tokens", "q_proj"], **LORA),
    "modules_to_save": LoraConfig(
        target_modules=["q_proj"], modules_to_save=["embed_tokens"], **LORA
    ),
    "trainable_tokens": LoraConfig(
        target_modules=["q_proj"], trainable_token_indices=[10, 12], **LORA
    ),
}
VIRTUAL: dict[str, PeftConfig] = {
    "prompt_tuning": PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=5),
    "prefix_tuning": PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=5),
}


def peft_model(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    peft = get_peft_model(model, config).train()
    for name, parameter in peft.named_parameters():
        if "lora" in name:  # B starts at 0, which would hide what it adds
            nn.init.normal_(parameter)
    return peft


@pytest.mark.parametrize("method", PEFT)
@pytest.mark.parametrize(("model_type", "scale"), [("llama", 1.0), ("gemma3_text", 8.0)])
def test_lora(method: str, model_type: str, scale: float) -> None:
    model = peft_model(tiny_model(model_type), PEFT[method])
    batch = padded_batch(model)
    with noise_on(model):
        check(noised(model, **batch), Side.of(batch["input_ids"]), scale=scale)


@pytest.mark.parametrize("method", VIRTUAL)
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_virtual_tokens_get_no_noise_and_are_not_counted(method: str, model_type: str) -> None:
    model = peft_model(tiny_model(model_type), VIRTUAL[method])
    batch = padded_batch(model)
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == PAD, -100)
    with noise_on(model) as neft:
        calls = noised(model, **batch, labels=labels)
        assert neft.metrics()["neft/noised_tokens"] == 1
    check(calls, Side.of(batch["input_ids"]))
    assert calls[0].module is model.get_base_model().get_input_embeddings()


@pytest.mark.parametrize("method", PEFT)
def test_adapters_switched_off_are_a_clean_reference(method: str) -> None:
    model = peft_model(tiny_model("llama"), PEFT[method])
    batch = padded_batch(model)
    with model.disable_adapter():
        reference = model(**batch).logits
    with noise_on(model) as neft:
        with model.disable_adapter():
            assert model.training
            assert torch.is_grad_enabled()
            assert noised(model, **batch) == []
            assert torch.equal(model(**batch).logits, reference)
        neft.set_step(1)
        check(noised(model, **batch), Side.of(batch["input_ids"]), scale=1.0)


@pytest.mark.parametrize("method", PEFT)
@pytest.mark.parametrize("by", ["the tuner", "its layers"])
def test_layers_switched_off_are_a_clean_reference(method: str, by: str) -> None:
    """PEFT's lower switches, by which some trainers make a reference of one model."""
    model = peft_model(tiny_model("llama"), PEFT[method])
    batch = padded_batch(model)

    def switch(on: bool) -> None:
        if by == "the tuner":
            tuner = model.base_model
            tuner.enable_adapter_layers() if on else tuner.disable_adapter_layers()
            return
        for module in model.modules():
            if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
                module.enable_adapters(on)

    switch(False)  # which may leave attributes of PEFT's
    switch(True)
    with noise_on(model) as neft:
        switch(False)
        assert noised(model, **batch) == []
        switch(True)
        neft.set_step(1)
        check(noised(model, **batch), Side.of(batch["input_ids"]), scale=1.0)


def test_adapters_that_transformers_switches_off_are_a_clean_reference() -> None:
    model = tiny_model("llama")
    model.add_adapter(LoraConfig(target_modules=["q_proj"], r=4))
    model.train()
    batch = padded_batch(model)
    with noise_on(model) as neft:
        model.disable_adapters()
        assert noised(model, **batch) == []
        model.enable_adapters()
        neft.set_step(1)
        check(noised(model, **batch), Side.of(batch["input_ids"]))


@pytest.mark.parametrize("method", VIRTUAL)
def test_prompts_switched_off_are_a_clean_reference(method: str) -> None:
    model = peft_model(tiny_model("llama"), VIRTUAL[method])
    batch = padded_batch(model)
    with model.disable_adapter():  # which leaves attributes of PEFT's
        pass
    with noise_on(model) as neft:
        with model.disable_adapter():
            assert noised(model, **batch) == []
        neft.set_step(1)
        check(noised(model, **batch), Side.of(batch["input_ids"]))


def test_lora_on_an_encoder_decoder() -> None:
    config = LoraConfig(target_modules=["q"], r=4, task_type=TaskType.SEQ_2_SEQ_LM)
    model = peft_model(tiny_model("t5", AutoModelForSeq2SeqLM), config)
    batch = padded_batch(model)
    sides = Side.of(batch["input_ids"]), Side.of(batch["decoder_input_ids"])
    with noise_on(model, decoder=True):
        check(noised(model, **batch), *sides)


# Naming the embedding


class Mute(nn.Module):
    """A model that cannot be asked which module embeds its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 16)
        self.places = nn.Embedding(20, 16)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))


@pytest.mark.parametrize("by_name", [True, False])
def test_a_named_module(by_name: bool) -> None:
    model = Mute()
    ids = unique_ids((5, 3))
    with noise_on(model, embedding="words" if by_name else model.words):
        check(noised(model, ids, (ids != PAD).long()), Side.of(ids))


def test_a_model_that_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="Mute does not say which module") as error:
        attach_neft(Mute(), CONFIG)
    assert str(error.value) == (
        "Mute does not say which module is its input embedding. Name it: embedding='...' "
        "(its nn.Embedding modules: 'words', 'places')."
    )


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="`embedding` must be a module of Mute") as error:
        attach_neft(Mute(), CONFIG, embedding="wrods")
    assert str(error.value) == (
        "`embedding` must be a module of Mute; got 'wrods'. Did you mean 'words'?"
    )


def test_a_module_of_another_model() -> None:
    with pytest.raises(ValueError, match=r"The embedding \(Embedding\) is not a module of Mute"):
        attach_neft(Mute(), CONFIG, embedding=Mute().words)


def test_an_error_leaves_no_hook() -> None:
    model = Mute()
    before = snapshot(model)
    with pytest.raises(ValueError, match="Did you mean"):
        attach_neft(model, CONFIG, embedding="wrods")
    assert snapshot(model) == before


# A model that holds the one that can be asked


class Pipeline(nn.Module):
    """As a SentenceTransformer: it cannot be asked, and gives its models what they take."""

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.ModuleDict({"model": model}) for model in models)

    def forward(self, features: dict[str, Tensor], number: int = 0) -> Any:
        return self.steps[number]["model"](**features)


@pytest.mark.parametrize(
    ("model_type", "kind"), [("bert", AutoModelForMaskedLM), ("t5", AutoModelForSeq2SeqLM)]
)
def test_the_model_within_is_asked(model_type: str, kind: Any) -> None:
    inner = tiny_model(model_type, kind)
    batch = padded_batch(inner)
    pipeline = Pipeline(inner, inner)  # one model, twice
    sides = [Side.of(batch["input_ids"])]
    options = {"decoder": True} if inner.config.is_encoder_decoder else {}
    if options:
        sides.append(Side.of(batch["decoder_input_ids"]))
    with noise_on(pipeline, **options):
        check(noised(pipeline, batch), *sides)


def test_the_outermost_model_that_can_be_asked_is() -> None:
    """A PEFT model, not what it wraps: it knows of its virtual tokens and of its adapters."""
    peft = peft_model(tiny_model("llama"), PEFT["lora"])
    batch = padded_batch(peft)
    pipeline = Pipeline(peft)
    with noise_on(pipeline) as neft:
        with peft.disable_adapter():
            assert noised(pipeline, batch) == []
        neft.set_step(1)
        check(noised(pipeline, batch), Side.of(batch["input_ids"]))


def test_what_the_model_within_says_of_its_tokens_counts() -> None:
    inner = tiny_model("bert", AutoModelForMaskedLM)
    inner.config.image_token_id = 7
    assert finder.placeholder_ids(Pipeline(inner)) == finder.placeholder_ids(inner) == [7]
    assert finder.pad_token_id(Pipeline(inner)) == inner.config.pad_token_id is not None


def test_several_models_within() -> None:
    models = tiny_model("bert", AutoModelForMaskedLM), tiny_model("llama")
    with pytest.raises(ValueError, match="Pipeline holds several models") as error:
        attach_neft(Pipeline(*models), CONFIG)
    assert str(error.value) == (
        "Pipeline holds several models, each with an input embedding of its own: "
        "'steps.0.model.bert.embeddings.word_embeddings' of BertForMaskedLM and "
        "'steps.1.model.model.embed_tokens' of LlamaForCausalLM. Say which one gets noise: "
        "embedding='...'."
    )


def test_several_models_within_that_share_an_embedding() -> None:
    models = tiny_model("llama"), tiny_model("llama")
    models[1].set_input_embeddings(models[0].get_input_embeddings())
    batch = padded_batch(models[0])
    pipeline = Pipeline(*models)
    with noise_on(pipeline) as neft:
        for number in range(2):
            neft.set_step(number)
            check(noised(pipeline, batch, number), Side.of(batch["input_ids"]))


def test_a_named_module_of_an_encoder_decoder_within() -> None:
    inner = tiny_model("t5", AutoModelForSeq2SeqLM)
    batch = padded_batch(inner)
    pipeline = Pipeline(inner)
    pipeline.config = inner.config  # handed on, as by a SentenceTransformer
    for stack, ids in (("encoder", "input_ids"), ("decoder", "decoder_input_ids")):
        name = f"steps.0.model.{stack}.embed_tokens"
        with noise_on(pipeline, embedding=name):
            check(noised(pipeline, batch), Side.of(batch[ids]))


@pytest.mark.parametrize("how", ["named", "found", "asked"])
def test_an_embedding_of_whole_texts(how: str) -> None:
    """As in a SentenceTransformer with a StaticEmbedding."""
    model: Any = nn.Sequential(nn.EmbeddingBag(100, 16))
    if how == "asked":
        model.get_input_embeddings = lambda: model[0]
    with pytest.raises(ValueError, match="one vector for a whole text") as error:
        attach_neft(model, CONFIG, embedding="0" if how == "named" else None)
    assert str(error.value) == (
        "The embedding '0' (EmbeddingBag) gives one vector for a whole text, so no token has one "
        "to which noise could be added. Train this model without noise."
    )


# Tokens within an argument


class Features(Pipeline):
    """As a SentenceTransformer: its encoders are called by a method, past their hooks."""

    def forward(self, features: dict[str, Tensor], number: int = 0) -> Any:
        return self.steps[number]["model"].forward(**features)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_features_that_a_wrapper_is_given(side: str) -> None:
    inner = tiny_model("bert", AutoModel)
    batch = padded_batch(inner, side)
    wrapper = Features(inner)
    with noise_on(wrapper) as neft:
        check(noised(wrapper, batch), Side.of(batch["input_ids"]))
        neft.set_step(1)
        check(noised(wrapper, features=batch), Side.of(batch["input_ids"]))


def test_features_of_another_encoder() -> None:
    wrapper = Features(*(tiny_model("bert", AutoModel) for _ in range(2)))
    batch = padded_batch(wrapper.steps[0]["model"])
    embedding = wrapper.steps[1]["model"].get_input_embeddings()
    with noise_on(wrapper, embedding=embedding) as neft:
        assert noised(wrapper, batch) == []
        assert not neft.has_fired
        check(noised(wrapper, batch, 1), Side.of(batch["input_ids"]))


class Pairs(Pipeline):
    def forward(self, query: dict[str, Tensor], document: dict[str, Tensor]) -> Any:
        model = self.steps[0]["model"]
        return model(**query), model(**document)


def test_two_features_at_once() -> None:
    """Each pass has what its own model is given; the mask is not that of its padding tokens."""
    inner = tiny_model("bert", AutoModel)
    query = padded_batch(inner)
    document = {key: value.flip(0) for key, value in padded_batch(inner, "left").items()}
    document["attention_mask"][1, -1] = 0
    wrapper = Pairs(inner)
    with noise_on(wrapper) as neft:
        neft.set_step(0)
        first, second = noised(wrapper, query, document)
    check([first], Side.of(query["input_ids"]))
    real = document["attention_mask"].bool()
    check([second], Side(document["input_ids"], real, real.sum(1).tolist()))


# Wrappers


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        nn.DataParallel,
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    ],
    ids=["compile", "data_parallel", "both"],
)
def test_wrappers_are_seen_through(wrap: Any) -> None:
    model = tiny_model("llama")
    wrapped = wrap(model)
    assert finder.unwrap(wrapped) is model
    batch = padded_batch(model)
    before = snapshot(model)
    with attach_neft(wrapped, CONFIG):
        check(noised(wrapped, **batch), Side.of(batch["input_ids"]))
    assert snapshot(model) == before


# Gradient checkpointing


def gradients(model: PreTrainedModel, batch: dict[str, Tensor], whole: bool | None = None) -> Any:
    """Every parameter's gradient; ``whole`` recomputes the whole model, reentrant or not."""
    model.zero_grad()

    def loss(_: Tensor) -> Tensor:
        return model(**batch, labels=batch["input_ids"]).loss

    start = torch.zeros((), requires_grad=True)
    value = loss(start) if whole is None else checkpoint(loss, start, use_reentrant=whole)
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("whole", [True, False], ids=["whole_model", "layers"])
def test_recomputation_sees_the_same_noise(use_reentrant: bool, whole: bool) -> None:
    model = tiny_model("llama")
    batch = padded_batch(model)
    clean = gradients(model, batch)
    with attach_neft(model, CONFIG) as neft:
        expected = gradients(model, batch)
        neft.set_step(0)
        if whole:
            got = gradients(model, batch, whole=use_reentrant)
        else:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            got = gradients(model, batch)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=0)
        assert not torch.equal(gradient, clean[name])
