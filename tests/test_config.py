"""Every wrong value: what was got, what is allowed, what to do."""

import doctest
import json
import math
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from neft_plugins import NEFTConfig, config, keys, messages, registry
from neft_plugins.checks import refuse_keys_inside
from neft_plugins.config import KEY_NAMES, KEY_OPTIONS, NEFTConfigError, NEFTWarning
from neft_plugins.keys import ALPHA_KEY

WRONG_VALUES = [
    (
        {"neft_distribution": "gausian"},
        "`neft_distribution` must be one of 'gaussian', 'rademacher', 'sparse', 'uniform'; got "
        "'gausian'. Did you mean 'gaussian'?",
    ),
    ({"neft_distribution": 3}, "`neft_distribution` must be one of"),
    (
        {"neft_schedule": "cosin"},
        "`neft_schedule` must be one of 'constant', 'cosine', 'exponential', 'linear', "
        "'polynomial', 'sigmoid', 'step'; got 'cosin'. Did you mean 'cosine'?",
    ),
    (
        {"neft_tokens": "responses"},
        "`neft_tokens` must be one of 'all', 'no_special', 'prompt', 'response'; got 'responses'. "
        "Did you mean 'response'?",
    ),
    (
        {"neft_tokens": ["no_special", "completion"]},
        "`neft_tokens` must be one of 'all', 'no_special', 'prompt', 'response'; got 'completion'. "
        "Did you mean 'response'?",
    ),
    *(
        (
            {"neft_tokens": value},
            f"`neft_tokens` must be the name of a rule or a list of names; got {value!r}.",
        )
        for value in ([], 3, {"response": True})
    ),
    (
        {"neft_tokens": ["prompt", "response"]},
        "`neft_tokens: ['prompt', 'response']` chooses no token: of several rules all must choose "
        "it, and none is both of the prompt and of the response. Name one of the two, or `all`.",
    ),
    (
        {"neft_pairs": "symetric"},
        "`neft_pairs` must be one of 'independent', 'symmetric'; got 'symetric'. Did you mean "
        "'symmetric'?",
    ),
    (
        {"neft_distribution_args": {"p": 0.1}},
        "`neft_distribution_args` of 'uniform' may be nothing: it takes no arguments; got 'p'.",
    ),
    (
        {"neft_distribution": "sparse", "neft_distribution_args": {"q": 0.1}},
        "`neft_distribution_args` of 'sparse' may be 'p'; got 'q'.",
    ),
    (
        {"neft_distribution": "sparse", "neft_distribution_args": {"p": 2}},
        "`neft_distribution_args` of 'sparse': `p` must be ",
    ),
    (
        {"neft_distribution_args": 0.1},
        "`neft_distribution_args` must be a mapping of the distribution's arguments; got 0.1.",
    ),
    (
        {"neft_length": "rows"},
        "`neft_length` must be one of 'noised', 'row', 'sequence'; got 'rows'. Did you mean 'row'?",
    ),
    (
        {"neft_scale": "rel"},
        "`neft_scale` must be one of 'absolute', 'relative'; got 'rel'.",
    ),
    *(
        (
            {"neft_warmup_steps": value},
            "`neft_warmup_steps` must be a number of steps (int >= 0) or a fraction of training in "
            f"[0, 1); got {value!r}.",
        )
        for value in (1.5, -1, -0.1, "ten", True, float("nan"), float("inf"), [1])
    ),
    *(
        ({"neft_alpha_end": value}, f"`neft_alpha_end` must be a number >= 0; got {value!r}.")
        for value in (-1, "one", "inf", True, float("nan"))
    ),
    *(
        ({"neft_seed": value}, f"`neft_seed` must be an int or unset; got {value!r}.")
        for value in (1.0, "1", True)
    ),
    *(
        (
            {"neftune_noise_alpha": value},
            "`neftune_noise_alpha` must be a number >= 0 (5 to 15 is typical, 0 is no noise); got "
            f"{value!r}.",
        )
        for value in (-5, "five", "", True, float("nan"), float("inf"))
    ),
    *(
        ({key: 10**6 + 1}, f"`{key}` must be at most 1e6, and 5 to 15 is typical; got 1000001.")
        for key in ("neftune_noise_alpha", "neft_alpha_end")
    ),
    (
        {"neft_warmup_steps": 2**63 + 1},
        "`neft_warmup_steps` must be at most 2**63 steps; got 9223372036854775809.",
    ),
    *(
        (
            {"neft_seed": value},
            f"`neft_seed` must be from -2**63 to 2**64 - 1, as torch's seeds are; got {value}.",
        )
        for value in (2**64, -(2**63) - 1)
    ),
    (
        {"neft_schedule": "polynomial", "neft_schedule_args": {"power": 1e6 + 1}},
        "`neft_schedule_args` of 'polynomial': `power` must be at most 1e6; got 1000001.0.",
    ),
    (
        {"neft_schedule": "step", "neft_schedule_args": {"step_size": 2**63 + 1}},
        "`neft_schedule_args` of 'step': `step_size` must be at most 2**63 steps; got "
        "9223372036854775809.",
    ),
    # What is quoted is quoted as it was, whatever it looks like.
    ({"neft_tokens": "`scale` {alpha}"}, "'response'; got '`scale` {alpha}'."),
    (
        {"neft_schedule": "polynomial", "neft_schedule_args": {"powr": 2}},
        "`neft_schedule_args` of 'polynomial' may be 'power', 'transition_begin', "
        "'transition_steps', 'reverse'; got 'powr'. Did you mean 'power'?",
    ),
    (
        {"neft_schedule_args": {"power": 2}},
        "`neft_schedule_args` of 'constant' may be nothing: it takes no arguments; got 'power'.",
    ),
    (
        {"neft_schedule_args": [2]},
        "`neft_schedule_args` must be a mapping of the schedule's arguments; got [2].",
    ),
    (
        {"neft_schedule": "polynomial", "neft_schedule_args": {"power": 0}},
        "`neft_schedule_args` of 'polynomial': `power` must be a number > 0; got 0.",
    ),
    (
        {"neft_schedule": "exponential", "neft_schedule_args": {"decay_rate": 2}},
        "`neft_schedule_args` of 'exponential': `decay_rate` must be a number in (0, 1]; got 2.",
    ),
    (
        {"neft_schedule": "exponential", "neft_schedule_args": {"decay_rate": "nan"}},
        "`neft_schedule_args` of 'exponential': `decay_rate` must be a number in (0, 1]; got "
        "'nan'.",
    ),
    ({"neft_length": ""}, "`neft_length` must be one of 'noised', 'row', 'sequence'; got ''."),
    (
        {"neft_schedule": "step", "neft_schedule_args": {"step_size": 1.5}},
        "`neft_schedule_args` of 'step': `step_size` must be a number of steps (int >= 1) or a "
        "fraction of training in (0, 1]; got 1.5.",
    ),
    (
        {"neft_scale": "relative", "neft_length": "sequence"},
        "`neft_length` is not used with `neft_scale: relative`, which scales by each embedding's "
        "RMS; got 'sequence'. Remove `neft_length`, or set `neft_scale: absolute`.",
    ),
    (
        {"neft_schedul": "cosine"},
        "Unknown key `neft_schedul`; the keys are neftune_noise_alpha, neft_distribution, "
        "neft_distribution_args, neft_schedule, neft_schedule_args, neft_alpha_end, "
        "neft_warmup_steps, neft_tokens, neft_pairs, neft_length, neft_scale, neft_seed, "
        "neft_sparsity, neft_sparsity_args. Did you mean 'neft_schedule'?",
    ),
]
# What other libraries call it, or how it is spelt elsewhere -> what it is here.
HINTS = [
    ({"neft_distribution": "normal"}, "gaussian"),
    ({"neft_distribution": "norm"}, "gaussian"),
    ({"neft_distribution": "Normal"}, "gaussian"),
    ({"neft_tokens": "completion"}, "response"),
    ({"neft_tokens": "assistant"}, "response"),
    ({"neft_schedule": "exp"}, "exponential"),
    ({"neft_alpha": 5}, "neftune_noise_alpha"),
    ({"neft_noise": 5}, "neftune_noise_alpha"),
    ({"neft_warmup_ratio": 0.1}, "neft_warmup_steps"),
]


