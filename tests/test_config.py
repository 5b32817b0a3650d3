"""Every wrong value: what was got, what is allowed, what to do."""

import re
import warnings

import pytest

from neft_plugins import NEFTConfig
from neft_plugins.config import KEY_OPTIONS, NEFTConfigError, NEFTWarning

WRONG_VALUES = [
    (
        {"neft_distribution": "gausian"},
        "`neft_distribution` must be one of 'gaussian', 'rademacher', 'uniform'; got 'gausian'. "
        "Did you mean 'gaussian'?",
    ),
    ({"neft_distribution": 3}, "`neft_distribution` must be one of"),
    (
        {"neft_schedule": "cosin"},
        "`neft_schedule` must be one of 'constant', 'cosine', 'exponential', 'linear', "
        "'polynomial', 'step'; got 'cosin'. Did you mean 'cosine'?",
    ),
    (
        {"neft_tokens": "responses"},
        "`neft_tokens` must be one of 'all', 'prompt', 'response'; got 'responses'. Did you mean "
        "'response'?",
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
            "`neft_warmup_steps` must be a number of steps (int >= 0) or a share of training in "
            f"[0, 1); got {value!r}.",
        )
        for value in (1.5, -1, -0.1, "10", True, float("nan"), float("inf"), [1])
    ),
    *(
        ({"neft_alpha_end": value}, f"`neft_alpha_end` must be a number >= 0; got {value!r}.")
        for value in (-1, "1", True, float("nan"))
    ),
    *(
        ({"neft_seed": value}, f"`neft_seed` must be an int or unset; got {value!r}.")
        for value in (1.0, "1", True)
    ),
    *(
        (
            {"neftune_noise_alpha": value},
            "`neftune_noise_alpha` must be a number > 0 (5 to 15 is typical); got "
            f"{value!r}. Leave it out for no noise.",
        )
        for value in (0, -5, "5", True, float("nan"), float("inf"))
    ),
    (
        {"neft_schedule": "polynomial", "neft_schedule_args": {"powr": 2}},
        "`neft_schedule_args` of 'polynomial' may be 'power'; got 'powr'. Did you mean 'power'?",
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
        {"neft_schedule": "exponential", "neft_schedule_args": {"decay_rate": "1e-2"}},
        "`neft_schedule_args` of 'exponential': `decay_rate` must be a number in (0, 1]; got "
        "'1e-2'.",
    ),
    ({"neft_length": ""}, "`neft_length` must be one of 'noised', 'row', 'sequence'; got ''."),
    (
        {"neft_schedule": "step", "neft_schedule_args": {"step_size": 1.5}},
        "`neft_schedule_args` of 'step': `step_size` must be a number of steps (int >= 1) or a "
        "share of training in (0, 1); got 1.5.",
    ),
    (
        {"neft_scale": "relative", "neft_length": "sequence"},
        "`neft_length` is not used with `neft_scale: relative`, which scales by each embedding's "
        "RMS; got 'sequence'. Remove `neft_length`, or set `neft_scale: absolute`.",
    ),
    (
        {"neft_schedul": "cosine"},
        "Unknown key `neft_schedul`; the keys are neftune_noise_alpha, neft_distribution, "
        "neft_schedule, neft_schedule_args, neft_alpha_end, neft_warmup_steps, neft_tokens, "
        "neft_length, neft_scale, neft_seed. Did you mean 'neft_schedule'?",
    ),
]


@pytest.mark.parametrize(("keys", "message"), WRONG_VALUES)
def test_a_wrong_key_says_what_to_do(keys, message):
    with pytest.raises(NEFTConfigError, match=re.escape(message)):
        NEFTConfig.from_keys({"neftune_noise_alpha": 5, **keys})


@pytest.mark.parametrize(
    ("options", "message"),
    [({KEY_OPTIONS[k]: v for k, v in keys.items()}, m) for keys, m in WRONG_VALUES[:-1]],
)
def test_python_names_have_no_prefix(options, message):
    bare = message.replace("neftune_noise_alpha", "alpha").replace("neft_", "")
    with pytest.raises(NEFTConfigError, match=re.escape(bare)):
        NEFTConfig(**{"alpha": 5, **options})


@pytest.mark.parametrize("key", sorted(set(KEY_OPTIONS) - {"neftune_noise_alpha"}))
def test_a_key_without_an_alpha_is_an_error(key):
    values = {"neft_schedule_args": {"power": 2}, "neft_alpha_end": 1.0, "neft_seed": 3}
    message = (
        f"`{key}` is set but `neftune_noise_alpha` is not, so there would be no noise. Set "
        "`neftune_noise_alpha` (5 to 15 is typical)."
    )
    for alpha in ({}, {"neftune_noise_alpha": None}):
        with pytest.raises(NEFTConfigError, match=re.escape(message)):
            NEFTConfig.from_keys({key: values.get(key, "row"), **alpha})


def test_no_alpha_and_no_key_is_no_noise():
    assert NEFTConfig.from_keys({"learning_rate": 1e-4, "neft_tokens": "all"}) is None
    assert NEFTConfig.from_keys({"neftune_noise_alpha": None, "neft_seed": None}) is None


def test_defaults():
    config = NEFTConfig(alpha=5.0)
    assert config.to_dict() == {
        "alpha": 5.0,
        "distribution": "uniform",
        "schedule": "constant",
        "schedule_args": {},
        "alpha_end": 0.0,
        "warmup_steps": 0,
        "tokens": "all",
        "length": "sequence",
        "scale": "absolute",
        "seed": None,
    }
    assert NEFTConfig.from_keys({"neftune_noise_alpha": 5.0}) == config
    assert NEFTConfig(alpha=0.1, scale="relative").length is None


def test_an_end_value_that_is_never_reached_is_told():
    with pytest.warns(NEFTWarning, match="`neft_alpha_end` is 1, but `neft_schedule: constant`"):
        NEFTConfig.from_keys({"neftune_noise_alpha": 5, "neft_alpha_end": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NEFTConfig(alpha=5, alpha_end=1, schedule="linear")


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
