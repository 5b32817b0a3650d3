"""attach_neft on a model: when noise is on, the fire check, and no trace left."""

import copy
import gc
import pickle
import re
import warnings
import weakref

import pytest
import torch
from helpers import tiny_llama
from peft import LoraConfig, get_peft_model
from recorder import Call, check_sizes, count_hooks, recorded, snapshot
from reference import Document, Embedder, padded
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM
from transformers.integrations.neftune import activate_neftune

from neft_plugins import NEFTConfig, attach_neft
from neft_plugins.config import NEFTWarning
from neft_plugins.model.handle import attached_handle
from neft_plugins.model.hooks import NoNoiseError
from neft_plugins.model.site import NoiseSite
from neft_plugins.noise.tokens import MissingLabelsError

CONFIG = NEFTConfig(alpha=5.0)
EXACT = NEFTConfig(alpha=5.0, distribution="rademacher")


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_llama()


class Features(nn.Module):
    """Its argument has no name that a batch has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.embed(features)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return padded([Document(7, 3), Document(4, 2)]).arguments


def call_of(model: nn.Module, batch: dict[str, torch.Tensor], **kwargs: torch.Tensor) -> Call:
    """What the embedding was given and gave in one pass."""
    with recorded(model) as calls:
        model(**batch, **kwargs)
    return calls[0]


def test_every_way_out_leaves_no_trace(model, batch):
    before, state = snapshot(model), copy.deepcopy(model.state_dict())

    def normal(neft):
        pass

    def error(neft):
        raise ValueError

    def interrupt(neft):
        raise KeyboardInterrupt

    def inside_forward(neft):
        model(input_ids=torch.tensor([[10**6]]))

    for ending in (normal, error, interrupt, inside_forward):
        try:
            with attach_neft(model, CONFIG) as neft:
                assert snapshot(model) != before
                assert model.state_dict().keys() == state.keys()
                model(**batch)
                ending(neft)
        except (ValueError, KeyboardInterrupt, IndexError):
            pass
        assert snapshot(model) == before, ending.__name__
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())


def test_remove_twice_is_fine_and_attaching_again_works(model, batch):
    neft = attach_neft(model, CONFIG)
    neft.remove()
    neft.remove()
    assert attached_handle(model) is None
    with attach_neft(model, CONFIG):
        assert attached_handle(model) is not None


def test_noise_goes_on_after_an_error_inside_a_forward_pass(model, batch):
    with attach_neft(model, EXACT) as neft:
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor([[10**6]]))
        neft.set_step(1)
        # Scaled by this batch's mask, not by a stale one.
        check_sizes(call_of(model, batch), batch["attention_mask"] == 1, 5.0)


def test_attaching_twice_is_an_error(model):
    with attach_neft(model, CONFIG), pytest.raises(RuntimeError, match="already attached to Llama"):
        attach_neft(model, CONFIG)


def test_the_built_in_hook_is_an_error_that_names_the_key(model):
    activate_neftune(model, 5.0)
    message = "Drop `neftune_noise_alpha` from the training arguments"
    with pytest.raises(RuntimeError, match=message):
        attach_neft(model, CONFIG)


def test_off_in_eval_mode_and_without_gradients(model, batch):
    with attach_neft(model, CONFIG):
        assert call_of(model, batch).noisy
        with torch.no_grad():
            assert not call_of(model, batch).noisy
            neft = attached_handle(model)
            assert neft is not None
            assert neft.has_fired
        with torch.inference_mode():
            assert not call_of(model, batch).noisy
        model.generate(batch["input_ids"][:1, :7], max_new_tokens=2)
        model.eval()
        assert not call_of(model, batch).noisy
        model.generate(batch["input_ids"][:1, :7], max_new_tokens=2)


def test_an_alpha_of_zero_costs_nothing(model, batch, monkeypatch):
    config = NEFTConfig(alpha=5.0, warmup_steps=2, tokens="response")
    with attach_neft(model, config) as neft:
        monkeypatch.setattr(NoiseSite, "add", None)  # would fail if it were called
        assert not call_of(model, batch).noisy
        assert neft.metrics() == {"neft/alpha": 0.0}


def test_a_baseline_leaves_the_model_alone(model, batch):
    """Alpha 0: a loop runs as it is, on a model without hooks."""
    before = snapshot(model)
    config = NEFTConfig(alpha=0, schedule="linear", alpha_end=3.0, tokens="response")
    with attach_neft(model, config, total_steps=4) as neft:
        for step in range(4):
            neft.set_step(step)
            assert count_hooks(model) == 0
            assert not call_of(model, {"input_ids": batch["input_ids"]}).noisy
            assert neft.metrics() == {"neft/alpha": 0.0}
    assert snapshot(model) == before


def test_a_baseline_is_checked_as_any_other(model):
    with pytest.raises(ValueError, match="`total_steps`"):
        attach_neft(model, NEFTConfig(alpha=0, schedule="linear"))
    with pytest.raises(ValueError, match="nowhere"):
        attach_neft(model, NEFTConfig(alpha=0), embedding="nowhere")


@pytest.mark.parametrize("options", [{}, {"scale": "relative"}, {"distribution": "gaussian"}])
def test_a_model_in_float64(batch, options):
    """The noise is that of a float32 model, added in float64."""
    alpha = 0.1 if options else 5.0
    found = {}
    for dtype in (torch.float32, torch.float64):
        model = Embedder(8).to(dtype)
        with attach_neft(model, NEFTConfig(alpha=alpha, **options), seed=3) as neft:
            with recorded(model) as calls:
                model(**batch)
        found[dtype] = calls[0].noise, neft.metrics()
    noise, metrics = found[torch.float64]
    assert noise.dtype == torch.float64
    torch.testing.assert_close(noise.float(), found[torch.float32][0], rtol=1e-4, atol=1e-6)
    assert metrics == pytest.approx(found[torch.float32][1], rel=1e-4)


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_peft_applied_after_attaching_is_an_error(model, batch, lora):
    neft = attach_neft(model, CONFIG)
    neft.set_step(0)
    model(**batch)
    get_peft_model(model, LoraConfig(**lora))
    with pytest.raises(RuntimeError, match="Call `get_peft_model` first, then `attach_neft`"):
        neft.set_step(1)
    neft.remove()


def test_peft_on_copied_embeddings_is_named_where_no_step_is_set(model, batch):
    neft = attach_neft(model, CONFIG)
    peft = get_peft_model(
        model, LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    )
    with pytest.raises(RuntimeError, match="PEFT was applied to LlamaForCausalLM after the noise"):
        peft.train()(**batch)
    neft.remove()


def test_peft_before_attaching_is_fine(model, batch):
    peft = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with attach_neft(peft, CONFIG) as neft:
        neft.set_step(0)
        assert call_of(peft.train(), batch).noisy
        peft.add_adapter("second", LoraConfig(target_modules=["v_proj"]))
        neft.set_step(1)


def test_inputs_embeds_stop_training(model, batch):
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    message = (
        "The noise did not reach LlamaForCausalLM: its embedding 'model.embed_tokens' (Embedding) "
        "was not called in a training forward pass that was given `attention_mask`, "
        "`inputs_embeds`. Pass `input_ids` instead."
    )
    with attach_neft(model, CONFIG), pytest.raises(NoNoiseError, match=re.escape(message)):
        model(inputs_embeds=embeds, attention_mask=batch["attention_mask"])


class Rebel(Embedder):
    """A model that does not use the embedding it says it uses."""

    def forward(self, input_ids, **arguments):
        return nn.functional.embedding(input_ids, self.embed.weight)


def test_a_model_that_never_calls_its_embedding_stops_training(batch):
    model = Rebel(8)
    message = "its embedding 'embed' .* Name the module that is called: `embedding='...'`"
    with attach_neft(model, CONFIG), pytest.raises(NoNoiseError, match=message):
        model(**batch)


def test_a_call_of_an_inner_model_sees_its_own_batch(model, batch):
    # Liger's losses and some reward models call the decoder, not the model around it.
    decoder_batch = {k: batch[k] for k in ("input_ids", "attention_mask")}
    with attach_neft(model, CONFIG) as neft:
        whole = call_of(model, batch)
        neft.set_step(0)
        inner = call_of(model.model, decoder_batch)
    assert whole.noisy
    assert torch.equal(inner.output, whole.output)


class Wrapper(nn.Module):
    """A training loop's own module around a model, whose argument is the whole batch."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, batch, weight=1.0):
        return self.inner(**batch).loss * weight


