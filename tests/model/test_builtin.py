"""What transformers' built-in NEFTune does, measured here, and what we do instead (DESIGN, 1)."""

import math

import pytest
import torch
from helpers import tiny_llama
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from plain_trainer import InterruptAt, make_trainer
from recorder import recorded
from torch import nn
from transformers import (
    AutoModelForSeq2SeqLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
)
from transformers.integrations.neftune import activate_neftune, neftune_post_forward_hook

from neft_plugins import NEFTConfig, attach_neft
from neft_plugins.noise import distributions, seeds
from neft_plugins.noise.scale import noise_scale

ALPHA = 5.0
CONFIG = NEFTConfig(alpha=ALPHA)
D = 256


def noise_rms(model, built_in: bool, config: NEFTConfig = CONFIG, **batch) -> torch.Tensor:
    """(B, T) RMS of the noise that reaches the model."""
    hook = activate_neftune(model, ALPHA) if built_in else attach_neft(model, config)
    with recorded(model) as passes:
        model(**batch)
    hook.remove()
    return passes[0].noise.square().mean(-1).sqrt()


def paper(length: int) -> float:
    return ALPHA / math.sqrt(3 * length * D)


@pytest.mark.parametrize(("length", "width", "fraction"), [(25, 64, 0.62), (64, 512, 0.35)])
def test_padding_weakens_the_built_in(length, width, fraction):
    model = tiny_llama(hidden_size=D)
    ids = torch.randint(3, 64, (2, width))
    mask = (torch.arange(width) < length).long().expand(2, width)
    batch = {"input_ids": ids, "attention_mask": mask}
    theirs, ours = noise_rms(model, True, **batch), noise_rms(model, False, **batch)
    assert theirs[mask == 1].mean() / paper(length) == pytest.approx(fraction, abs=0.02)
    assert ours[mask == 1].mean() / paper(length) == pytest.approx(1, abs=0.02)
    assert theirs[mask == 0].min() > 0
    assert ours[mask == 0].max() == 0


def test_packing_weakens_the_built_in():
    model = tiny_llama(hidden_size=D)
    positions = torch.arange(25).repeat(40)[None]
    batch = {"input_ids": torch.randint(3, 64, (1, 1000)), "position_ids": positions}
    theirs, ours = noise_rms(model, True, **batch), noise_rms(model, False, **batch)
    assert theirs.mean() / paper(25) == pytest.approx(0.157, abs=0.005)
    assert ours.mean() / paper(25) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 513), (4, 2048)])
@pytest.mark.parametrize("hidden_size", [1, 63, 288, 4096])
def test_row_has_the_built_ins_scale_to_the_last_bit(shape, hidden_size):
    theirs = ALPHA / torch.sqrt(torch.tensor(shape[1] * hidden_size))
    width = torch.full(shape, shape[1])
    assert (noise_scale(width, hidden_size) * torch.tensor(ALPHA) == theirs).all()


def test_row_and_uniform_are_the_built_in_with_draws_of_our_own(monkeypatch):
    embedding = nn.Embedding(32, 64).train()
    ids = torch.randint(0, 32, (3, 9))
    holder = nn.Sequential(embedding)
    with attach_neft(holder, NEFTConfig(alpha=ALPHA, length="row"), embedding="0") as neft:
        ours = holder(ids)
    seed = seeds.draw_seed(seeds.micro_batch_seed(neft.seed, step=0, micro_batch=0), 0, 0)
    eps = distributions.uniform(
        (3, 9, 64), torch.Generator().manual_seed(seeds.block_seed(seed, 0))
    )
    embedding.neftune_noise_alpha = ALPHA
    # In place of its draw from U(-magnitude, magnitude).
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda _, low, high: eps * high)
    theirs = neftune_post_forward_hook(embedding, (ids,), embedding(ids))
    assert torch.equal(ours, theirs)


