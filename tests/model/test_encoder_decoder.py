"""Noise at two embeddings of one model: encoder and decoder."""

from types import SimpleNamespace

import pytest
import torch
from recorder import recorded
from reference import PAD
from tiny_models import tiny_model
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from neft_plugins import NEFTCallback, NEFTConfig, attach_neft
from neft_plugins.model.hooks import NoNoiseError

CONFIG = NEFTConfig(alpha=5.0, distribution="rademacher", seed=3)


class TwoStacks(nn.Module):
    """An encoder and a decoder of different widths that are nothing but their embeddings."""

    def __init__(self, widths: tuple[int, int] = (16, 48), decoder_is_called: bool = True) -> None:
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=True, pad_token_id=PAD)
        self.encoder, self.decoder = (Stack(width) for width in widths)
        self.decoder_is_called = decoder_is_called

    def get_encoder(self) -> nn.Module:
        return self.encoder

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor, **more: Tensor):
        encoded = self.encoder.embed_tokens(input_ids)
        if not self.decoder_is_called:
            return encoded
        return encoded, self.decoder.embed_tokens(decoder_input_ids)


class Stack(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(100, width)
        nn.init.zeros_(self.embed_tokens.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens


def given() -> dict[str, Tensor]:
    ids = torch.arange(1, 21).view(2, 10)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "decoder_input_ids": ids[:, :4],
        "decoder_attention_mask": torch.ones_like(ids[:, :4]),
    }


def test_encoder_and_decoder_draw_apart():
    model = TwoStacks((64, 64))
    with attach_neft(model, CONFIG, decoder=True) as neft:
        for step in range(3):
            neft.set_step(step)
            encoder, decoder = model(**given())
            one, other = encoder.flatten()[: decoder.numel()].sign(), decoder.flatten().sign()
            assert abs(float((one * other).mean())) < 0.2  # 4 sigma of 2 x 4 x 64 signs


@pytest.mark.parametrize("passes", [1, 2])
def test_metrics_are_over_both_whatever_their_widths(passes):
    model = TwoStacks()
    for stack, size in ((model.encoder, 2.0), (model.decoder, 3.0)):
        nn.init.constant_(stack.embed_tokens.weight, size)
    with attach_neft(model, CONFIG, decoder=True) as neft:
        neft.set_step(0)
        for _ in range(passes):
            model(**given())
        metrics = neft.metrics()
    # alpha^2 / 3 is the energy of each document; its coordinates are L d.
    coordinates = 2 * (10 * 16 + 4 * 48)
    noise = 4 * 25 / 3
    signal = 2 * (10 * 16 * 2.0**2 + 4 * 48 * 3.0**2)
    assert metrics["neft/noise_rms"] == pytest.approx((noise / coordinates) ** 0.5)
    assert metrics["neft/noise_to_signal"] == pytest.approx((noise / signal) ** 0.5)
    assert metrics["neft/noised_tokens"] == 1.0


def test_noise_that_reaches_the_first_embedding_only_stops_training():
    model = TwoStacks(decoder_is_called=False)
    with attach_neft(model, CONFIG, decoder=True):
        with pytest.raises(NoNoiseError, match="its embedding 'decoder"):
            model(**given())


def check_decoder(noise: Tensor, lengths: list[int]) -> None:
    for row, length in zip(noise, lengths, strict=True):
        size = 5.0 / (3 * length * row.shape[-1]) ** 0.5
        wanted = torch.full_like(row[:length], size)
        torch.testing.assert_close(row[:length].abs(), wanted, rtol=1e-4, atol=1e-5)
        assert not row[length:].any()


@pytest.mark.parametrize("start", [PAD, 7], ids=["start is padding", "start is not"])
def test_padding_of_decoder_tokens_that_nothing_else_describes(start):
    """A start token that is the padding token too (T5) is real, and so is one between others."""
    model = TwoStacks()
    ids = torch.tensor([[start, 5, PAD, 6, PAD, PAD], [start, 5, PAD, PAD, PAD, PAD]])
    with attach_neft(model, CONFIG, decoder=True) as neft:
        _, noise = model(input_ids=given()["input_ids"], decoder_input_ids=ids)
        check_decoder(noise, [4, 2])
        assert neft.metrics()["neft/noised_tokens"] == 1.0


@pytest.mark.parametrize("labelled", [4, 1])
def test_a_prompt_of_the_decoder_that_is_not_trained_on_is_no_padding(labelled):
    """As Donut's and Whisper's: its labels are masked, and its tokens are given."""
    model = TwoStacks()
    ids = torch.tensor([[7, 5, 8, 6, 9, PAD]])
    labels = torch.tensor([[5, 8, 6, 9, -100, -100]])
    labels[0, : 4 - labelled] = -100
    with attach_neft(model, CONFIG, decoder=True):
        given_ids = given()["input_ids"][:1]
        _, noise = model(input_ids=given_ids, decoder_input_ids=ids, labels=labels)
    check_decoder(noise, [5])


def test_a_label_of_a_class_is_of_no_token():
    model = TwoStacks()
    ids = torch.tensor([[7, 5, 8, PAD], [7, 5, PAD, PAD]])
    with attach_neft(model, CONFIG, decoder=True):
        _, noise = model(
            input_ids=given()["input_ids"], decoder_input_ids=ids, labels=torch.tensor([0, 1])
        )
    check_decoder(noise, [3, 2])


def test_an_encoder_that_is_called_alone_is_asked_for_its_own_noise_only():
    model = tiny_model("t5", AutoModelForSeq2SeqLM)
    batch = {key: given()[key] for key in ("input_ids", "attention_mask")}
    with attach_neft(model, CONFIG, decoder=True) as neft:
        neft.set_step(0)
        model.get_encoder()(**batch)
        assert neft.metrics()["neft/noised_tokens"] == 1.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_t5_with_label_smoothing(tmp_path, smoothing):
    """The Trainer then keeps the labels from the model; two steps of two micro-batches."""
    model = tiny_model("t5", AutoModelForSeq2SeqLM)
    model.config.dropout_rate = 0.0
    rows = [
        {"input_ids": [5 + i] * (4 + i), "labels": [9 + i] * (2 + 2 * i) + [1]} for i in range(8)
    ]

    class Pads:
        """What the collator asks of a tokenizer."""

        padding_side, pad_token_id, deprecation_warnings = "right", PAD, {}

        def pad(self, features, **how):
            width = max(len(each["input_ids"]) for each in features)
            ids = [
                each["input_ids"] + [PAD] * (width - len(each["input_ids"])) for each in features
            ]
            table = torch.tensor(ids)
            return {"input_ids": table, "attention_mask": (table != PAD).long()}

    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            label_smoothing_factor=smoothing,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=1,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(Pads(), model=model),
        callbacks=[NEFTCallback(CONFIG, decoder=True)],
    )
    with recorded(model, [model.get_decoder().embed_tokens]) as calls:
        trainer.train()
    assert len(calls) == 4
    for call in calls:
        lengths = [1 + int((row[1:] != PAD).sum()) for row in call.ids]
        assert len(set(lengths)) == 2
        check_decoder(call.noise, lengths)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert all(log["neft/noised_tokens"] == 1.0 for log in logs)
