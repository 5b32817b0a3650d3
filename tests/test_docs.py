"""The documentation is true: its code runs, its configs parse, its commands and messages exist.

A page's ``python`` blocks share one namespace, in order. ``<!-- test: setup ... -->`` before a
block is code that readers need not see: a tiny model, a few batches. Names of models and datasets
on the Hub are replaced by tiny ones; nothing else is.
"""

import ast
import functools
import importlib.util
import inspect
import itertools
import json
import os
import re
import shlex
import statistics
import string
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import yaml
from helpers import DATA, MODEL, REPO, run_python, tiny_llama

from neft_plugins import NEFTConfig, registry
from neft_plugins.config import KEY_OPTIONS, OPTIONS, default_text
from neft_plugins.trainer.record import make_record

DOCS = REPO / "docs"
PAGES = [REPO / "README.md", *sorted(DOCS.glob("*.md"))]
VARIANTS = DOCS / "writing_a_variant.md"
LANGUAGES = {"python", "yaml", "toml", "json", "console", "bash", "text", "setup"}
OTHER_COMMANDS = {
    *("accelerate", "axolotl", "cd", "git", "pip", "pytest", "python", "python3"),
    *("tensorboard", "torchrun", "tox", "trl", "uv"),
}
# What Axolotl cannot do without; a page may show the noise alone.
AXOLOTL = {
    "base_model": MODEL,
    "datasets": [{"path": DATA, "type": "alpaca"}],
    "learning_rate": 1e-4,
    "micro_batch_size": 1,
    "num_epochs": 1,
}
HUB_MODEL = re.compile(r"(?<=[\"'])(?:Qwen|HuggingFaceTB|google|meta-llama)/[\w.-]+(?=[\"'])")
HUB_DATASET = re.compile(r"(?<=[\"'])trl-lib/[\w.-]+(?=[\"'])")


class Block(NamedTuple):
    language: str
    text: str
    line: int  # of the opening fence, from 1

    @property
    def file(self) -> str | None:
        """The file that the block is, when its first line is a comment with a path."""
        named = re.fullmatch(r"# ([\w./-]+\.(?:py|toml))", self.text.partition("\n")[0])
        return named[1] if named else None


def read_blocks(page: Path) -> list[Block]:
    blocks, opened = [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if opened is None and re.match(r"\s*```", line):
            opened = (line.strip().removeprefix("```").strip(), number, "```", [])
        elif opened is None and line.strip() == "<!-- test: setup":
            opened = ("setup", number, "-->", [])
        elif opened is not None and line.strip() == opened[2]:
            blocks.append(Block(opened[0], textwrap.dedent("\n".join(opened[3])) + "\n", opened[1]))
            opened = None
        elif opened is not None:
            opened[3].append(line)
    assert opened is None, f"{page.name}:{opened[1]} is never closed"
    return blocks


# What a page's code may use without saying where it comes from.


def stories(count: int = 8) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [
            {"prompt": f"Write story {i}.\nStory:", "completion": " A river sang." * (i % 3 + 1)}
            for i in range(count)
        ]
    )


def pairs(count: int = 8) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [
            {"prompt": f"Story {i}:", "chosen": " The river sang.", "rejected": " No."}
            for i in range(count)
        ]
    )


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    made = []
    for _ in range(count):
        ids = torch.randint(3, 64, (4, 9))
        mask = torch.ones_like(ids)
        mask[::2, 6:] = 0
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :3] = -100
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def tiny_t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = T5Config(**sizes, vocab_size=64, pad_token_id=0, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config).train()


def seq2seq_batches(count: int) -> list[dict[str, torch.Tensor]]:
    return [
        {"input_ids": torch.randint(1, 64, (2, 7)), "labels": torch.randint(1, 64, (2, 5))}
        for _ in range(count)
    ]


def namespace() -> dict[str, Any]:
    made: dict[str, Any] = {"__name__": "page", "tiny_llama": tiny_llama, "tiny_t5": tiny_t5}
    made |= {"batches": batches, "seq2seq_batches": seq2seq_batches}
    return made | {"stories": stories, "pairs": pairs}


def readme_namespace() -> dict[str, Any]:
    """The README has no hidden code: these are the names a reader has of their own."""
    loader = batches(4)
    more = {"total_steps": len(loader), "preferences": pairs()}
    return namespace() | {"model": tiny_llama(), "loader": loader, "dataset": stories()} | more


# Running a page


def run_page(page: Path) -> None:
    """Run a page's blocks in the current folder, which must be one to write to."""
    names = readme_namespace() if page.name == "README.md" else namespace()
    for block in read_blocks(page):
        try:
            run_block(page, block, names)
        except Exception as error:
            error.add_note(f"in the {block.language} block of {page.name}, line {block.line}")
            raise


