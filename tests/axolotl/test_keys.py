"""The keys in an Axolotl YAML: refused before a model is loaded, by every command alike."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest.importorskip("axolotl")

from axolotl_runs import PLUGIN, run_axolotl, run_code

from neft_plugins.axolotl import NEFTArgs
from neft_plugins.config import KEY_OPTIONS, OPTIONS, NEFTConfigError, default_text
from neft_plugins.keys import SPARSITY_KEYS
from neft_plugins.sparsity.config import ARGUMENTS, SPARSITY_ARGS_HELP

ON = {"neftune_noise_alpha": 5}
NO_ALPHA = (
    "is set but `neftune_noise_alpha` is not, so there would be no noise. Set "
    "`neftune_noise_alpha` (5 to 15 is typical; 0 is no noise, for a baseline)."
)
# What the YAML says -> what the user reads.
REFUSED = [
    ({"neftune_noise_alpha": -5}, "(5 to 15 is typical, 0 is no noise); got -5."),
    ({"neftune_noise_alpha": "five"}, "(5 to 15 is typical, 0 is no noise); got 'five'."),
    ({"neftune_noise_alpha": True}, "(5 to 15 is typical, 0 is no noise); got True."),
    (
        {**ON, "neft_distribution": "gausian"},
        "`neft_distribution` must be one of 'gaussian', 'rademacher', 'sparse', 'uniform'; got "
        "'gausian'. Did you mean 'gaussian'?",
    ),
    ({**ON, "neft_schedule": "cosin"}, "Did you mean 'cosine'?"),
    ({**ON, "neft_schedule": 3}, "`neft_schedule` must be one of"),
    ({**ON, "neft_schedule_args": [2]}, "`neft_schedule_args` must be a mapping"),
    (
        {**ON, "neft_schedule": "polynomial", "neft_schedule_args": {"powr": 2}},
        "`neft_schedule_args` of 'polynomial' may be 'power', 'transition_begin', "
        "'transition_steps', 'reverse'; got 'powr'. Did you mean 'power'?",
    ),
    ({**ON, "neft_alpha_end": -1}, "`neft_alpha_end` must be a number >= 0; got -1"),
    ({**ON, "neft_alpha_end": "low"}, "`neft_alpha_end` must be a number >= 0; got 'low'"),
    (
        {**ON, "neft_warmup_steps": 1.5},
        "`neft_warmup_steps` must be a number of steps (int >= 0) or a fraction of training in "
        "[0, 1); got 1.5.",
    ),
    (
        {**ON, "neft_tokens": "answer"},
        "`neft_tokens` must be one of 'all', 'no_special', 'prompt', ",
    ),
    ({**ON, "neft_tokens": ["response", "answer"]}, "got 'answer'. Did you mean 'response'?"),
    (
        {**ON, "neft_tokens": ["no_special", "response"], "use_eaft": True},
        "`neft_tokens: response` needs labels, but with `use_eaft: true` Axolotl does not",
    ),
    ({**ON, "neft_pairs": "both"}, "`neft_pairs` must be one of 'independent', 'symmetric'"),
    ({**ON, "neft_distribution_args": [1]}, "`neft_distribution_args` must be a mapping"),
    ({**ON, "neft_length": "document"}, "`neft_length` must be one of"),
    ({**ON, "neft_scale": "rms"}, "`neft_scale` must be one of 'absolute', 'relative'"),
    (
        {**ON, "neft_scale": "relative", "neft_length": "row"},
        "`neft_length` is not used with `neft_scale: relative`",
    ),
    ({**ON, "neft_seed": 1.5}, "`neft_seed` must be an int or unset; got 1.5"),
    ({"neftune_noise_alpha": "1e300"}, "`neftune_noise_alpha` must be at most 1e6, and 5 to 15"),
    ({**ON, "neft_alpha_end": 1e300}, "`neft_alpha_end` must be at most 1e6, and 5 to 15"),
    ({**ON, "neft_warmup_steps": 1e300}, "`neft_warmup_steps` must be at most 2**63 steps"),
    ({**ON, "neft_seed": 10**400}, "`neft_seed` must be from -2**63 to 2**64 - 1, as torch's"),
    ({**ON, "neft_schedul": "linear"}, "Unknown key `neft_schedul`"),
    ({**ON, "neft_noise": 3}, "Unknown key `neft_noise`"),
    ({**ON, "NEFT_schedule": "linear"}, "Did you mean 'neft_schedule'?"),
    ({"neftune_noise_alpha": 0, "neft_schedule": "cosin"}, "Did you mean 'cosine'?"),
    ({**ON, "neft": {"schedule": "cosine"}}, "`neft` is no key of the noise, and the keys in it"),
    ({"neftune_noise_alfa": 5}, "Did you mean 'neftune_noise_alpha'?"),
    ({"neft_schedule": "cosine"}, f"`neft_schedule` {NO_ALPHA}"),
    ({"neft_tokens": "response"}, f"`neft_tokens` {NO_ALPHA}"),
    (
        {**ON, "neft_tokens": "prompt", "train_on_inputs": True},
        "`neft_tokens: prompt` chooses no token with `train_on_inputs`",
    ),
    (
        {**ON, "neft_tokens": "prompt", "train_on_inputs": "true"},
        "`neft_tokens: prompt` chooses no token with `train_on_inputs`",
    ),
    ({**ON, "neft_tokens": "response", "use_eaft": True}, "with `use_eaft: true` Axolotl does not"),
]


def refuses(run, message):
    assert run.exit_code != 0
    assert message in run.printed
    assert "1 validation error" in run.printed  # and none of pydantic's own beside it
    assert not run.output.exists()  # before a model is loaded
    assert "Loading weights" not in run.printed


@pytest.mark.parametrize(("keys", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_wrong_key_stops_training_at_validation(tmp_path, data, keys, message):
    refuses(run_axolotl(tmp_path, **data, **keys, plugins=[PLUGIN]), message)


@pytest.mark.parametrize("where", ["datasets", "its type", "trl", "peft"])
def test_a_key_where_nothing_reads_it_is_refused(tmp_path, data, where):
    """Validation takes it out of ``datasets`` before any plugin's keys are checked."""
    key = {"neft_tokens": "all"}
    (dataset,) = data["datasets"]
    keys = {
        "datasets": {"datasets": [dataset | key]},
        "its type": {"datasets": [dataset | {"type": dataset["type"] | key}]},
        "trl": {"trl": {"beta": 0.1, **key}},
        "peft": {"peft": {"loftq_config": key}},
    }[where]
    run = run_axolotl(tmp_path, **{**data, **ON, **keys}, plugins=[PLUGIN])
    assert run.exit_code != 0
    inside = "datasets" if where == "its type" else where
    assert f"`neft_tokens` is inside `{inside}`, where nothing reads it. Write it" in run.printed
    assert not run.output.exists()


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["prompt", "response"])
def test_a_chat_template_leaves_the_headers_of_turns_untrained(tmp_path, tokens):
    """So with ``train_on_inputs`` too, each of the two rules chooses some tokens."""
    turns = [("user", "Tell of snow."), ("assistant", "It fell."), ("user", "And then?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join([json.dumps({"messages": messages})] * 16))
    keys = {
        "datasets": [{"path": str(path), "ds_type": "json", "type": "chat_template"}],
        "chat_template": "chatml",
        "train_on_inputs": True,
        "neft_tokens": tokens,
    }
    run = run_axolotl(tmp_path, **ON, **keys)
    logs = [entry for entry in run.log["history"] if "loss" in entry]
    assert logs
    assert all(0 < entry["neft/noised_tokens"] < 1 for entry in logs)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["preprocess", "evaluate"])
def test_the_other_commands_refuse_alike(tmp_path, data, command):
    keys, message = {**ON, "neft_distribution": "gausian"}, "Did you mean 'gaussian'?"
    refuses(run_axolotl(tmp_path, command, **data, **keys, plugins=[PLUGIN]), message)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["preprocess", "evaluate"])
