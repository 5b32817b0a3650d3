"""What an editor, a type checker and help show of NEFTSFTTrainer: SFTTrainer's signature."""

import importlib.util
import inspect
import subprocess
import sys

import pytest
from trl import SFTTrainer

from neft_plugins import NEFTSFTTrainer

RIGHT = 'NEFTSFTTrainer(model="x").train(resume_from_checkpoint=True)'
WRONG = ['NEFTSFTTrainer(modle="x")', 'NEFTSFTTrainer(model="x").train(resume=True)']


@pytest.mark.parametrize("name", ["__init__", "train"])
def test_the_signature_is_that_of_sft_trainer(name):
    ours, theirs = getattr(NEFTSFTTrainer, name), getattr(SFTTrainer, name)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert ours is not theirs


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["pyright", "--pythonpath", sys.executable], ["mypy", "--follow-imports=silent"]]
)
def test_type_checkers_see_a_mistyped_argument(tmp_path, command):
    if importlib.util.find_spec(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    script = tmp_path / "script.py"
    lines = ["from neft_plugins import NEFTSFTTrainer", RIGHT, *WRONG]
    script.write_text("\n".join(lines) + "\n")
    program = [sys.executable, "-m", *command, str(script)]
    result = subprocess.run(program, capture_output=True, text=True, check=False, cwd=tmp_path)
    found = [line for line in result.stdout.splitlines() if " error: " in line]
    numbers = {int(line.split("script.py:")[1].split(":")[0]) for line in found}
    assert numbers == {3, 4}, result.stdout
    assert any("modle" in line for line in found)