@pytest.mark.parametrize(("keys", "message"), WRONG_VALUES)
def test_a_wrong_key_says_what_to_do(keys, message):
    with pytest.raises(NEFTConfigError, match=re.escape(message)) as told:
        NEFTConfig.from_keys({"neftune_noise_alpha": 5, **keys})
    assert told.value.option == KEY_OPTIONS.get(list(keys)[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [({KEY_OPTIONS[k]: v for k, v in keys.items()}, m) for keys, m in WRONG_VALUES[:-1]],
)
def test_python_names_have_no_prefix(options, message):
    bare = message.replace("neftune_noise_alpha", "alpha").replace("neft_", "")
    with pytest.raises(NEFTConfigError, match=re.escape(bare)) as told:
        NEFTConfig(**{"alpha": 5, **options})
    assert told.value.option == list(options)[-1]


def test_an_error_survives_the_way_between_processes():
    for make in (
        lambda: NEFTConfig(alpha=-1),
        lambda: NEFTConfig.from_keys({ALPHA_KEY: -1}),
    ):
        with pytest.raises(NEFTConfigError) as told:
            make()
        copy = pickle.loads(pickle.dumps(told.value))
        assert (type(copy), str(copy), copy.option) == (NEFTConfigError, str(told.value), "alpha")


HUGE = [1e300, 10**400, -(10**400), 10**5000, [10**5000], {"power": 10**5000}]
NUMBERS = [
    *({option: None} for option in ("alpha", "alpha_end", "warmup_steps", "seed")),
    *(
        {"schedule": schedule, "schedule_args": {argument: None}}
        for schedule, argument in [
            ("polynomial", "power"),
            ("exponential", "decay_rate"),
            ("exponential", "transition_steps"),
            ("step", "step_size"),
            ("step", "decay_rate"),
        ]
    ),
]


@pytest.mark.parametrize("options", NUMBERS, ids=str)
@pytest.mark.parametrize("value", HUGE, ids=lambda value: f"{type(value).__name__}")
def test_a_number_out_of_all_bounds_is_refused_in_words(options, value):
    (*_, option) = options
    given = (
        {"schedule_args": dict.fromkeys(options["schedule_args"], value)}
        if len(options) > 1
        else {option: value}
    )
    with pytest.raises(NEFTConfigError) as told:
        NEFTConfig(**{"alpha": 5, **options, **given})
    assert told.value.option == option
    assert "must be" in str(told.value)
    assert "got " in str(told.value)
    assert len(str(told.value)) < 250


@pytest.mark.parametrize("option", sorted(KEY_NAMES))
@pytest.mark.parametrize("value", [10**5000, [10**5000]], ids=["int", "list"])
def test_no_option_is_too_long_to_be_shown(option, value):
    with pytest.raises(NEFTConfigError, match="got a value of too many digits") as told:
        NEFTConfig(**{"alpha": 5, option: value})
    assert told.value.option == option


@pytest.mark.parametrize(
    ("value", "problem"), [(0, "division by zero"), (10**400, "int too large")]
)
def test_a_schedule_of_another_package_that_cannot_count_so_far(monkeypatch, value, problem):
    def wave(alpha, alpha_end, total_steps, *, period):
        frequency = 1 / float(period)
        return lambda step: alpha * math.cos(frequency * step) ** 2

    monkeypatch.setattr(registry, "load", lambda kind, name: wave)
    message = f"`neft_schedule_args` of 'linear': .*{problem}.*\\.$"
    with pytest.raises(NEFTConfigError, match=message):
        NEFTConfig.from_keys(
            {ALPHA_KEY: 5, "neft_schedule": "linear", "neft_schedule_args": {"period": value}}
        )


def test_a_long_value_is_cut():
    message = r"got '1{59}\.\.\. \(1002 characters\)\."
    with pytest.raises(NEFTConfigError, match=message):
        NEFTConfig(alpha=5, alpha_end="1" * 1000)


@pytest.mark.parametrize(("keys", "meant"), HINTS, ids=str)
def test_what_others_call_it_is_understood(keys, meant):
    with pytest.raises(NEFTConfigError, match=f" Did you mean '{meant}'\\?$"):
        NEFTConfig.from_keys({"neftune_noise_alpha": 5, **keys})


def test_keys_in_a_mapping_are_told_to_be_flat():
    with pytest.raises(NEFTConfigError, match="`neft` is no key of the noise, and the keys in it"):
        NEFTConfig.from_keys({"neftune_noise_alpha": 5, "neft": {"schedule": "cosine"}})


def test_a_number_that_yaml_reads_as_text_is_a_number():
    keys = {
        "neftune_noise_alpha": "1e1",
        "neft_alpha_end": "1e0",
        "neft_warmup_steps": "1e-1",
        "neft_schedule": "exponential",
        "neft_schedule_args": {"decay_rate": "1e-2", "transition_steps": "20"},
    }
    config = NEFTConfig.from_keys(keys)
    assert (config.alpha, config.alpha_end, config.warmup_steps) == (10, 1, 0.1)
    assert config.schedule_args == {"decay_rate": 0.01, "transition_steps": 20}
    assert keys["neft_schedule_args"]["decay_rate"] == "1e-2"  # the caller's is left alone


@pytest.mark.parametrize("option", ["alpha", "alpha_end", "warmup_steps", "seed"])
def test_text_is_no_number_in_python(option):
    with pytest.raises(NEFTConfigError, match=f"`{option}` must be .*; got '1'"):
        NEFTConfig(**{"alpha": 5, option: "1"})


def test_numbers_of_numpy_are_numbers():
    config = NEFTConfig(
        alpha=np.float32(2.5),
        warmup_steps=np.int64(3),
        seed=np.int32(7),
        schedule="polynomial",
        schedule_args={"power": np.float64(3)},
    )
    plain = NEFTConfig(
        alpha=2.5, warmup_steps=3, seed=7, schedule="polynomial", schedule_args={"power": 3.0}
    )
    assert config == plain
    assert json.loads(json.dumps(config.to_dict())) == plain.to_dict()
    assert not isinstance(config.seed, np.generic)
    for wrong in (np.float32("nan"), np.bool_(True), np.ones(2)):
        with pytest.raises(NEFTConfigError, match="`alpha` must be a number"):
            NEFTConfig(alpha=wrong)


@pytest.mark.parametrize("text", ["None", "none", "null"])
@pytest.mark.parametrize("key", sorted(KEY_OPTIONS))
def test_none_in_text_is_unset(key, text):
    values = {"neft_length": "row", "neft_seed": 3, "neft_schedule": "cosine"}
    alpha = {} if key == "neftune_noise_alpha" else {"neftune_noise_alpha": 5}
    given = {k: v for k, v in values.items() if k != key and alpha}
    assert NEFTConfig.from_keys({**alpha, **given, key: text}) == NEFTConfig.from_keys(
        {**alpha, **given}
    )


# A baseline: alpha 0.


def test_alpha_0_is_no_noise_whatever_the_other_keys():
    keys = {
        "neftune_noise_alpha": 0,
        "neft_schedule": "linear",
        "neft_alpha_end": 3,
        "neft_warmup_steps": 0.1,
        "neft_tokens": "response",
    }
    config = NEFTConfig.from_keys(keys)
    schedule = config.build_schedule(20)
    assert {schedule(step) for step in range(21)} == {0.0}
    assert config.describe(20) == "alpha 0, no noise"
    assert (config.schedule, config.tokens) == ("linear", "response")


def test_the_keys_of_a_baseline_are_checked():
    with pytest.raises(NEFTConfigError, match="Did you mean 'cosine'"):
        NEFTConfig.from_keys({"neftune_noise_alpha": 0, "neft_schedule": "cosin"})


def test_a_baseline_is_not_warned_of_its_keys():
    NEFTConfig(alpha=0, alpha_end=3)  # a warning is an error
    NEFTConfig(alpha=0, alpha_end=3, schedule="linear", scale="relative")
    NEFTConfig(alpha=0, warmup_steps=30).build_schedule(20)


def test_seeds_are_those_of_torch():
    generator = torch.Generator()
    for seed in (-(2**63), 2**64 - 1):
        assert NEFTConfig(alpha=5, seed=seed).seed == seed
        generator.manual_seed(seed)
    for seed in (-(2**63) - 1, 2**64):
        with pytest.raises((RuntimeError, ValueError, OverflowError)):
            generator.manual_seed(seed)


@pytest.mark.parametrize("key", sorted(set(KEY_OPTIONS) - {"neftune_noise_alpha"}))
def test_a_key_without_an_alpha_is_an_error(key):
    values = {"neft_schedule_args": {"power": 2}, "neft_alpha_end": 1.0, "neft_seed": 3}
    message = (
        f"`{key}` is set but `neftune_noise_alpha` is not, so there would be no noise. Set "
        "`neftune_noise_alpha` (5 to 15 is typical; 0 is no noise, for a baseline)."
    )
    for alpha in ({}, {"neftune_noise_alpha": None}):
        with pytest.raises(NEFTConfigError, match=re.escape(message)) as told:
            NEFTConfig.from_keys({key: values.get(key, "row"), **alpha})
        assert told.value.option == KEY_OPTIONS[key]


def test_no_alpha_and_no_key_is_no_noise():
    assert NEFTConfig.from_keys({"learning_rate": 1e-4, "neft_tokens": "all"}) is None
    assert NEFTConfig.from_keys({"neftune_noise_alpha": None, "neft_seed": None}) is None


def test_defaults():
    config = NEFTConfig(alpha=5.0)
    assert config.to_dict() == {
        "alpha": 5.0,
        "distribution": "uniform",
        "distribution_args": {},
        "schedule": "constant",
        "schedule_args": {},
        "alpha_end": 0.0,
        "warmup_steps": 0,
        "tokens": "all",
        "pairs": None,
        "length": "sequence",
        "scale": "absolute",
        "seed": None,
    }
    assert NEFTConfig.from_keys({"neftune_noise_alpha": 5.0}) == config
    assert NEFTConfig(alpha=0.1, scale="relative").length is None


def test_an_end_value_that_is_never_reached_is_warned_of():
    with pytest.warns(NEFTWarning, match="`neft_alpha_end` is 1, but `neft_schedule: constant`"):
        NEFTConfig.from_keys({"neftune_noise_alpha": 5, "neft_alpha_end": 1})
    NEFTConfig(alpha=5, alpha_end=1, schedule="linear")


@pytest.mark.parametrize(
    ("options", "told_of"),
    [
        ({"alpha": 5}, "`{alpha}: 5` with `{scale}: relative` is noise 5 times as strong as"),
        ({"alpha": 1.5, "schedule": "cosine"}, "`{alpha}: 1.5` with"),
        ({"alpha": 0.1, "alpha_end": 2, "schedule": "linear"}, "`{alpha_end}: 2` with"),
    ],
)
def test_noise_that_is_stronger_than_the_embeddings_is_warned_of_once(options, told_of):
    options["scale"] = "relative"
    keys = {KEY_NAMES[option]: value for option, value in options.items()}
    for names, make in [
        ({option: option for option in KEY_NAMES}, lambda: NEFTConfig(**options)),
        (KEY_NAMES, lambda: NEFTConfig.from_keys(keys)),
    ]:
        with pytest.warns(NEFTWarning) as told:
            made = make()
        assert [warning.filename for warning in told] == [__file__]
        text = str(told[0].message)
        assert text.startswith(told_of.format(**names))
        assert text.endswith(
            "or set `{scale}: absolute`, where 5 to 15 is typical.".format(**names)
        )
        assert made.scale == "relative"
    # The same is not warned of twice.
    assert NEFTConfig(**options, warn=False) == NEFTConfig.from_keys(keys, warn=False) == made


def test_what_is_meant_is_not_warned_of():
    config = NEFTConfig(alpha=1, scale="relative")
    NEFTConfig(alpha=15)
    with pytest.warns(NEFTWarning, match="`alpha: 3` with `scale: relative`"):
        replace(config, alpha=3)


@pytest.mark.parametrize(
    ("warmup", "total", "message"),
    [
        (200, 100, "ends at step 200 and training at 100, so alpha is only 2.475 at the last"),
        (100, 100, "ends at step 100 and training at 100, so alpha is only 4.95 at the last"),
        (0.6, 2, "ends at step 2 and training at 2, so alpha is only 2.5 at the last"),
        (0.1, 1, "ends at step 1 and training at 1, so alpha is only 0 at the last"),
    ],
)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_that_outlasts_training_is_warned_of(warmup, total, message, schedule):
    config = NEFTConfig(alpha=5, warmup_steps=warmup, schedule=schedule)
    with pytest.warns(NEFTWarning, match=re.escape(f"The warm-up {message} step and never 5.")):
        alpha = config.build_schedule(total)
    assert f"only {alpha(total - 1):g} at" in message
    assert max(alpha(step) for step in range(total)) < 5


def test_a_warm_up_within_training_is_not_warned_of():
    assert NEFTConfig(alpha=5, warmup_steps=99).build_schedule(100)(99) == 5
    NEFTConfig(alpha=5, warmup_steps=99).build_schedule(None)


def test_a_whole_number_of_steps_may_come_as_a_float():
    # argparse makes floats of the command line's numbers.
    assert NEFTConfig(alpha=5, warmup_steps=10.0).build_schedule(20)(5) == 2.5


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"alpha": 5, "schedule": "cosine", "distribution": "gaussian", "tokens": "response"},
            "alpha 5 -> 0 cosine over 120 steps, gaussian, response tokens, L = sequence",
        ),
        (
            {"alpha": 0.1, "scale": "relative", "warmup_steps": 0.1},
            "alpha 0.1 constant over 120 steps, warm-up 0.1 of training, uniform, all tokens, "
            "relative to each embedding's RMS",
        ),
    ],
)
def test_describe(options, line):
    assert NEFTConfig(**options).describe(120) == line


