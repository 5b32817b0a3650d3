"""Pairs in a Trainer: the training rows twice, counted twice, and no others."""

import re
from types import SimpleNamespace

import pytest
import torch
from plain_trainer import InterruptAt, make_trainer
from recorder import recorded
from sft_trainer import make_trainer as make_sft_trainer
from torch.utils.data import IterableDataset
from transformers import Trainer

from neft_plugins import NEFTCallback, NEFTConfig, PairCollator
from neft_plugins.config import NEFTConfigError
from neft_plugins.trainer.paired_rows import pair_rows

SYMMETRIC = NEFTConfig(5.0, distribution="rademacher", pairs="symmetric")


def weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def check_pairs(calls, rows: int) -> None:
    for call in calls:
        assert len(call.ids) == 2 * rows
        first, second = call.noise.chunk(2)
        assert torch.equal(*call.ids.chunk(2))
        assert first.any()
        torch.testing.assert_close(second, -first, rtol=0, atol=1e-6)


def test_each_micro_batch_has_its_rows_twice_and_evaluation_once(tmp_path):
    trainer = make_trainer(tmp_path, [NEFTCallback(SYMMETRIC)], eval_strategy="steps", eval_steps=2)
    trainer.args.per_device_eval_batch_size = 4
    with recorded(trainer.model) as calls:
        trainer.train()
    training = [call for call in calls if call.training]
    evaluation = [call for call in calls if not call.training]
    assert len(training) == 8
    check_pairs(training, rows=4)
    assert [len(call.ids) for call in evaluation] == [4, 4]
    assert not any(call.noisy for call in evaluation)


class Counting(Trainer):
    """Notes what the loss is divided by."""

    counted = ()

    def get_batch_samples(self, *args, **kwargs):
        batches, count = super().get_batch_samples(*args, **kwargs)
        self.counted = [*self.counted, int(count)]
        return batches, count


def test_the_loss_is_divided_by_the_tokens_of_both(tmp_path):
    """So that next to no noise in pairs is next to no pairs."""
    faint = NEFTConfig(1e-6, pairs="symmetric")
    runs = []
    for callbacks in ([], [NEFTCallback(faint)]):
        runs.append(make_trainer(tmp_path, callbacks, cls=Counting, model=without_dropout()))
        runs[-1].train()
    once, twice = runs
    assert twice.counted == [2 * count for count in once.counted]
    torch.testing.assert_close(weights(twice), weights(once), rtol=1e-3, atol=2e-4)
    losses = [[log["loss"] for log in run.state.log_history if "loss" in log] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def without_dropout():
    from helpers import tiny_llama

    torch.manual_seed(0)
    return tiny_llama(attention_dropout=0.0)


def test_the_loader_is_as_it_was_when_training_ends(tmp_path):
    trainer = make_trainer(tmp_path, [InterruptAt(2), callback := NEFTCallback(SYMMETRIC)])
    with pytest.raises(KeyboardInterrupt), callback:
        trainer.train()
    loader = trainer.callback_handler.train_dataloader.base_dataloader
    assert loader.collate_fn is not None
    assert not isinstance(loader.collate_fn, PairCollator)


def test_alpha_0_has_its_rows_once(tmp_path):
    trainer = make_trainer(tmp_path, [NEFTCallback(NEFTConfig(0, pairs="symmetric"))])
    with recorded(trainer.model) as calls:
        trainer.train()
    assert {len(call.ids) for call in calls} == {4}


class Stream(IterableDataset):
    """Rows without a length, which accelerate's dispatcher deals out."""

    def __iter__(self):
        from plain_trainer import rows

        yield from rows()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_and_a_worker(tmp_path, workers):
    trainer = make_trainer(
        tmp_path,
        [NEFTCallback(SYMMETRIC)],
        train_dataset=Stream(),
        dataloader_num_workers=workers,
        max_steps=2,
    )
    with recorded(trainer.model) as calls:
        trainer.train()
    check_pairs(calls, rows=4)


@pytest.mark.slow
def test_resumed_in_an_epoch_it_is_the_uninterrupted_run(tmp_path):
    """Rows that a resumed Trainer skips are skipped by a loader that it makes anew."""
    runs = []
    for folder, stop in (("whole", None), ("cut", 2)):
        callbacks = [NEFTCallback(SYMMETRIC)] + ([InterruptAt(stop)] if stop else [])
        keep = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 1, "max_steps": -1}
        trainer = make_trainer(tmp_path / folder, callbacks, **keep)
        try:
            trainer.train()
        except KeyboardInterrupt:
            trainer = make_trainer(tmp_path / folder, [NEFTCallback(SYMMETRIC)], **keep)
            trainer.train(resume_from_checkpoint=True)
        runs.append(weights(trainer))
    assert torch.equal(*runs)


def test_the_log_says_what_it_costs(tmp_path, caplog):
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        make_trainer(tmp_path, [NEFTCallback(SYMMETRIC)]).train()
    finally:
        logging.disable_propagation()
    assert "symmetric pairs (each row twice: twice the compute and memory)" in caplog.text


def test_a_loss_that_compares_the_rows_of_a_batch_is_refused():
    arguments = type("SentenceTransformerTrainingArguments", (), {})()
    with pytest.raises(
        ValueError, match=re.escape("does not go with a SentenceTransformerTrainer")
    ):
        pair_rows(arguments, SimpleNamespace(collate_fn=list), "symmetric")


def test_a_loader_that_does_not_collate_is_refused():
    with pytest.raises(
        ValueError, match="needs a training DataLoader with a `collate_fn`; got list"
    ):
        pair_rows(SimpleNamespace(), [], "symmetric")


PACKINGS = {
    "padded": {},
    "padding_free": {"padding_free": True, "max_length": None},
    "padding_free and padded": {"padding_free": True, "max_length": None, "pad_to_multiple_of": 64},
    "packed": {"packing": True, "max_length": 128},
    "packed by wrapping": {"packing": True, "packing_strategy": "wrapped", "max_length": 64},
}


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_trl(tmp_path, packing):
    """Each way in which TRL makes rows; an evaluation has its rows once."""
    trainer = make_sft_trainer(
        tmp_path, neft_pairs="symmetric", neft_tokens="response", max_steps=2, **packing
    )
    with recorded(trainer.model) as calls:
        trainer.train()
        trainer.evaluate()
    training = [call for call in calls if call.with_gradients]
    assert len(training) == 2
    for call in training:
        noised = call.noise.any(-1)
        first, second = call.noise[noised].chunk(2)
        assert torch.equal(*call.ids[noised].chunk(2))
        torch.testing.assert_close(second, -first, rtol=0, atol=1e-6)
        assert first.any()
    assert not calls[-1].noisy


def test_preference_pairs_are_refused(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from helpers import MODEL

    rows = [{"prompt": "a ", "chosen": f"cat {i}", "rejected": "dog"} for i in "abcd"]
    trainer = trl.DPOTrainer(
        MODEL,
        args=trl.DPOConfig(
            str(tmp_path),
            max_steps=1,
            use_cpu=True,
            report_to=[],
            bf16=False,
            per_device_train_batch_size=2,
        ),
        train_dataset=Dataset.from_list(rows),
        callbacks=[callback := NEFTCallback(SYMMETRIC)],
    )
    with pytest.raises(ValueError, match=re.escape("`pairs` needs a batch in which")), callback:
        trainer.train()


def test_a_value_of_the_key_is_checked(tmp_path):
    with pytest.raises(NEFTConfigError, match="`neft_pairs` must be one of"):
        make_sft_trainer(tmp_path, neft_pairs="both")