def test_gemma_scales_before_the_built_in_adds_its_noise():
    config = Gemma3TextConfig(
        hidden_size=D,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=64,
    )
    model = Gemma3ForCausalLM(config).train()
    ids = torch.randint(3, 64, (2, 25))
    scale = math.sqrt(D)
    theirs = noise_rms(model, True, input_ids=ids).square().mean().sqrt()
    ours = noise_rms(model, False, input_ids=ids).square().mean().sqrt()
    assert theirs / scale == pytest.approx(paper(25) / scale, rel=0.02)
    assert ours / scale == pytest.approx(paper(25), rel=0.02)


def test_the_built_in_never_fires_on_t5():
    config = T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, vocab_size=64)
    config.decoder_start_token_id = 0
    model = AutoModelForSeq2SeqLM.from_config(config).train()
    batch = {"input_ids": torch.randint(3, 64, (2, 9)), "labels": torch.randint(3, 64, (2, 5))}
    with recorded(model.encoder) as passes:
        hook = activate_neftune(model, ALPHA)
        model(**batch)
        hook.remove()
        with attach_neft(model, CONFIG):
            model(**batch)
    assert [each.noisy for each in passes] == [False, True]


def test_an_interrupt_leaves_the_built_in_hook_and_the_next_run_has_two(tmp_path):
    model = tiny_llama(hidden_size=D)
    trainer = make_trainer(tmp_path, [InterruptAt(1)], model=model, neftune_noise_alpha=ALPHA)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert len(model.get_input_embeddings()._forward_hooks) == 1
    trainer.pop_callback(InterruptAt)
    with recorded(model) as passes:
        trainer.train()
    rms = passes[0].noise.square().mean().sqrt()
    width = passes[0].ids.shape[1]
    assert rms / paper(width) == pytest.approx(math.sqrt(2), rel=0.05)
    model.train()
    with pytest.raises(AttributeError):
        model(input_ids=passes[0].ids)


def test_a_reference_pass_in_train_mode_is_noisy_under_the_built_in():
    model = get_peft_model(tiny_llama(hidden_size=D), LoraConfig(target_modules=["q_proj"])).train()
    batch = {"input_ids": torch.randint(3, 64, (2, 9))}
    for attach, noisy in [
        (lambda: activate_neftune(model, ALPHA), True),
        (lambda: attach_neft(model, CONFIG), False),
    ]:
        hook = attach()
        with recorded(model) as passes:
            with model.disable_adapter():
                model(**batch)
            with torch.no_grad():
                model(**batch)
        hook.remove()
        assert [p.noisy for p in passes] == [noisy, noisy]


def test_prompt_tuning_on_gpt2_crashes_the_built_in():
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64)
    tuning = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(GPT2LMHeadModel(config), tuning).train()
    with pytest.raises(AttributeError):
        activate_neftune(model, ALPHA)
    ids = torch.randint(3, 64, (2, 9))
    with attach_neft(model, CONFIG) as neft:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
        assert neft.metrics()["neft/noised_tokens"] == 1.0


def test_a_new_alpha_recompiles_the_built_in():
    model = tiny_llama()
    compiled = torch.compile(model, backend="aot_eager")
    batch = {"input_ids": torch.randint(3, 64, (2, 9))}
    embedding = model.get_input_embeddings()
    hook = activate_neftune(model, ALPHA)
    compiled(**batch)
    embedding.neftune_noise_alpha = 4.0
    with torch._dynamo.config.patch(error_on_recompile=True):
        with pytest.raises(torch._dynamo.exc.RecompileError):
            compiled(**batch)
    hook.remove()


def test_the_built_in_draws_from_the_global_generator():
    model = tiny_llama()
    ids = torch.randint(3, 64, (2, 9))
    states = []
    for built_in in (True, False):
        torch.manual_seed(0)
        noise_rms(model, built_in, input_ids=ids)
        states.append(torch.get_rng_state())
    torch.manual_seed(0)
    model(input_ids=ids)
    assert not torch.equal(states[0], torch.get_rng_state())
    assert torch.equal(states[1], torch.get_rng_state())
