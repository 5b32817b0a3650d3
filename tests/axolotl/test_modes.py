"""The noise in each of Axolotl's ways to fine-tune: real runs, the equation at every token."""

import json
import math
import shutil

import pytest
import torch
from helpers import MODEL
from recorder import are_two_draws, is_one_draw
from safetensors.torch import load_file

pytest.importorskip("axolotl")

from axolotl_noise import ALPHA, LORA, NOISE, PAD, QLORA, check_noise, documents_of
from axolotl_runs import PLUGIN, RECORDER, run_axolotl

pytestmark = pytest.mark.slow

LISA = {"lisa_layers_attribute": "model.layers"}
PACKED = {"sample_packing": True, "sequence_len": 128, "max_steps": 2}


def streamed(data):
    """The same rows, as Axolotl streams a local file."""
    (source,) = data["datasets"]
    how = {"path": "json", "data_files": [source["path"]], "type": source["type"]}
    return {"datasets": [how]}


MODES = {
    "full": {},
    "full, padded to sequence_len": {"pad_to_sequence_len": True},
    "full, not padded to a multiple": {"pad_to_sequence_len": False},
    "full, accumulated": {"gradient_accumulation_steps": 2},
    "full, checkpointed": {"gradient_checkpointing": True},
    "full, checkpointed, not reentrant": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "full, grouped by length": {"group_by_length": True},
    "lora": LORA,
    "lora, checkpointed": {**LORA, "gradient_checkpointing": True},
    "lora, embeddings saved": {**LORA, "lora_modules_to_save": ["embed_tokens", "lm_head"]},
    "lora, 8 bit": {**LORA, "load_in_8bit": True},
    "qlora": QLORA,
    "qlora, checkpointed": {**QLORA, "gradient_checkpointing": True},
    "packed": PACKED,
    "packed, sdpa": {**PACKED, "attn_implementation": "sdpa"},
    "packed, eager": {**PACKED, "attn_implementation": "eager"},
    "packed, real batches": {**PACKED, "multipack_real_batches": True},
    "packed, one row": {**PACKED, "multipack_real_batches": False},
    "packed, sdpa, one row": {
        **PACKED,
        "attn_implementation": "sdpa",
        "multipack_real_batches": False,
    },
    "packed, sdpa, padded": {
        **PACKED,
        "attn_implementation": "sdpa",
        "pad_to_sequence_len": True,
    },
    "packed, sequentially": {**PACKED, "sample_packing_sequentially": True},
    "full, lisa": {"lisa_n_layers": 1, "lisa_step_interval": 1, **LISA},
    "relora": {**LORA, "relora": True, "jagged_restart_steps": 2, "max_steps": 4},
    "streaming": {"streaming": True},
    "streaming, packed": {**PACKED, "streaming": True},
    "packed lora": {**LORA, **PACKED},
    "packed qlora": {**QLORA, **PACKED, "gradient_checkpointing": True},
}


RESPONSE = ["full", "lora", "qlora", "packed", "packed, sdpa", "packed, one row", "packed qlora"]


@pytest.mark.parametrize(
    ("mode", "tokens"),
    [(mode, "all") for mode in MODES] + [(mode, "response") for mode in RESPONSE],
)
def test_every_token_has_the_noise_of_its_document(tmp_path, data, mode, tokens):
    rows = streamed(data) if mode == "streaming, packed" else data
    run = run_axolotl(tmp_path, **rows, **NOISE, neft_tokens=tokens, **MODES[mode])
    passes = run.passes
    assert len(passes) >= 2
    for step in passes:
        assert step.with_gradients
        number, _ = check_noise(step, tokens=tokens)
        if "packed" in mode:
            assert len(number.unique()) > len(step.ids) + 1  # or nothing was packed
    assert run.log["hooks_in_training"] > 0
    assert run.log["hooks_left"] == 0


@pytest.mark.parametrize("train_on_inputs", [True, False])
@pytest.mark.parametrize("packing", [{}, PACKED, {**PACKED, "attn_implementation": "sdpa"}])
def test_what_is_trained_on_gets_the_noise(tmp_path, data, packing, train_on_inputs):
    keys = {"neft_tokens": "response", "train_on_inputs": train_on_inputs, **packing}
    for step in run_axolotl(tmp_path, **data, **NOISE, **keys).passes:
        check_noise(step, tokens="response")
        _, real = documents_of(step.ids)
        noised = step.noise.abs().amax(-1) > 0
        assert bool((noised == real).all()) == train_on_inputs


