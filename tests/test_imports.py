"""The core needs torch alone; public names load on first use; a missing host is named."""

import importlib.util
import subprocess
import sys
import textwrap

import pytest

import neft_plugins

HOSTS = ("transformers", "trl", "axolotl", "peft", "accelerate", "datasets", "deepspeed", "click")

HIDE = """
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {hosts!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Missing())
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )


def hosts_loaded_by(code: str) -> str:
    report = f"\nimport sys; print([h for h in {HOSTS!r} if h in sys.modules])"
    result = run(textwrap.dedent(code) + report)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


def test_importing_the_package_loads_no_host_and_not_even_torch():
    code = "import neft_plugins, sys; assert 'torch' not in sys.modules"
    assert hosts_loaded_by(code) == "[]"


def test_the_core_loads_no_host():
    code = """
        import torch
        from neft_plugins import NEFTConfig, NEFTHandle, attach_neft

        model = torch.nn.Sequential(torch.nn.Embedding(9, 4))
        with attach_neft(model, NEFTConfig(alpha=5.0), embedding="0"):
            model(torch.ones(1, 3, dtype=torch.int64))
    """
    assert hosts_loaded_by(code) == "[]"


def test_the_check_of_hosts_can_fail():
    assert hosts_loaded_by("import click") == "['click']"


@pytest.mark.parametrize(
    ("name", "host", "extra"),
    [
        ("NEFTCallback", "transformers", "trl"),
        ("NEFTSFTConfig", "trl", "trl"),
        ("NEFTSFTTrainer", "trl", "trl"),
        ("NEFTPlugin", "axolotl", "axolotl"),
    ],
)
def test_a_missing_host_says_what_to_install(name, host, extra):
    result = run(
        HIDE.format(hosts=(host,))
        + f"""
        import neft_plugins

        neft_plugins.{name}
    """
    )
    message = f"`{name}` needs {host}; install it with pip install 'neft-plugins[{extra}]'"
    assert message in result.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_names_without_their_host_are_not_there():
    """For `import *`, `help`, `dir` and `inspect.getmembers`, which then show the others."""
    result = run(
        HIDE.format(hosts=("axolotl", "trl"))
        + """
        import inspect, pydoc
        from neft_plugins import *

        import neft_plugins

        absent = ["NEFTPlugin", "NEFTSFTConfig", "NEFTSFTTrainer"]
        assert NEFTConfig is neft_plugins.NEFTConfig
        assert not {*absent} & {*globals(), *neft_plugins.__all__, *dir(neft_plugins)}
        members = dict(inspect.getmembers(neft_plugins))
        assert members["attach_neft"] is attach_neft
        assert "NEFTPlugin" not in members
        assert "NEFTCallback" in pydoc.render_doc(neft_plugins)
        assert not any(hasattr(neft_plugins, name) for name in absent)
        assert getattr(neft_plugins, "NEFTPlugin", "default") == "default"
        try:
            from neft_plugins import NEFTPlugin
        except ImportError as error:
            print(error)
    """
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == (
        "`NEFTPlugin` needs axolotl; install it with pip install 'neft-plugins[axolotl]'"
    )


def test_every_public_name_loads():
    absent = set() if importlib.util.find_spec("axolotl") else {"NEFTPlugin"}
    for name in set(neft_plugins.__all__) - absent:
        assert getattr(neft_plugins, name) is not None
    assert set(neft_plugins.__all__) <= set(dir(neft_plugins))
    with pytest.raises(AttributeError, match="has no attribute 'NEFTTrainer'"):
        _ = neft_plugins.NEFTTrainer
