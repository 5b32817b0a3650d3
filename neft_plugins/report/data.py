"""Which rows a run is evaluated on: those of its own config, or of files."""

import tempfile
from pathlib import Path
from typing import Any, Literal

import yaml

from neft_plugins.report.models import in_a_line
from neft_plugins.report.runs import Run
from neft_plugins.rows import Rows

Split = Literal["train", "test"]
_NO_LENGTH = 10**6
"""What a tokenizer has, and more, where it knows of no length."""
SPLITS: tuple[Split, Split] = ("train", "test")
"""The rows that a run was trained on, and those that were held out."""


def load_rows(run: Run, split: Split, limit: int, file: Path | None, tokenizer: Any) -> Rows:
    """The first rows of a split, tokenised as the run was trained.

    Args:
        run: The run.
        split: Which rows.
        limit: How many at most.
        file: A file of rows in place of the run's own; its text is formatted by the tokenizer's
            chat template where it is a conversation.
        tokenizer: The run's.

    Returns:
        The rows.

    Raises:
        ValueError: If the run does not say which data it has, or the data is wrong or not at hand;
            the message is a sentence on what to do.
    """
    option = f"`--{split} FILE`"
    try:
        if file is not None:
            from neft_plugins.rows.files import file_rows

            rows = file_rows(file, tokenizer, limit, _max_length(run, tokenizer))
        elif run.trl_keys is not None:
            from neft_plugins.rows.trl import trl_rows

            rows = trl_rows(run.trl_keys, split, limit, answers=True)
        elif run.axolotl_keys is not None:
            rows = _of_axolotl(run.axolotl_keys, split, limit)
        else:
            raise ValueError(
                f"{run.path} does not say which data it was trained on, as runs of `neft sft` and "
                f"Axolotl do. Give {option}."
            )
    except (OSError, ImportError) as error:
        raise ValueError(
            f"The {split} rows of {run.name} are not at hand: {in_a_line(error)}. A path is as "
            f"seen from the folder that the run was started in. Start there, or give {option}."
        ) from error
    if not len(rows):
        raise ValueError(f"{run.name} has no {split} rows. Give {option}.")
    return rows


def _of_axolotl(keys: dict[str, Any], split: Split, limit: int) -> Rows:
    from neft_plugins.rows.axolotl import axolotl_rows

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "axolotl.yaml"
        path.write_text(yaml.safe_dump(keys), encoding="utf-8")
        return axolotl_rows(path, split, limit)


def _max_length(run: Run, tokenizer: Any) -> int | None:
    """Tokens at which the run cut its rows off, or at which its model ends."""
    given = run.keys.get("max_length") or run.keys.get("sequence_len")
    most = tokenizer.model_max_length
    return given or (most if most < _NO_LENGTH else None)