def test_a_wrapper_that_takes_the_whole_batch(model, batch):
    config = NEFTConfig(alpha=5.0, tokens="response")
    with attach_neft(model, config):
        direct = model(**batch).loss
    wrapper = Wrapper(model)
    with attach_neft(wrapper, config, embedding="inner.model.embed_tokens") as neft:
        assert torch.equal(wrapper(batch), direct)
        assert neft.metrics()["neft/noised_tokens"] == pytest.approx(6 / 11)
        with torch.no_grad():
            wrapper(batch)
    assert count_hooks(wrapper) == 0


def test_a_module_that_takes_no_token_ids_is_refused(model, batch):
    name = "model.layers.0.self_attn.q_proj"
    with attach_neft(model, CONFIG, embedding=name):
        with pytest.raises(ValueError, match=f"'{name}' of LlamaForCausalLM takes no token ids"):
            model(**batch)


def test_positional_arguments_are_read(model, batch):
    with attach_neft(model, CONFIG) as neft:
        named = model(**batch).logits
        neft.set_step(0)
        positional = model(batch["input_ids"], batch["attention_mask"]).logits
    assert torch.equal(named, positional)


def test_arguments_in_the_places_of_others_are_no_tokens(batch):
    """As TRL's redirection through a wrapper: ``model(inner_model, inputs)``."""

    class Redirected(Embedder):
        def forward(self, input_ids, attention_mask=None):
            return self.embed(attention_mask["input_ids"])

    model = Redirected(8)
    with attach_neft(model, NEFTConfig(alpha=5.0, distribution="rademacher")) as neft:
        neft.set_step(0)
        noise = model(model, {"input_ids": batch["input_ids"]})
    width = batch["input_ids"].shape[1]
    size = torch.full_like(noise, 5.0 / (3 * width * 8) ** 0.5)
    torch.testing.assert_close(noise.abs(), size)


