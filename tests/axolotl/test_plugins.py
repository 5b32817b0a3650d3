"""NEFTPlugin beside Axolotl's own plugins, in either order; and when a plugin does not load."""

import json

import pytest

pytest.importorskip("axolotl")

from axolotl_noise import NOISE, check_noise
from axolotl_runs import PLUGIN, RECORDER, run_axolotl, run_code
from helpers import MODEL

pytestmark = pytest.mark.slow

OTHERS = {
    "liger": (
        "axolotl.integrations.liger.LigerPlugin",
        # One row each: its kernels run in Triton's interpreter.
        {"liger_glu_activation": True, "liger_rope": True, "micro_batch_size": 1},
    ),
    "grokfast": ("axolotl.integrations.grokfast.GrokfastPlugin", {"grokfast_alpha": 0.9}),
    "spectrum": (
        "axolotl.integrations.spectrum.SpectrumPlugin",
        {"spectrum_top_fraction": 0.5, "spectrum_model_name": "tiny"},
    ),
    "cut_cross_entropy": (
        "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin",
        {"cut_cross_entropy": False},  # its kernels need Axolotl's fork and a GPU
    ),
    "kd": (
        "axolotl.integrations.kd.KDPlugin",
        {"kd_trainer": True, "kd_ce_alpha": 0.1, "kd_alpha": 0.9, "kd_temperature": 1.0},
    ),
}


@pytest.fixture
def data_for(tmp_path, data):
    def make(other):
        if other == "spectrum":
            folder = tmp_path / "model_snr_results"
            folder.mkdir()
            layers = {
                f"model.layers.{i}.mlp.up_proj": {"snr": i, "type": "mlp.up_proj"} for i in range(4)
            }
            (folder / "snr_results_tiny.json").write_text(json.dumps(layers))
        if other != "kd":
            return data
        row = {
            "messages": [
                {"role": "user", "content": "the river"},
                {"role": "assistant", "content": "an old mill and a red kite"},
            ],
            "logprobs": [[-0.1, -3.0]] * 4,
            "target_token_ids": [[7, 8]] * 4,
        }
        path = tmp_path / "teacher.jsonl"
        path.write_text("\n".join([json.dumps(row)] * 24))
        kind = {"type": "axolotl.integrations.kd.chat_template", "field_messages": "messages"}
        template = {"chat_template": "tokenizer_default", "remove_unused_columns": False}
        return {"datasets": [{"path": str(path), "ds_type": "json", **kind}], **template}

    return make


@pytest.mark.parametrize("ours_first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("other", OTHERS)
def test_beside_another_plugin_in_either_order(tmp_path, data_for, other, ours_first):
    theirs, keys = OTHERS[other]
    pair = [PLUGIN, theirs] if ours_first else [theirs, PLUGIN]
    given = {**data_for(other), **NOISE, **keys, "plugins": [*pair, RECORDER]}
    run = run_axolotl(tmp_path, **given)
    assert len(run.passes) >= 2
    for step in run.passes:
        check_noise(step)
    if other == "kd":  # its own trainer class, and our noise in it
        assert run.log["trainer"] == "AxolotlKDTrainer"


def test_kd_keeps_the_labels_so_their_tokens_are_refused(tmp_path, data_for):
    theirs, keys = OTHERS["kd"]
    given = {**data_for("kd"), **NOISE, **keys, "plugins": [PLUGIN, theirs]}
    run = run_axolotl(tmp_path, **given, neft_tokens="response")
    assert run.exit_code != 0
    assert (
        "`neft_tokens: response` needs labels, but with `kd_trainer: true` Axolotl" in run.printed
    )


def test_a_mask_of_another_shape_stops_the_first_step(tmp_path, data):
    diffusion = "axolotl.integrations.diffusion.DiffusionPlugin"
    keys = {"diffusion": {"generate_samples": False, "mask_token_id": 3}}
    given = {**data, **NOISE, **keys, "plugins": [PLUGIN, diffusion, RECORDER]}
    run = run_axolotl(tmp_path, **given)
    assert run.exit_code != 0
    assert "Document lengths cannot be read from this `attention_mask`" in run.printed
    run = run_axolotl(tmp_path, **given, neft_length="row")
    assert all(step.noisy for step in run.passes if step.with_gradients)


def test_listed_under_two_names_is_refused(tmp_path, data):
    twice = [PLUGIN, "neft_plugins.axolotl.NEFTPlugin"]
    run = run_axolotl(tmp_path, **data, **NOISE, plugins=twice)
    assert run.exit_code != 0
    message = "`plugins` lists NEFTPlugin 2 times, as neft_plugins.NEFTPlugin, neft_plugins.axolotl"
    assert message in run.printed


def test_a_later_config_in_the_same_process_that_does_not_list_it_has_no_noise(tmp_path):
    result = run_code(
        tmp_path,
        f"""
        from axolotl.integrations.base import PluginManager
        from axolotl.utils.dict import DictDefault
        from transformers import Trainer, TrainingArguments, AutoModelForCausalLM

        manager = PluginManager.get_instance()
        manager.register({PLUGIN!r})
        model = AutoModelForCausalLM.from_pretrained({MODEL!r})
        args = TrainingArguments(output_dir={str(tmp_path)!r}, report_to=[], use_cpu=True)
        for plugins in ([{PLUGIN!r}], ["axolotl.integrations.liger.LigerPlugin"], None):
            cfg = DictDefault({{"neftune_noise_alpha": 5, "plugins": plugins}})
            trainer = Trainer(model, args)
            manager.post_trainer_create(cfg, trainer)
            names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
            print(manager.get_training_args(cfg), names[0])
    """,
    )
    assert result.printed.splitlines()[-3:] == [
        "{'neftune_noise_alpha': None} NEFTCallback",
        "{} DefaultFlowCallback",
        "{} DefaultFlowCallback",
    ]


@pytest.mark.parametrize("name", [PLUGIN, "neft_plugins.axolotl.NEFTPlugin"])
def test_a_plugin_that_cannot_be_imported_is_not_swallowed(tmp_path, name):
    """Axolotl prints an ImportError and goes on; ours is another error."""
    result = run_code(
        tmp_path,
        f"""
        import sys
        from axolotl.integrations.base import PluginManager
        sys.modules["neft_plugins.trainer.callback"] = None
        PluginManager.get_instance().register({name!r})
        print("went on")
    """,
    )
    assert result.exit_code != 0
    assert "went on" not in result.printed
    assert "RuntimeError: neft_plugins.NEFTPlugin cannot be loaded: " in result.printed
    assert "Repair the installation (pip install 'neft-plugins[axolotl]')" in result.printed


def test_axolotl_does_swallow_an_import_error(tmp_path):
    """Or the test above would test nothing."""
    result = run_code(
        tmp_path,
        """
        from axolotl.integrations.base import PluginManager
        PluginManager.get_instance().register("neft_plugin.NEFTPlugin")
        print("went on")
    """,
    )
    assert result.exit_code == 0
    assert "went on" in result.printed


def test_a_misspelt_class_stops_the_run(tmp_path, data):
    run = run_axolotl(tmp_path, **data, **NOISE, plugins=["neft_plugins.NeftPlugin"])
    assert run.exit_code != 0
    assert "module 'neft_plugins' has no attribute 'NeftPlugin'" in run.printed