@pytest.mark.parametrize("module", [config, keys, messages])
def test_doctests(module):
    results = doctest.testmod(module)
    assert results.failed == 0
    assert results.attempted > 0


@pytest.mark.parametrize(
    "given",
    [
        ["response", "no_special"],
        ("response", "no_special"),
        "response, no_special",
        '["response", "no_special"]',
    ],
)
def test_tokens_of_several_rules(given):
    made = NEFTConfig.from_keys({ALPHA_KEY: 5, "neft_tokens": given})
    assert made is not None
    assert made.tokens == made.token_rules == ["response", "no_special"]
    assert "response and no_special tokens" in made.describe()
    assert json.loads(json.dumps(made.to_dict()))["tokens"] == made.tokens


def test_a_list_of_one_rule_is_that_rule():
    assert NEFTConfig(5, tokens=["response"]) == NEFTConfig(5, tokens="response")


def test_the_line_says_what_pairs_cost():
    line = NEFTConfig(5, pairs="symmetric").describe(100)
    assert line.endswith("symmetric pairs (each row twice: twice the compute and memory)")


def test_the_line_of_a_schedule_that_runs_backwards():
    line = NEFTConfig(5, schedule="linear", schedule_args={"reverse": True}).describe(100)
    assert line.startswith("alpha 0 -> 5 linear over 100 steps")