@pytest.mark.parametrize("tokens", ["response", "prompt"])
def test_labels_out_of_reach_are_an_error(model, batch, tokens):
    del batch["labels"]
    message = (
        f"`tokens: {tokens}` needs labels, but LlamaForCausalLM was called with `input_ids`, "
        "`attention_mask` only. Pass labels to the model, or call "
        "`neft.set_batch(labels=labels)`"
    )
    with attach_neft(model, NEFTConfig(alpha=5.0, tokens=tokens)):
        with pytest.raises(MissingLabelsError, match=re.escape(message)):
            model(**batch)


def test_labels_of_a_pass_that_names_nothing():
    """No empty list in the message."""
    model = Features()
    config = NEFTConfig(alpha=5.0, tokens="response")
    with attach_neft(model, config, embedding="embed"):
        with pytest.raises(MissingLabelsError, match="was called with nothing that the noise know"):
            model(torch.ones(1, 3, dtype=torch.int64))


def test_set_batch_brings_labels_into_reach(model, batch):
    labels = batch.pop("labels")
    with attach_neft(model, NEFTConfig(alpha=5.0, tokens="response")) as neft:
        with_labels = call_of(model, batch, labels=labels)
        neft.set_step(0)
        neft.set_batch(labels=labels)
        assert torch.equal(call_of(model, batch).output, with_labels.output)
        neft.set_batch()
        with pytest.raises(MissingLabelsError):
            model(**batch)


def test_shifted_labels_are_shifted_back(model, batch):
    labels = batch.pop("labels")
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    with attach_neft(model, NEFTConfig(alpha=5.0, tokens="response")) as neft:
        expected = call_of(model, batch, labels=labels)
        neft.set_step(0)
        neft.set_batch(shift_labels=shifted)
        assert torch.equal(call_of(model, batch).output, expected.output)


def test_labels_of_another_shape_are_an_error(batch):
    model = Embedder(8)
    batch["labels"] = torch.tensor([0, 1])
    with attach_neft(model, NEFTConfig(alpha=5.0, tokens="response")):
        with pytest.raises(MissingLabelsError, match=r"one label for each token: .* shape \(2,\)"):
            model(**batch)


def test_metrics_are_those_of_the_equation(model, batch):
    config = NEFTConfig(alpha=5.0, distribution="rademacher", tokens="response")
    response = batch["labels"] != -100
    with attach_neft(model, config) as neft:
        seen = call_of(model, batch)
        metrics = neft.metrics()
        noise = seen.noise[response]
        assert metrics["neft/alpha"] == 5.0
        assert metrics["neft/noise_rms"] == pytest.approx(noise.square().mean().sqrt().item())
        signal = seen.clean[response].square().mean().sqrt().item()
        assert metrics["neft/noise_to_signal"] == pytest.approx(
            metrics["neft/noise_rms"] / signal, rel=1e-5
        )
        assert metrics["neft/noised_tokens"] == pytest.approx(6 / 11)
        assert neft.metrics() == {"neft/alpha": 5.0}  # nothing since
        neft.set_step(1)
        model(**batch)
        neft.set_step(2)
        model(**batch)
        assert neft.metrics()["neft/noised_tokens"] == pytest.approx(6 / 11)