@pytest.mark.parametrize("packing", [{}, PACKED], ids=["padded", "packed"])
@pytest.mark.parametrize("keys", [{"tokens": "prompt"}, {"tokens": "response", "length": "noised"}])
def test_other_tokens_and_lengths(tmp_path, data, packing, keys):
    given = {f"neft_{key}": value for key, value in keys.items()}
    for step in run_axolotl(tmp_path, **data, **NOISE, **given, **packing).passes:
        check_noise(step, **keys)


def test_documents_coded_in_the_attention_mask_with_squashed_positions(tmp_path, data):
    plugins = [PLUGIN, "axolotl_recorder.SquashingRecorder"]
    run = run_axolotl(tmp_path, **data, **NOISE, **PACKED, plugins=plugins)
    for step in run.passes:
        check_noise(step)
        assert step.given["attention_mask"].max() > 3
        positions, (_, real) = step.given["position_ids"], documents_of(step.ids)
        assert (positions == torch.arange(positions.shape[1]))[real].all()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"micro_batch_size": 1},
        {"pretraining_sample_concatenation": False},
        {"sample_packing": True, "pretrain_multipack_attn": True},
        {"sample_packing": True, "pretrain_multipack_attn": True, "attn_implementation": "sdpa"},
    ],
    ids=str,
)
def test_pretraining(tmp_path, text, keys):
    run = run_axolotl(tmp_path, **text, **NOISE, **keys)
    for step in run.passes:
        number, _ = check_noise(step)
        assert ("sample_packing" in keys) == (len(number.unique()) > len(step.ids) + 1)


@pytest.mark.parametrize(
    "keys",
    [
        {"pretraining_sample_concatenation": True},
        {"sample_packing": True, "pretrain_multipack_attn": False},
    ],
    ids=str,
)
def test_pretraining_on_rows_that_are_one_text_to_the_model(tmp_path, text, keys):
    """The model learns of no documents and attends across them: a row is one document."""
    for step in run_axolotl(tmp_path, **text, **NOISE, **keys).passes:
        real = step.given["attention_mask"] != 0
        for row, mask in zip(step.noise, real, strict=True):
            expected = ALPHA / math.sqrt(3 * int(mask.sum()) * row.shape[-1])
            torch.testing.assert_close(
                row.abs()[mask], torch.full_like(row[mask], expected), rtol=1e-3, atol=1e-6
            )
            assert not row[~mask].any()


@pytest.mark.parametrize("packing", [{}, {**PACKED, "eval_sample_packing": True}], ids=str)
def test_no_noise_in_evaluation(tmp_path, data, packing):
    keys = {"val_set_size": 0.3, "eval_steps": 1, **packing}
    passes = run_axolotl(tmp_path, **data, **NOISE, **keys).passes
    assert {step.training for step in passes} == {True, False}
    for step in passes:
        assert step.noisy == step.training


def test_torch_compile(tmp_path, data):
    packing = {**PACKED, "attn_implementation": "sdpa"}
    run = run_axolotl(tmp_path, **data, **NOISE, **packing, torch_compile=True)
    for step in run.passes:
        check_noise(step)


@pytest.mark.parametrize("models_own", [None, 9])
def test_the_pad_token_is_the_tokenizers(tmp_path, data, models_own):
    """sdpa drops the attention mask of a packed row: only the token tells the padding."""
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    config = json.loads((model / "config.json").read_text())
    assert config["pad_token_id"] == PAD
    (model / "config.json").write_text(json.dumps(config | {"pad_token_id": models_own}))
    keys = {**PACKED, "attn_implementation": "sdpa", "pad_to_sequence_len": True}
    passes = run_axolotl(tmp_path, **data, **NOISE, **keys, base_model=str(model)).passes
    assert any((step.ids == PAD).any() for step in passes)
    for step in passes:
        assert "attention_mask" not in step.given
        check_noise(step)


# What a run is, beside the noise.