def test_the_line_has_the_arguments_of_the_distribution():
    line = NEFTConfig(5, distribution="sparse", distribution_args={"p": 0.2}).describe()
    assert "sparse (p = 0.2)" in line


@pytest.mark.parametrize(
    ("begin", "reverse", "stays"), [(900, False, 5), (499, False, 5), (500, True, 0)]
)
def test_a_transition_that_begins_when_training_is_over_is_warned_of(begin, reverse, stays):
    given = {"transition_begin": begin, "transition_steps": 10, "reverse": reverse}
    late = NEFTConfig(5, schedule="linear", schedule_args=given)
    message = f"`transition_begin` is {begin} and training has 500 steps after the warm-up, so "
    with pytest.warns(NEFTWarning, match=f"{message}alpha stays {stays}. Lower"):
        alpha = late.build_schedule(500)
    assert {alpha(t) for t in range(500)} == {stays}


def test_a_transition_that_begins_just_in_time_is_not_warned_of():
    given = {"transition_begin": 498, "transition_steps": 1000}
    alpha = NEFTConfig(5, schedule="linear", schedule_args=given).build_schedule(500)
    assert alpha(499) < alpha(498) == 5


def test_alpha_is_not_to_be_written_beside_itself():
    with pytest.raises(NEFTConfigError, match=r"inside `trl`.* level of the YAML\. A holder"):
        refuse_keys_inside({"trl": {"neftune_noise_alpha": 5}})
