"""Alpaca as TRL's prompt and completion, in the Alpaca prompt, for llama-2-7b-full-paper.yaml.

For whom:  that recipe, or any other that wants loss on Alpaca's responses only.
Hardware:  any; it writes some 40 MB.
Command:   python recipes/trl/alpaca.py --output data/alpaca
Settings:  each row's ``text`` column is the instruction in the Alpaca prompt, followed by its
           ``output``. TRL could train on ``text`` as it is, but on all of it, instructions too.
"""

import argparse
from pathlib import Path

from datasets import load_dataset

RESPONSE = "### Response:\n"


def split(row: dict[str, str]) -> dict[str, str]:
    """One row as a prompt, up to where the response begins, and a completion."""
    prompt, marker, _ = row["text"].partition(RESPONSE)
    if not marker:
        raise ValueError(f"No {RESPONSE!r} in this row's text: {row['text']!r}")
    return {"prompt": prompt + marker, "completion": row["output"]}


def main() -> None:
    """Read the dataset, split it, and write it as JSON lines."""
    parser = argparse.ArgumentParser(description="Write Alpaca as prompt and completion.")
    parser.add_argument("--dataset_name", default="tatsu-lab/alpaca", help="Hub id or folder.")
    parser.add_argument("--output", type=Path, default=Path("data/alpaca"), help="Folder to make.")
    arguments = parser.parse_args()
    rows = load_dataset(arguments.dataset_name, split="train")
    rows = rows.map(split, remove_columns=rows.column_names)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows.to_json(arguments.output / "train.jsonl")
    print(f"{len(rows)} rows written to {arguments.output / 'train.jsonl'}")


if __name__ == "__main__":
    main()