def test_the_other_commands_take_what_is_right(tmp_path, data, command):
    keys = {**ON, "neft_schedule": "cosine", "neft_tokens": "response", "val_set_size": 0.2}
    run = run_axolotl(tmp_path, command, **data, **keys, plugins=[PLUGIN])
    assert run.exit_code == 0, run.printed[-3000:]
    assert "NEFT:" not in run.printed  # nothing is trained, so nothing is noised


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "described"),
    [
        ({"neftune_noise_alpha": "1e1"}, "alpha 10 constant"),  # YAML reads 1e1 as text
        ({**ON, "neft_schedule": "linear", "neft_alpha_end": "1e0"}, "alpha 5 -> 1 linear"),
        ({"noisy_embedding_alpha": 5, "neft_distribution": "gaussian"}, "gaussian"),
        ({**ON, "neft_schedule": "polynomial", "neft_schedule_args": {"power": 3}}, "polynomial"),
        ({**ON, "neft_warmup_steps": 0.5}, "warm-up 0.5 of training"),
        ({"neftune_noise_alpha": 0.1, "neft_scale": "relative"}, "relative to each embedding's"),
        (
            {
                **ON,
                "neft_schedule": "exponential",
                "neft_schedule_args": {"decay_rate": "1e-2"},
                "neft_length": "None",
            },
            "exponential over 2 steps, uniform, all tokens, L = sequence",
        ),
        ({**ON, "neft_tokens": "prompt", "train_on_inputs": "false"}, "prompt tokens"),
        ({**ON, "x-noise": {"neft_schedule": "cosine"}}, "alpha 5 constant"),  # holds anchors
    ],
    ids=str,
)
def test_what_is_right_trains(tmp_path, data, keys, described):
    run = run_axolotl(tmp_path, **data, **keys, plugins=[PLUGIN])
    assert run.exit_code == 0, run.printed[-3000:]
    line = next(line for line in run.printed.splitlines() if "NEFT:" in line)
    assert described in line


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"neftune_noise_alpha": 0},
        {"neftune_noise_alpha": "0.0", "neft_schedule": "linear", "neft_tokens": "response"},
        {"noisy_embedding_alpha": 0},
        {"options": {"neftune_noise_alpha": 0.0}, **ON, "neft_alpha_end": 1, "neft_length": "row"},
    ],
    ids=str,
)
def test_alpha_0_is_a_baseline_that_is_logged(tmp_path, data, keys):
    """Axolotl itself refuses an alpha of 0; the other keys may stay."""
    run = run_axolotl(tmp_path, **data, **keys)
    assert not any(seen.noisy for seen in run.passes)
    assert run.printed.count("NEFT: ") == 1
    assert "NEFT: alpha 0, no noise" in run.printed
    assert json.loads((run.output / "neft_config.json").read_text())["alpha"] == 0