@pytest.mark.filterwarnings("ignore:No token got noise")
def test_metrics_of_a_batch_of_padding(batch):
    model = Embedder(8)
    with attach_neft(model, CONFIG) as neft:
        model(batch["input_ids"], attention_mask=torch.zeros_like(batch["attention_mask"]))
        assert neft.metrics()["neft/noised_tokens"] == 0


def test_noise_under_the_dtypes_resolution_is_warned_of_once(batch):
    model = Embedder(16, dtype=torch.bfloat16)
    nn.init.normal_(model.embed.weight, std=100.0)
    with attach_neft(model, CONFIG) as neft:
        model(**batch)
        with pytest.warns(NEFTWarning, match="under half of what torch.bfloat16 resolves") as told:
            neft.metrics()
        assert len(told) == 1
        neft.set_step(1)
        model(**batch)
        neft.metrics()  # a second warning would be an error


@pytest.mark.parametrize(("step", "told"), [(4, 1), (6, 0)])
def test_the_small_noise_at_the_end_of_a_decay_is_not_warned_of(batch, step, told):
    model = Embedder(16, dtype=torch.bfloat16)
    nn.init.normal_(model.embed.weight, std=200.0)
    config = NEFTConfig(alpha=5.0, schedule="linear")
    with attach_neft(model, config, total_steps=10) as neft:
        neft.set_step(step)
        model(**batch)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            neft.metrics()
    assert ["rounded away" in str(each.message) for each in seen] == [True] * told


@pytest.mark.parametrize("scale", ["absolute", "relative"])
@pytest.mark.filterwarnings("error:The noise is .* times as strong", "ignore:`alpha")
def test_noise_stronger_than_the_signal_is_warned_of_once(batch, scale):
    model = Embedder(16, zero=False)
    alpha = 2 if scale == "relative" else 100
    with attach_neft(model, NEFTConfig(alpha=alpha, scale=scale)) as neft:
        neft.set_step(0)
        model(**batch)
        way_out = "alpha is that ratio" if scale == "relative" else "Lower alpha, or use `scale: "
        message = rf"times as strong as the embeddings .* \(alpha {alpha}\), .* {way_out}"
        with pytest.warns(NEFTWarning, match=message) as told:
            neft.metrics()
        assert len(told) == 1
        neft.set_step(1)
        model(**batch)
        neft.metrics()  # a second warning would be an error


@pytest.mark.filterwarnings("error:The noise is .* times as strong")
@pytest.mark.parametrize("std", [0.0, 1.0])
def test_noise_weaker_than_the_signal_or_without_any_is_not_warned_of(batch, std):
    model = Embedder(16)
    nn.init.normal_(model.embed.weight, std=std)
    with attach_neft(model, CONFIG) as neft:
        model(**batch)
        neft.metrics()


def test_removal_tells_what_was_never_asked(batch):
    model = Embedder(16, dtype=torch.bfloat16)
    nn.init.normal_(model.embed.weight, std=100.0)
    with pytest.warns(NEFTWarning, match="so most of it is rounded away"):
        with attach_neft(model, CONFIG):
            model(**batch)


@pytest.mark.parametrize("place", [(-1, 0), (0, -1), (1.0, 0), (True, 0), (0, "1")])
def test_steps_count_from_zero(model, place):
    with attach_neft(model, CONFIG) as neft, pytest.raises(ValueError, match="count from 0; got"):
        neft.set_step(*place)


def test_a_model_left_in_eval_mode_is_warned_of(model, batch):
    model.eval()
    with pytest.warns(NEFTWarning, match="The noise never fired: LlamaForCausalLM was called with"):
        with attach_neft(model, CONFIG):
            model(**batch).loss.backward()


def test_an_embedding_left_in_eval_mode_is_warned_of(model, batch):
    model.get_input_embeddings().eval()
    with pytest.warns(NEFTWarning, match="The noise never fired: LlamaForCausalLM was called with"):
        with attach_neft(model, CONFIG):
            model(**batch).loss.backward()


def test_weights_that_are_replaced_are_not_held():
    model = Embedder(8, zero=False)
    before = weakref.ref(model.embed.weight)
    with attach_neft(model, CONFIG):
        model.embed.weight = nn.Parameter(torch.ones(32, 8))
        assert before() is None


def test_half_a_place_among_ranks_is_an_error(model):
    with pytest.raises(ValueError, match="Give both `data_rank` and `data_world_size`, or neither"):
        attach_neft(model, CONFIG, data_rank=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {"alpha": 5}}, "`config` must be a NEFTConfig; got {'alpha': 5}"),
        ({"total_steps": 0}, "`total_steps` must be an int >= 1 or None; got 0"),
        ({"total_steps": "10"}, "`total_steps` must be an int >= 1 or None; got '10'"),
        ({"embedding": 5}, "`embedding` must be a module or its dotted name; got 5"),
        ({"data_rank": 2, "data_world_size": 2}, r"must be in [0, `data_world_size`); got 2 of 2"),
    ],
)
def test_a_wrong_argument_leaves_no_hook(model, arguments, message):
    before = snapshot(model)
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        attach_neft(model, **{"config": CONFIG} | arguments)
    assert snapshot(model) == before


