"""``neft`` itself: its help, how fast it starts, and ``neft list``."""

from importlib.metadata import entry_points

import click
import pytest
from click.testing import CliRunner, Result
from helpers import run_python

import neft_plugins
from neft_plugins.cli.commands import neft as command

HOSTS = ("transformers", "trl", "accelerate", "datasets", "peft")


def neft(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(command, arguments)


def test_version_and_help():
    assert neft("--version").output.strip() == f"neft-plugins, version {neft_plugins.__version__}"
    for flag in ("--help", "-h"):
        result = neft(flag)
        assert result.exit_code == 0
        assert {"list", "recipes", "sft"} <= set(result.output.split())


def test_python_m_neft_plugins_is_neft():
    printed = run_python("-m", "neft_plugins", "--version")
    assert printed == f"neft-plugins, version {neft_plugins.__version__}\n"


def test_axolotls_command_line_has_the_same_commands():
    (entry_point,) = entry_points(group="axolotl.cli_commands", name="neft")
    assert entry_point.load() is command
    assert isinstance(command, click.Group)


def test_what_needs_no_host_starts_without_one():
    code = f"""
import sys
from click.testing import CliRunner
from neft_plugins.cli.commands import neft

def loaded(*arguments):
    CliRunner().invoke(neft, arguments)
    return [name for name in ("torch", *{HOSTS}) if name in sys.modules]

for words in ("--help", "--version", "recipes", "sft -h", "sft", "sft --max_steps 1"):
    assert loaded(*words.split()) == [], words
assert loaded("list") == ["torch"]  # for the variants' formulas; so this test can fail
"""
    run_python("-c", code)


def test_list_has_every_variant_with_its_formula():
    result = neft("list")
    assert result.exit_code == 0
    for part in ("uniform", "N(0, 1/3)", "rademacher", "labels != -100"):
        assert part in result.output
    assert result.output.count(f"neft-plugins {neft_plugins.__version__}") == 12


@pytest.mark.parametrize("words", [("lst",), ("recipes", "--nothing")])
def test_an_unknown_command_or_option_is_an_error(words):
    result = neft(*words)
    assert result.exit_code == 2
    assert f"No such {'command' if words == ('lst',) else 'option'}" in result.output