def test_a_baseline_may_be_of_what_cannot_have_noise(tmp_path):
    keys = {"neftune_noise_alpha": 0, "neft_tokens": "prompt", "train_on_inputs": True}
    assert NEFTArgs.check_neft_keys(keys)["noisy_embedding_alpha"] == 0


CHAT = {"datasets": [{"path": "chats.jsonl", "type": "chat_template"}]}


@pytest.mark.parametrize(
    ("keys", "refused"),
    [
        ({"datasets": [{"type": "alpaca"}]}, True),
        ({"datasets": [{"type": {"field_output": "answer"}}]}, True),
        (CHAT, False),  # the headers of turns are not trained on
        ({"datasets": [*CHAT["datasets"], {"type": "alpaca"}]}, False),
        ({"datasets": [{"type": "my_package.prompts"}]}, False),
        ({**CHAT, "pretraining_dataset": "texts"}, True),
    ],
    ids=str,
)
def test_prompt_tokens_are_refused_where_every_token_is_trained_on(keys, refused):
    keys = {**ON, "neft_tokens": "prompt", "train_on_inputs": True, **keys}
    if not refused:
        NEFTArgs.check_neft_keys(keys)
        return
    with pytest.raises(NEFTConfigError, match="`neft_tokens: prompt` chooses no token with"):
        NEFTArgs.check_neft_keys(keys)


def test_the_command_line_of_axolotl_sets_alpha(tmp_path, data):
    run = run_axolotl(tmp_path, **data, plugins=[PLUGIN], neft_schedule="linear", options=ON)
    assert "NEFT: alpha 5 -> 0 linear over 2 steps" in run.printed


@pytest.mark.slow
def test_a_relative_alpha_above_1_is_warned_of_once(tmp_path, data):
    run = run_axolotl(tmp_path, **data, **ON, neft_scale="relative", plugins=[PLUGIN])
    assert run.exit_code == 0, run.printed[-3000:]
    told = "`neftune_noise_alpha: 5` with `neft_scale: relative` is noise 5 times as strong as"
    assert run.printed.count(told) == 1
    assert run.printed.index(told) < run.printed.index("NEFT:")  # before there is a model


def test_every_key_is_an_argument_with_the_text_of_its_option():
    arguments = NEFTArgs.model_fields
    assert {*arguments, "neftune_noise_alpha"} == {*KEY_OPTIONS, *SPARSITY_KEYS}
    texts = {
        key: f"{OPTIONS[option].metadata['help']} Default: {default_text(option)}."
        for key, option in KEY_OPTIONS.items()
    }
    texts["neft_sparsity"] = f"{ARGUMENTS['sparsity'].metadata['help']} Default: off."
    texts["neft_sparsity_args"] = SPARSITY_ARGS_HELP
    for key, field in arguments.items():
        assert field.default is None, key
        assert field.json_schema_extra["description"] == texts[key]


# `axolotl neft`.


def axolotl(folder, *arguments):
    """Axolotl's command in a process of its own: it changes the streams of that for good."""
    command = [str(Path(sys.executable).with_name("axolotl")), *arguments]
    code = "import runpy, sys; sys.argv = %r; runpy.run_path(sys.argv[0], run_name='__main__')"
    run = run_code(folder, code % (command,))
    return run.exit_code, run.printed


def test_axolotl_neft_is_the_neft_command(tmp_path):
    (entry_point,) = [e for e in entry_points(group="axolotl.cli_commands") if e.name == "neft"]
    (script,) = [e for e in entry_points(group="console_scripts") if e.name == "neft"]
    assert entry_point.value.startswith("neft_plugins.cli")
    assert script.value.startswith("neft_plugins.cli")
    code, listed = axolotl(tmp_path, "neft", "list")
    assert code == 0, listed
    for name in ("rademacher", "polynomial", "response"):
        assert name in listed
    assert "neft" in axolotl(tmp_path, "--help")[1]
    code, wrong = axolotl(tmp_path, "neft", "lst")
    assert code == 2
    assert "No such command 'lst'" in wrong


def test_axolotls_help_stays_fast():
    """What its help imports of ours loads no torch and no host."""
    code = "import neft_plugins.cli.commands, sys; print([h for h in %r if h in sys.modules])"
    heavy = ("torch", "transformers", "trl", "accelerate", "peft", "axolotl", "datasets")
    result = subprocess.run(
        [sys.executable, "-c", code % (heavy,)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