@pytest.mark.parametrize("alpha", [None, float("nan"), float("inf"), -1.0])
def test_a_schedule_that_gives_no_strength_is_an_error_and_leaves_no_hook(
    model, monkeypatch, alpha
):
    monkeypatch.setattr(NEFTConfig, "build_schedule", lambda self, steps: lambda step: alpha)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"The schedule 'constant' gave alpha .* at step 0"):
        attach_neft(model, CONFIG)
    assert snapshot(model) == before


def test_noise_goes_on_after_ctrl_c_inside_a_forward_pass(model, batch):
    neft = attach_neft(model, EXACT)

    def interrupt(module, args):
        raise KeyboardInterrupt

    hook = model.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(**batch)
    hook.remove()
    neft.set_step(1)
    other = padded([Document(3), Document(2)], extra=0).arguments
    check_sizes(call_of(model, other), other["attention_mask"] == 1, 5.0)
    neft.remove()


def test_an_unknown_name_in_set_batch_is_an_error(model):
    with attach_neft(model, CONFIG) as neft:
        with pytest.raises(ValueError, match=r"`set_batch` takes attention_mask, .*; got atent"):
            neft.set_batch(atention_mask=torch.ones(1, 1))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_noisy_model_is_clean(batch, way):
    model = Embedder(8, zero=False)
    clean = model(**batch)
    with attach_neft(model, NEFTConfig(alpha=5.0, schedule="cosine"), total_steps=5):
        copied = way(model)
        assert torch.equal(copied(**batch), clean)
        assert not torch.equal(model(**batch), clean)
        with attach_neft(copied, CONFIG):
            assert not torch.equal(copied(**batch), clean)


def test_a_model_that_is_dropped_with_its_noise_on_is_freed(batch):
    model = Embedder(8)
    attach_neft(model, CONFIG)
    model(**batch)
    embedding = weakref.ref(model.embed)
    del model
    gc.collect()
    assert embedding() is None


def test_a_copy_is_clean_within_the_pass_of_what_it_was_copied_from(batch):
    """Such as a frozen copy that the model compares itself with."""

    class Compared(Embedder):
        def forward(self, input_ids, **arguments):
            return self.embed(input_ids), copied(input_ids)

    model = Compared(8, zero=False)
    with attach_neft(model, CONFIG):
        copied = copy.deepcopy(model.embed)
        noisy, clean = model(**batch)
    assert torch.equal(clean, model(**batch)[0])
    assert not torch.equal(noisy, clean)


def test_gpt2_and_its_position_embeddings(batch):
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64, resid_pdrop=0, embd_pdrop=0)
    model = GPT2LMHeadModel(config).train()
    with attach_neft(model, CONFIG) as neft:
        model(**batch)
        assert neft.metrics()["neft/noised_tokens"] == 1.0


@pytest.mark.parametrize(("models_own", "given"), [(9, 0), (None, 0), (0, None)])
def test_padding_of_packed_rows_is_told_by_the_tokenizers_token(models_own, given):
    model = Embedder(8).train()
    model.config.pad_token_id = models_own
    ids, positions = torch.tensor([[5, 6, 5, 0, 0]]), torch.tensor([[0, 1, 0, 0, 1]])
    with attach_neft(model, CONFIG, pad_token_id=given):
        noise = model(ids, position_ids=positions)
    assert (noise.abs().amax(-1) > 0).tolist() == [[True, True, True, False, False]]


def test_a_rule_that_chooses_no_token_is_warned_of_once(model, batch):
    """As `prompt` where every token is trained on; and not where a batch has some of each."""
    everything = {**batch, "labels": batch["input_ids"]}
    with attach_neft(model, NEFTConfig(alpha=5.0, tokens="prompt")) as neft:
        neft.set_step(0)
        model(**batch)
        neft.set_step(0, 1)
        model(**everything)
        assert neft.metrics()["neft/noised_tokens"] > 0
        neft.set_step(1)
        model(**everything)
        with pytest.warns(NEFTWarning, match="`tokens: prompt` chose none") as told:
            neft.metrics()
        neft.set_step(2)
        model(**everything)
        assert neft.metrics()["neft/noised_tokens"] == 0
    assert len(told) == 1
