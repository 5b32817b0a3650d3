"""The rows of each task: written once into a folder, from data that is not part of the project."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

VALIDATION, TEST = 200, 300
STORIES, STORY_TOKENS = 64, 200

Row = dict[str, Any]  # prompt, completion, and every reference of the prompt
Splits = dict[str, list[Row]]


def commongen(data: Path, count: int) -> Splits:
    """Words -> a sentence with them. Held-out rows are of CommonGen's own development set.

    One row a set of words, so no set is in two splits; its first sentence is the completion.
    """

    def sets(name: str) -> dict[frozenset[str], Row]:
        folder = data / "commongen"
        words = (folder / f"commongen.{name}.src_alpha.txt").read_text().splitlines()
        sentences = (folder / f"commongen.{name}.tgt.txt").read_text().splitlines()
        rows: dict[frozenset[str], Row] = {}
        for chosen, sentence in zip(words, sentences, strict=True):
            prompt = f"Words: {', '.join(chosen.split())}\nSentence:"
            new: Row = {"prompt": prompt, "completion": f" {sentence.strip()}", "references": []}
            row = rows.setdefault(frozenset(chosen.split()), new)
            row["references"].append(sentence.strip())
        return rows

    train, dev = sets("train"), sets("dev")
    held_out = [row for words, row in dev.items() if words not in train]
    return _split([*train.values()], held_out, count)


def alpaca(data: Path, count: int) -> Splits:
    """Instructions -> answers, in Alpaca's template, of at most 240 tokens of 4 characters."""
    rows = []
    for one in json.loads((data / "alpaca_5000.json").read_text()):
        given = f"\n\n### Input:\n{one['input']}" if one["input"] else ""
        prompt = f"### Instruction:\n{one['instruction']}{given}\n\n### Response:\n"
        row = {"prompt": prompt, "completion": one["output"], "references": [one["output"]]}
        if one["output"] and len(prompt + one["output"]) <= 600:
            rows.append(row)
    shuffled = _shuffled(rows)
    return _split(shuffled[VALIDATION + TEST :], shuffled[: VALIDATION + TEST], count)


DATA: dict[str, Callable[[Path, int], Splits]] = {"commongen": commongen, "alpaca": alpaca}


def write_rows(folder: Path, name: str, count: int, data: Path, model: str) -> None:
    """Write the splits of a task into a folder, if they are not there yet.

    Files: ``train``, ``validation``, ``test``, ``typos`` (the test rows with typos in their
    prompts) and ``stories`` (sampled from the model, as ``input_ids``), each ``.jsonl``.
    """
    if (folder / "stories.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    splits = DATA[name](data, count)
    draw = random.Random(0)
    splits["typos"] = [row | {"prompt": typos(row["prompt"], draw)} for row in splits["test"]]
    for split, rows in splits.items():
        _write(folder / f"{split}.jsonl", rows)
    _write(folder / "stories.jsonl", ({"input_ids": ids} for ids in sample_stories(model)))


def typos(prompt: str, draw: random.Random) -> str:
    """Two neighbouring letters are exchanged in every second word of 4 letters or more.

    The template's words (the first of each line, up to ':') are left alone.
    """
    lines = []
    for line in prompt.split("\n"):
        head, colon, text = line.rpartition(":")
        words = (_with_typo(word, draw) for word in text.split(" "))
        lines.append(head + colon + " ".join(words))
    return "\n".join(lines)


def _with_typo(word: str, draw: random.Random) -> str:
    pairs = [(i, a, b) for i, (a, b) in enumerate(pairwise(word)) if a.isalpha() and b.isalpha()]
    differing = [(i, a, b) for i, a, b in pairs if a != b]
    if len(pairs) < 3 or not differing or draw.random() < 0.5:
        return word
    i, a, b = draw.choice(differing)
    return f"{word[:i]}{b}{a}{word[i + 2 :]}"


@torch.inference_mode()
def sample_stories(model: str) -> list[list[int]]:
    """Texts as the model was pretrained on: sampled from it, at temperature 1."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    source = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    torch.manual_seed(0)
    start = torch.full((STORIES, 1), tokenizer.bos_token_id)
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    drawn = source.generate(
        start, do_sample=True, top_k=0, max_new_tokens=STORY_TOKENS, eos_token_id=ends
    )
    stories = []
    for ids in drawn.tolist():
        end = next((place for place in range(1, len(ids)) if ids[place] in ends), len(ids))
        stories.append(ids[:end])
    return stories


def digest(files: Iterable[Path]) -> str:
    """What files hold, in one short text."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:16]


def _split(train: list[Row], held_out: list[Row], count: int) -> Splits:
    train, held_out = _shuffled(train), _shuffled(held_out)
    return {
        "train": train[:count],
        "validation": held_out[:VALIDATION],
        "test": held_out[VALIDATION : VALIDATION + TEST],
    }


def _shuffled(rows: list[Row]) -> list[Row]:
    return random.Random(0).sample(rows, len(rows))


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