def run_block(page: Path, block: Block, names: dict[str, Any]) -> None:
    assert block.language in LANGUAGES, f"unknown language {block.language!r}"
    if page == VARIANTS and block.file is not None:
        return  # a file of the package that is installed
    if block.language in ("python", "setup"):
        code = HUB_DATASET.sub(DATA, HUB_MODEL.sub(MODEL, block.text))
        # Padded, so that a traceback's line is the page's.
        exec(compile("\n" * block.line + code, page, "exec"), names)
    elif block.language == "yaml":
        check_yaml(block.text)
    elif block.language == "json":
        check_json(block.text)
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language in ("console", "bash"):
        for command in read_commands(block):
            check_command(command)


def check_yaml(text: str) -> None:
    """Noise keys, or a config of ``neft sft`` or of Axolotl, whose every key must be known."""
    keys = yaml.safe_load(text)
    assert NEFTConfig.from_keys(keys) is not None, "no noise"
    if keys.keys() <= KEY_OPTIONS.keys():
        return
    if any(str(plugin).endswith(".NEFTPlugin") for plugin in keys.get("plugins", [])):
        check_axolotl(keys)
        return
    from neft_plugins.trl.sft import make_parser

    Path("page.yaml").write_text(text)
    _, training, *_ = make_parser().parse_args_and_config(["--config", "page.yaml"])
    assert training.neft_config() == NEFTConfig.from_keys(keys)


def check_axolotl(keys: dict[str, Any]) -> None:
    """Axolotl's own validation, where it is installed; what it drops in silence is an error."""
    if importlib.util.find_spec("axolotl") is None:
        return
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    config = DictDefault(AXOLOTL | keys)
    prepare_plugins(config)
    dropped = keys.keys() - validate_config(config).keys()
    assert not dropped, f"Axolotl does not know {dropped}"


def check_json(text: str) -> None:
    """The record that is written beside a checkpoint."""
    record = json.loads(text)
    config = NEFTConfig(**{name: record[name] for name in OPTIONS})
    made = make_record(config, record["total_steps"], record["seed"])
    assert record == made | {"neft_plugins_version": record["neft_plugins_version"]}


def read_commands(block: Block) -> list[str]:
    """The lines after ``$`` of a console block; every line of a bash block."""
    text = re.sub(r"\\\n\s*", "", block.text)
    lines = [line.strip() for line in text.splitlines()]
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        assert lines, "a console block needs a line that begins with $"
    commands = [line for line in lines if line and not line.startswith("#")]
    return [part for command in commands for part in command.split(" && ")]


def check_command(command: str) -> None:
    words = shlex.split(command, comments=True)
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    program = Path(words[0]).name
    assert program in OTHER_COMMANDS | {"neft"}, f"unknown command {program!r}"
    for word in words[1:]:
        if word.startswith(("recipes/", "tests/")):
            assert (REPO / word).exists(), f"{word} is not there"
    if words[:2] == ["axolotl", "neft"]:
        words = words[1:]
    if Path(words[0]).name == "neft":
        run_neft(words[1:])


def run_neft(words: list[str]) -> str:
    """Run ``neft`` in this process, all but the launch of a training process."""
    from click.testing import CliRunner

    from neft_plugins.cli.commands import neft

    if words[0] != "sft":
        result = CliRunner().invoke(neft, words)
    else:
        from neft_plugins.cli import launch

        with mock.patch.object(launch, "launch_command") as launched:
            result = CliRunner().invoke(neft, words)
        assert launched.called == ("--help" not in words), result.output
    assert result.exit_code == 0, f"neft {shlex.join(words)}: {result.output}"
    return result.output


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
    from transformers import TrainingArguments

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
    if page.stem == "sentence_transformers":
        pytest.importorskip("sentence_transformers")
    run_page(page)


def test_the_package_of_the_page_on_variants_is_built_and_used(folder: Path) -> None:
    source, target = folder / "neft-extras", folder / "installed"
    files = {block.file: block for block in read_blocks(VARIANTS) if block.file is not None}
    assert set(files) == {"pyproject.toml", "neft_extras/__init__.py", "neft_extras/variants.py"}
    for name, block in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target"]
    run_python("-m", "pip", "install", *options, str(target), str(source))
    support = str(REPO / "tests" / "support")
    search = os.pathsep.join(filter(None, [str(target), support, os.environ.get("PYTHONPATH")]))
    listed = run_python(__file__, VARIANTS.name, PYTHONPATH=search)
    for name in ("laplace", "cyclic", "no_bos"):
        assert re.search(rf"\b{name}\b.*\bneft-extras 0\.1\.0\b", listed), listed


