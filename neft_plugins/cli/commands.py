"""The commands of ``neft``; hosts are imported only by the commands that need them."""

import inspect
from typing import get_args

import click
from rich.console import Console
from rich.table import Table

from neft_plugins import registry
from neft_plugins.version import __version__


class CleanError(click.ClickException):
    """An error of the user's input: its message and exit code 2, no traceback."""

    exit_code = 2


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    short_help="Noise on input embeddings (NEFTune).",
)
@click.version_option(__version__, prog_name="neft-plugins")
def neft() -> None:
    """Noisy-embedding fine-tuning (NEFTune, arXiv 2310.05914)."""


@neft.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="Fine-tune as `trl sft` does, with the neft_* keys.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def sft(arguments: tuple[str, ...]) -> None:
    """Fine-tune as ``trl sft`` does: its arguments, --config X.yaml, --accelerate_config."""
    import yaml

    from neft_plugins.cli.launch import launch_sft

    try:
        code = launch_sft(list(arguments))
    except (ValueError, OSError, yaml.YAMLError, registry.RegistryError) as error:
        raise CleanError(str(error)) from error
    raise SystemExit(code)


@neft.command("list")
def list_variants() -> None:
    """Every distribution, schedule and token rule, and the package each comes from."""
    table = Table("kind", "name", "what it is", "package")
    problems = []
    for kind in get_args(registry.Kind):
        try:
            variants = registry.variants(kind)
        except registry.RegistryError as error:
            raise CleanError(str(error)) from error
        for name, variant in variants.items():
            try:
                doc = inspect.getdoc(registry.load(kind, name)) or ""
            except registry.RegistryError as error:
                doc = "cannot be loaded"
                problems.append(str(error))
            table.add_row(kind, name, doc.partition("\n")[0], variant.package)
        table.add_section()
    Console().print(table)
    if problems:
        raise CleanError(f"Not every variant can be loaded: {' '.join(problems)}")
