"""The sparse change of the weights in NEFTSFTTrainer, by its keys."""

import json

import pytest
import torch
from helpers import MODEL
from peft import LoraConfig
from plain_trainer import InterruptAt
from sft_trainer import arguments, make_trainer
from transformers import AutoModelForCausalLM

from neft_plugins import SparsityConfig
from neft_plugins.config import NEFTConfigError
from neft_plugins.report.runs import read_run
from neft_plugins.trl.sft import make_parser
from neft_plugins.trl.summary import sparsity_rows

ARGS = {"every": 1, "window": 1}
FULL = {"neftune_noise_alpha": None, "neft_distribution": "uniform"}
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def parsed(folder, *words):
    """The training arguments that a command line makes."""
    given = ["--output_dir", str(folder), "--use_cpu", "--bf16", "false", *words]
    return make_parser().parse_args_and_config(given)[1]


def start() -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").named_parameters())


def test_full_fine_tuning_without_noise(tmp_path):
    """auto is 0.95: of each matrix of a layer a twentieth changes, and not embeddings or norms."""
    trainer = make_trainer(
        tmp_path, neft_sparsity="auto", neft_sparsity_args=ARGS, max_steps=6, **FULL
    )
    assert trainer.neft is None
    trainer.train()
    dense = set()
    for name, before in start().items():
        now = dict(trainer.model.named_parameters())[name]
        changed = int((now != before).sum())
        if now.ndim == 2 and "proj" in name:
            assert 0 < changed <= int(0.05 * now.numel() + 0.5), name
        elif changed > 0.5 * now.numel():
            dense.add(name)
    assert any("norm" in name for name in dense)
    densities = [log["neft/density"] for log in trainer.state.log_history if "loss" in log]
    assert densities == sorted(densities, reverse=True)
    assert densities[0] == pytest.approx(0.05 + 0.95 * (2 / 3) ** 3, abs=1e-3)
    assert densities[-1] == pytest.approx(0.05, abs=1e-3)
    assert sparsity_rows(trainer) == [
        ("fraction of weights that may change", f"{densities[0]:.4g}", f"{densities[-1]:.4g}")
    ]


def test_noise_and_sparsity_and_lora(tmp_path):
    trainer = make_trainer(
        tmp_path, neft_sparsity=0.5, neft_sparsity_args=ARGS, max_steps=4, peft_config=LORA
    )
    trainer.train()
    for log in (log for log in trainer.state.log_history if "loss" in log):
        assert log["neft/noise_rms"] > 0
        assert 0.5 <= log["neft/density"] <= 1
    for name, value in trainer.model.named_parameters():
        if "lora_B" in name:
            assert int((value != 0).sum()) <= value.numel() // 2 + 1, name


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 3])
def test_killed_and_resumed_it_is_the_same_run(tmp_path, stop):
    given = {
        "neft_sparsity": 0.5,
        "neft_sparsity_args": {"every": 2, "window": 2},
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 1,
        "peft_config": LORA,
        **FULL,
    }
    torch.manual_seed(0)  # of LoRA's A, which older TRL draws before the Trainer sets its own
    whole = make_trainer(tmp_path / "whole", **given)
    whole.train()
    torch.manual_seed(0)
    cut = make_trainer(tmp_path / "cut", callbacks=[InterruptAt(stop)], **given)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert cut.sparsity.sparsifier is None
    again = make_trainer(tmp_path / "cut", **given)
    again.train(resume_from_checkpoint=True)
    for (name, one), two in zip(
        whole.model.named_parameters(), again.model.parameters(), strict=True
    ):
        assert torch.equal(one, two), name


def test_what_is_set_before_training_counts(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, **FULL)
    assert trainer.sparsity is None
    trainer.args.neft_sparsity = 0.5
    trainer.train()
    assert trainer.sparsity.config == SparsityConfig(0.5)
    trainer.args.neft_sparsity = None
    trainer.train()
    assert trainer.sparsity is None
    assert not any(
        type(each).__name__ == "SparsityCallback" for each in trainer.callback_handler.callbacks
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"neft_sparsity": 1}, "`neft_sparsity` must be a number in"),
        ({"neft_sparsity": "much"}, "`neft_sparsity` must be a number in"),
        ({"neft_sparsity_args": {"every": 3}}, "`neft_sparsity_args` is set but `neft_sparsity`"),
        ({"neft_sparsity": 0.5, "neft_sparsity_args": {"evry": 3}}, "Did you mean 'every'?"),
        (
            {"neft_sparsity": 0.5, "neft_sparsity_args": "every"},
            "`neft_sparsity_args` must be a mapping of the sparsity's arguments, or its JSON",
        ),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_at_once(tmp_path, given, message):
    with pytest.raises(NEFTConfigError, match=message.replace("[", r"\[").replace("?", r"\?")):
        arguments(tmp_path, **given)


def test_on_the_command_line(tmp_path):
    words = ["--neft_sparsity", "0.9", "--neft_sparsity_args", '{"dynamic": false}']
    expected = SparsityConfig(0.9, dynamic=False)
    assert parsed(tmp_path, *words).sparsity_config() == expected
    assert parsed(tmp_path, "--neft_sparsity", "auto").sparsity_config() == SparsityConfig()
    for words in ([], ["--neft_sparsity", "None", "--neft_sparsity_args", "None"]):
        assert parsed(tmp_path, *words).sparsity_config() is None


def test_a_report_names_it(tmp_path):
    (tmp_path / "neft_sft.yaml").write_text(
        json.dumps({"neft_sparsity": 0.5, "neft_sparsity_args": {"dynamic": False}})
    )
    (tmp_path / "trainer_state.json").write_text(
        json.dumps({"log_history": [{"step": 1, "loss": 1.0}], "global_step": 1})
    )
    assert read_run(tmp_path).noise == 'none; sparsity 0.5 {"dynamic": false}'


@pytest.mark.parametrize("sparsity", [None, 0], ids=["unset", "0"])
def test_a_sparse_run_does_not_go_on_without_sparsity(tmp_path, sparsity):
    given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "peft_config": LORA, **FULL}
    make_trainer(tmp_path, neft_sparsity=0.5, neft_sparsity_args=ARGS, **given).train()
    dense = make_trainer(tmp_path, neft_sparsity=sparsity, **given)
    with pytest.raises(ValueError, match="was saved by a run with sparsity, and this one has none"):
        dense.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_each_rank_has_saved_its_masks_before_it_waits_for_the_others(tmp_path, monkeypatch):
    """So a checkpoint that counts as complete, which is said after that, has them all."""
    given = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, **FULL}
    trainer = make_trainer(tmp_path, neft_sparsity=0.5, neft_sparsity_args=ARGS, **given)
    seen = []
    wait = trainer.accelerator.wait_for_everyone

    def note_and_wait() -> None:
        seen.append((tmp_path / "checkpoint-2" / "neft_sparsity.pt").is_file())
        wait()

    save = trainer._save_rng_state

    def save_and_note(output_dir: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(trainer.accelerator, "wait_for_everyone", note_and_wait)
            save(output_dir)

    monkeypatch.setattr(trainer, "_save_rng_state", save_and_note)
    trainer.train()
    assert seen == [True]
