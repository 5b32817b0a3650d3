"""The documentation is true: its code runs, its configs parse, its commands exist."""

import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import REPO, pip_install
from page_code import namespace, run_block, run_page, run_with_packages
from pages import DOCS, PAGES, Block, anchors, blocks, links
from ranks import run_on_ranks
from transformers import TrainingArguments

VARIANTS = DOCS / "writing_a_variant.md"
FILES = ("pyproject.toml", "neft_extras/__init__.py", "neft_extras/variants.py")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to run in, with the recipes of a checkout; nothing done there outlives the test."""
    (tmp_path / "recipes").symlink_to(REPO / "recipes")
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ, COLUMNS="200"):
        yield tmp_path


@pytest.fixture
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are written for a GPU; without one, Trainers use the CPU, and compilers no C++."""
    compiler = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compiler)
    if torch.cuda.is_available():
        return
    original = TrainingArguments.__post_init__

    def post_init(self: Any) -> None:
        self.use_cpu = True
        original(self)

    monkeypatch.setattr(TrainingArguments, "__post_init__", post_init)


@pytest.mark.parametrize("page", [p for p in PAGES if p != VARIANTS], ids=lambda p: p.name)
@pytest.mark.filterwarnings(
    "ignore",
    "error::neft_plugins.config.NEFTWarning",
    "ignore:The noise is .* times as strong:neft_plugins.config.NEFTWarning",
)
@pytest.mark.usefixtures("folder", "on_this_machine")
def test_a_page_runs(page: Path) -> None:
    missing = run_page(page)
    if missing:
        pytest.skip(missing)


@pytest.mark.slow
def test_the_package_of_the_page_on_variants_is_built_and_used(folder: Path) -> None:
    source, target = folder / "neft-extras", folder / "installed"
    for name in FILES:
        (block,) = [b for b in blocks(VARIANTS) if b.text.startswith(f"# {name}\n")]
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    pip_install(source, target)
    (listed,) = run_on_ranks(
        folder / "run", run_with_packages, VARIANTS, FILES, target, world_size=1
    )
    for name in ("laplace", "cyclic", "no_bos"):
        assert re.search(rf"\b{name}\b.*\bneft-extras 0\.1\.0\b", listed), listed


def test_pages_link_to_what_is_there() -> None:
    for page in [*PAGES, *sorted((REPO / "recipes").rglob("*.md"))]:
        for link in links(page):
            target, _, anchor = link.partition("#")
            if target.startswith(("http:", "https:")):
                continue
            path = (page.parent / target) if target else page
            assert path.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(path), f"{page.name}: {link}"


def test_every_page_is_in_the_index_and_fits_the_screen() -> None:
    index = set(links(DOCS / "index.md"))
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or page.name in index
        lines = page.read_text().splitlines()
        assert max(len(line) for line in lines if not line.startswith("|")) <= 100, page.name


NEFT_IN_AXOLOTL = "plugins: [neft_plugins.NEFTPlugin]\nneftune_noise_alpha: 5\n"
AXOLOTL_ONLY = pytest.mark.skipif(
    importlib.util.find_spec("axolotl") is None, reason="needs axolotl"
)


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        ("python", "assert 1 == 2", ""),
        ("python", "import no_such_package", "no_such_package"),
        ("yaml", "neftune_noise_alpha: 5\nneft_schedul: linear", "Unknown key"),
        ("yaml", "neftune_noise_alpha: [5, -1]", "got -1"),
        ("yaml", "neftune_noise_alpha: 5\nlerning_rate: 1", "lerning_rate"),
        ("yaml", "learning_rate: 1", "neither noise nor sparsity"),
        ("yaml", f"{NEFT_IN_AXOLOTL}neft_tokens: al", "Did you mean 'all'"),
        pytest.param(
            "yaml", f"{NEFT_IN_AXOLOTL}lerning_rate: 1", "lerning_rate", marks=AXOLOTL_ONLY
        ),
        pytest.param("yaml", f"{NEFT_IN_AXOLOTL}adapter: qlra", "qlra", marks=AXOLOTL_ONLY),
        ("toml", "a = ", "Invalid value"),
        ("json", '{"neft_plugins_version": "1", "alpha": 5}', ""),
        ("console", "$ neft sfft", "No such command"),
        ("console", "$ neft sft --config recipes/quickstart.yaml --lerning_rate 1", "lerning_rate"),
        ("console", "$ neft sft --config recipes/nowhere.yaml", "nowhere"),
        ("console", "$ neft list --all", "No such option"),
        ("console", "$ nft list", "unknown command 'nft'"),
        ("console", "$ axolotl neft lst", "No such command"),
        ("console", "$ axolotl train recipes/nowhere.yaml", "nowhere"),
        ("console", "neft list", "begins with $"),
        ("bash", "cd x && neft lst", "No such command"),
        ("perl", "", "unknown language"),
    ],
)
@pytest.mark.usefixtures("folder", "on_this_machine")
def test_a_wrong_block_is_noticed(
    language: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = DOCS / "page.md"
    with pytest.raises((Exception, SystemExit)) as error:
        run_block(page, Block(language, text, 1), namespace(page))
    assert message in str(error.value) + capsys.readouterr().err


PAGE = """
A link to [nowhere](nowhere.md#there), and an ![image](drawing.svg).

<!-- test: setup
x = 1

y = 2
-->

- In a list:

  ```python
  z = x + y
  ```

## A `title`, twice

| a | b |
|---|---|
| [`c`](#d) | e, f |
"""


def test_a_page_is_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    found = [Block("setup", "x = 1\n\ny = 2\n", 4), Block("python", "z = x + y\n", 12)]
    assert blocks(page) == found
    assert list(links(page)) == ["nowhere.md#there", "drawing.svg", "#d"]
    assert anchors(page) == {"a-title-twice"}


@pytest.mark.parametrize("package", ["lightning", "no_such_package"])
def test_a_page_stops_where_an_optional_package_is_missing(package: str, folder: Path) -> None:
    """And at nothing else that is missing."""
    page = folder / "page.md"
    page.write_text(f"```python\nimport {package}\n```\n\n```python\nprint(lightning)\n```\n")
    with mock.patch.dict("sys.modules", {"lightning": None}):
        if package == "lightning":
            assert run_page(page) == "from line 1 of page.md on, its python needs lightning"
        else:
            with pytest.raises(ModuleNotFoundError, match=package):
                run_page(page)