def test_with_the_plugin_and_no_alpha_nothing_changes(tmp_path, data):
    with_it, without = tmp_path / "with", tmp_path / "without"
    plugins = [[RECORDER], [PLUGIN, RECORDER]]
    runs = []
    for folder, listed in zip((without, with_it), plugins, strict=True):
        folder.mkdir()
        runs.append(run_axolotl(folder, **data, plugins=listed))
    without, with_it = runs
    assert with_it.log["hooks_in_training"] == 0
    assert "NEFT:" not in with_it.printed
    for ours, theirs in zip(with_it.passes, without.passes, strict=True):
        assert not ours.noisy
        assert (ours.ids == theirs.ids).all()
    losses = [[line["loss"] for line in run.log["history"] if "loss" in line] for run in runs]
    assert losses[0] == losses[1]


def test_the_noise_has_a_seed_of_its_own_and_without_one_axolotls(tmp_path, data):
    def draw(name, **seeds):
        (tmp_path / name).mkdir()
        # Rows of one width, whichever they are: a draw is of the whole batch.
        keys = {**data, **NOISE, "pad_to_sequence_len": True, "max_steps": 1}
        return run_axolotl(tmp_path / name, **keys, **seeds).passes[0]

    axolotls = draw("axolotls", seed=7)
    assert is_one_draw(axolotls, draw("same", seed=3, neft_seed=7))
    assert are_two_draws(axolotls, draw("other", seed=7, neft_seed=3))


def test_the_built_in_is_replaced_and_one_line_says_by_what(tmp_path, data):
    keys = {**NOISE, "neft_schedule": "cosine", "neft_tokens": "response", "max_steps": 4}
    run = run_axolotl(tmp_path, **data, **keys)
    line = "NEFT: alpha 5 -> 0 cosine over 4 steps, rademacher, response tokens, L = sequence"
    assert run.printed.count(line) == 1
    assert run.printed.count("NEFT:") == 1
    alphas = [ALPHA * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    for step, alpha in zip(run.passes, alphas, strict=True):
        check_noise(step, alpha=alpha, tokens="response")
    history = [entry for entry in run.log["history"] if "loss" in entry]
    for entry, alpha in zip(history, alphas, strict=True):
        assert entry["neft/alpha"] == pytest.approx(alpha)


def test_the_built_in_alone_is_what_runs_without_the_plugins_line(tmp_path, data):
    """Axolotl drops the keys in silence; docs/axolotl.md warns of it."""
    run = run_axolotl(
        tmp_path,
        **data,
        **NOISE,
        neft_tokens="response",
        sequence_len=128,
        pad_to_sequence_len=True,
        plugins=[RECORDER],
    )
    assert "neft_tokens" not in run.printed
    assert run.log["hooks_in_training"] == 0
    for step in run.passes:
        size = ALPHA / math.sqrt(128 * step.noise.shape[-1])
        assert step.noise.abs().max() == pytest.approx(size, rel=0.01)  # uniform, on padding too
        assert step.noise[step.ids == PAD].abs().max() > 0.9 * size


@pytest.mark.parametrize("packing", [{}, {**PACKED, "curriculum_sampling": True}])
@pytest.mark.parametrize("auto", [True, False])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, data, auto, packing):
    """Without `curriculum_sampling`, Axolotl packs other rows after it resumes, noise or no noise:
    its sampler draws the order from the global generator whenever it is asked for its length.
    """
    steps = {"max_steps": 4, "neft_schedule": "linear", "save_strategy": None, "save_steps": 2}
    keys = {**data, **NOISE, **packing, **steps, "neft_distribution": "gaussian"}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    whole.mkdir()
    halves.mkdir()
    uninterrupted = run_axolotl(whole, **keys)
    assert run_axolotl(halves, **keys).exit_code == 0
    shutil.rmtree(halves / "out" / "checkpoint-4")
    for file in (halves / "out").glob("*.safetensors"):
        file.unlink()
    resume = (
        {"auto_resume_from_checkpoints": True}
        if auto
        else {"resume_from_checkpoint": str(halves / "out" / "checkpoint-2")}
    )
    resumed = run_axolotl(halves, **keys, **resume)
    assert len(resumed.passes) == 2
    for ours, theirs in zip(resumed.passes, uninterrupted.passes[2:], strict=True):
        assert (ours.ids == theirs.ids).all()
        assert ours.noisy
        assert torch.equal(ours.noise, theirs.noise)
    weights = [load_file(run.output / "model.safetensors") for run in (resumed, uninterrupted)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
    record = json.loads((resumed.output / "neft_config.json").read_text())
    assert record["schedule"] == "linear"