def test_pages_link_to_what_is_there() -> None:
    for page in PAGES:
        for target, anchor in re.findall(
            r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()
        ):
            path = (page.parent / target) if target else page
            assert path.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in headings(path), f"{page.name}: {target}#{anchor}"


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_index_and_fits_the_screen() -> None:
    index = (DOCS / "index.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index
        assert max(map(len, page.read_text().splitlines())) <= 100, page.name


# Keys


def table_rows(page: Path) -> list[list[str]]:
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_key_is_explained_with_its_default() -> None:
    page = DOCS / "keys.md"
    rows = [row for row in table_rows(page) if row[0].startswith("[`neft")]
    assert rows == [
        [f"[`{key}`](#{key})", what_it_is(option), default_text(option)]
        for key, option in KEY_OPTIONS.items()
    ]
    for key in KEY_OPTIONS:
        assert f"\n## {key}\n" in page.read_text()


def what_it_is(option: str) -> str:
    """The beginning of an option's text, before its values."""
    return re.split("[:;,.]", OPTIONS[option].metadata["help"])[0]


@pytest.mark.parametrize("kind", registry.GROUPS)
def test_every_variant_of_ours_is_explained_with_its_arguments(kind: registry.Kind) -> None:
    sections = re.split(r"^## ", (DOCS / "keys.md").read_text(), flags=re.MULTILINE)
    (section,) = [s for s in sections if s.startswith(f"neft_{kind}\n")]
    ours = [n for n, v in registry.variants(kind).items() if v.package.startswith("neft-plugins ")]
    for name in ours:
        assert f"| `{name}`" in section
    if kind == "schedule":
        (arguments,) = [s for s in sections if s.startswith("neft_schedule_args\n")]
        for name in ours:
            parameters = list(inspect.signature(registry.load(kind, name)).parameters.values())[3:]
            (item,) = re.findall(
                rf"^- [^:]*`{name}`.*?(?=^- |^A fraction)", arguments, re.MULTILINE | re.DOTALL
            )
            for parameter in parameters:
                assert f"`{parameter.name}`" in item
                default = "T" if parameter.default is None else parameter.default
                assert f"default {default}" in " ".join(item.split())


def test_the_table_of_keys_in_the_readme_is_the_text_of_the_options() -> None:
    rows = [row for row in table_rows(REPO / "README.md") if row[0].startswith("`neft")]
    assert rows == [
        [f"`{key}`", OPTIONS[option].metadata["help"], default_text(option)]
        for key, option in KEY_OPTIONS.items()
    ]


def test_the_docstring_of_the_config_begins_each_text() -> None:
    arguments = re.findall(r"^ {8}([a-z_]+): (.*)\.$", str(NEFTConfig.__doc__), re.MULTILINE)
    told = dict(arguments)
    assert told.pop("warn")
    assert told == {option: what_it_is(option) for option in OPTIONS}


# Measurements


@pytest.mark.parametrize("name", ["alpaca", "quickstart"])
def test_the_noise_that_is_quoted_was_measured(name: str) -> None:
    path = REPO / "tests" / "benchmarks" / "results" / f"packing_noise_{name}.json"
    quoted = table_rows(DOCS / "benchmarks.md")
    for one in json.loads(path.read_text())["results"]:
        widths = " to ".join(map(str, sorted(set(one["row_width"]))))
        low, high = one["ratio_5_to_95_percent"]
        ratios = [f"{one['ratio_mean']:.3f}", f"{one['ratio_sd']:.3f}", f"{low:.3f} to {high:.3f}"]
        row = [one["rows"], widths, one["noise"], *ratios, f"{one['closed_form_mean']:.3f}"]
        assert row in quoted, row


@pytest.mark.parametrize("model", ["quickstart", "stories15M"])
def test_the_steps_that_are_quoted_were_measured(model: str) -> None:
    path = REPO / "tests" / "benchmarks" / "results" / f"ranks_cost_{model}.json"
    results = json.loads(path.read_text())["results"]
    quoted = table_rows(DOCS / "benchmarks.md")
    for engine in {one["engine"] for one in results}:
        ratios = {one["noise"]: one["ratio"] for one in results if one["engine"] == engine}
        cells = [
            f"{rounded(statistics.median(found))} ({rounded(min(found))} to {rounded(max(found))})"
            for found in map(ratios.get, ("off again", "built-in", "plugin"))
        ]
        assert [model, engine, *cells] in quoted, cells


def rounded(ratio: float) -> Decimal:
    """To two places; a half of the last goes up, as by hand."""
    return Decimal(str(ratio)).quantize(Decimal("0.01"), ROUND_HALF_UP)


# Messages

Template = tuple[str | None, ...]  # constant parts of a message; None is what varies


class Module:
    """A module's source, read for the messages that it raises and warns."""

    def __init__(self, source: str, name: str) -> None:
        self.name = name
        self.tree = ast.parse(source)
        self.functions = {
            node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)
        }

    def messages(self) -> Iterator[tuple[str, Template]]:
        """(place, message) of every raise, warning and exit with a message of its own."""
        for function in [*self.functions.values(), self.tree]:
            for node in own_nodes(function):
                told = self.told(node)
                if told is None:
                    continue
                for template in self.read(told, function):
                    yield f"{self.name}:{node.lineno}", template

    def told(self, node: ast.AST) -> ast.expr | None:
        """The expression that becomes the message; None where the node tells nothing new."""
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "sys.exit"):
            passed_on = ast.unparse(node.args[0]) in ("doubt", "doubt.with_keys")
            return None if passed_on else node.args[0]
        if isinstance(node, ast.Yield) and ast.unparse(node.value).startswith("_text("):
            return node.value
        if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
            return None  # raised again as it was
        call = node.exc
        if ast.unparse(call.func) in self.functions:
            return call
        passed_on = not call.args or ast.unparse(call.args[0]) in ("str(error)", "code")
        return None if passed_on else call.args[0]

    def read(self, node: ast.expr, function: ast.AST) -> list[Template]:
        """Every text an expression of a function may be."""
        if isinstance(node, ast.Constant):
            return [(str(node.value),)]
        if isinstance(node, ast.JoinedStr):
            parts = [self.read(part, function) for part in node.values]
            return [sum(texts, ()) for texts in itertools.product(*parts)]
        if isinstance(node, ast.FormattedValue):
            plain = isinstance(node.value, ast.Name) and self.assigned(node.value.id, function)
            return self.read(node.value, function) if plain else [(None,)]
        if isinstance(node, ast.IfExp):
            return self.read(node.body, function) + self.read(node.orelse, function)
        if isinstance(node, ast.Name):
            return self.read_name(node.id, function)
        if isinstance(node, ast.Call):
            return self.read_call(node, function)
        return [(None,)]

    def assigned(self, name: str, function: ast.AST) -> list[ast.expr]:
        return [
            node.value
            for node in own_nodes(function)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
        ]

    def read_name(self, name: str, function: ast.AST) -> list[Template]:
        values = self.assigned(name, function)
        if values:
            first = self.read(values[0], function)
            formatted = any(f"{name}.format(" in ast.unparse(value) for value in values[1:])
            return [fill(template) for template in first] if formatted else first
        assert isinstance(function, ast.FunctionDef), name
        position = [argument.arg for argument in function.args.args].index(name)
        return [
            text
            for caller in self.functions.values()
            for node in own_nodes(caller)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == function.name
            for text in self.read(node.args[position], caller)
        ]

    def read_call(self, node: ast.Call, function: ast.AST) -> list[Template]:
        name = ast.unparse(node.func)
        if name in ("_error", "_text"):  # config's own, which format their template
            return [fill(template) for template in self.read(node.args[0], function)]
        if name not in self.functions:
            return [(None,)]
        texts = []
        for inner in own_nodes(self.functions[name]):
            if isinstance(inner, ast.Return) and ast.unparse(inner) not in (
                "return",
                "return None",
            ):
                is_error = isinstance(inner.value, ast.Call)
                value = inner.value.args[0] if is_error else inner.value
                texts += self.read(value, self.functions[name])
        return texts


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function, or of a module, without those of the functions inside."""
    for child in ast.iter_child_nodes(function):
        if isinstance(child, ast.FunctionDef):
            continue
        yield child
        yield from own_nodes(child)


def fill(template: Template) -> Template:
    """The template of ``str.format``'s result."""
    text = "".join("\0" if part is None else part for part in template)
    parts: list[str | None] = []
    for literal, field, _, _ in string.Formatter().parse(text):
        parts += [literal] if field is None else [literal, None]
    return tuple(parts)


def pattern(template: Template) -> str:
    return "".join(".*" if part is None else re.escape(part) for part in template)


def documented_messages() -> list[str]:
    blocks = read_blocks(DOCS / "errors.md")
    return [" ".join(block.text.split()) for block in blocks if block.language == "text"]


def source_messages() -> list[tuple[str, str]]:
    return [
        (place, pattern(template))
        for path in sorted((REPO / "neft_plugins").rglob("*.py"))
        for place, template in Module(path.read_text(), str(path.relative_to(REPO))).messages()
    ]


def test_every_message_is_in_the_documentation() -> None:
    documented = documented_messages()
    missing = [
        f"{place}: {regex}"
        for place, regex in source_messages()
        if not any(re.search(regex, message) for message in documented)
    ]
    assert not missing, "not in docs/errors.md:\n" + "\n".join(missing)


def test_every_message_of_the_documentation_is_in_the_source() -> None:
    patterns = [regex for _, regex in source_messages()]
    assert all(len(regex.replace(".*", "")) >= 8 for regex in patterns), "no constant text"
    invented = [
        message
        for message in documented_messages()
        if not any(re.fullmatch(regex, message) for regex in patterns)
    ]
    assert not invented, "not in neft_plugins:\n" + "\n".join(invented)


# The tests of these tests

NEFT_IN_AXOLOTL = "plugins: [neft_plugins.NEFTPlugin]\nneftune_noise_alpha: 5\n"
AXOLOTL_ONLY = pytest.mark.skipif(
    importlib.util.find_spec("axolotl") is None, reason="needs axolotl"
)


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("def f(x):\n    raise ValueError(f'wrong:{x}!')", ["wrong:.*!"]),
        ("def f(x):\n    raise _error('wrong_`{b}`', b=x)\ndef _error(t): ...", ["wrong_`.*`"]),
        ("def f(x):\n    g(x, 'said_by_f')\ndef g(x, m):\n    raise E(m)", ["said_by_f"]),
        ("def f():\n    raise E(g(1))\ndef g(x):\n    return f'from_g_{x}'", ["from_g_.*"]),
        (
            "def f():\n    m = g(1)\n    raise E(f'from_{m}')\n"
            "def g(x):\n    if x:\n        return 'g'\n    return None",
            ["from_g"],
        ),
        ("def f():\n    raise g(1)\ndef g(x):\n    return E(f'from_g_{x}')", ["from_g_.*"]),
        ("def f():\n    m = 'wrong:{a}'\n    m = m.format(a=1)\n    raise E(m)", ["wrong:.*"]),
        (
            "def f():\n    m = 'yes' if f else 'no'\n    warnings.warn(f'answer:{m}')",
            ["answer:yes", "answer:no"],
        ),
        ("def f():\n    yield _text('odd_`{b}`', b=1)\ndef _text(t): ...", ["odd_`.*`"]),
        ("def f():\n    for doubt in g():\n        warnings.warn(doubt)", []),
        ("sys.exit(f'exit_with_{1}')", ["exit_with_.*"]),
        ("try: ...\nexcept E as error:\n    raise", []),
    ],
)
def test_messages_are_read(source: str, texts: list[str]) -> None:
    assert [pattern(template) for _, template in Module(source, "m.py").messages()] == texts


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        ("python", "assert 1 == 2", ""),
        ("yaml", "neftune_noise_alpha: 5\nneft_schedul: linear", "Unknown key"),
        ("yaml", "neftune_noise_alpha: 5\nlerning_rate: 1", "lerning_rate"),
        ("yaml", "learning_rate: 1", "no noise"),
        ("yaml", f"{NEFT_IN_AXOLOTL}neft_tokens: al", "Did you mean 'all'"),
        pytest.param(
            "yaml", f"{NEFT_IN_AXOLOTL}lerning_rate: 1", "lerning_rate", marks=AXOLOTL_ONLY
        ),
        pytest.param("yaml", f"{NEFT_IN_AXOLOTL}adapter: qlra", "qlra", marks=AXOLOTL_ONLY),
        ("json", '{"neft_plugins_version": "1", "alpha": 5}', ""),
        ("console", "$ neft sfft", "No such command"),
        ("console", "$ neft sft --lerning_rate 1", "lerning_rate"),
        ("console", "$ neft sft --config recipes/nowhere.yaml", "nowhere"),
        ("console", "$ neft list --all", "No such option"),
        ("console", "$ nft list", "unknown command 'nft'"),
        ("console", "$ axolotl neft lst", "No such command"),
        ("console", "$ axolotl train recipes/nowhere.yaml", "nowhere"),
        ("perl", "", "unknown language"),
    ],
)
@pytest.mark.usefixtures("folder", "on_this_machine")
def test_a_wrong_block_is_noticed(
    language: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((Exception, SystemExit)) as error:
        run_block(DOCS / "page.md", Block(language, text, 1), namespace())
    assert message in str(error.value) + capsys.readouterr().err


if __name__ == "__main__":
    run_page(DOCS / sys.argv[1])
    print(run_neft(["list"]))
