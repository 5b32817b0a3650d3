"""The results of noise_op.py as tables, printed and in docs/benchmarks.md."""

import math
from typing import Any

from markdown_table import Rows
from noise_op_targets import describe

_TIMES = ("hook", "in place", "fresh", "copy")
_RATIOS = ("in place", "fresh")


def make_tables(record: dict[str, Any]) -> dict[str, Rows]:
    """Each table by its name, heads first; those that were measured."""
    cases = record.get("operation", [])
    tables = {"targets": targets(record["targets"])}
    for sweep in dict.fromkeys(case["sweep"] for case in cases):
        rows = [[label(case), *times(case)] for case in cases if case["sweep"] == sweep]
        tables[sweep] = times_head("case") + rows
    if cases:
        tables["memory"] = memory(cases)
    if "packed" in record:
        rows = [[str(case["documents"]), *times(case)] for case in record["packed"]]
        tables["packed"] = times_head("documents") + rows
    if "step" in record:
        tables["step"] = step(record["step"])
    if "import" in record:
        tables["import"] = imports(record["import"])
    return tables


def targets(found: list[dict[str, Any]]) -> Rows:
    rows = [["target", "at most", "worst", "at", "reached"]]
    for each in found:
        reached = {True: "yes", False: "**no**", None: "not measured"}[each["reached"]]
        figure = "" if each["figure"] is None else number(each["figure"])
        rows.append([each["target"], f"{each['limit']:g}", figure, each["at"] or "", reached])
    return rows


def label(case: dict[str, Any]) -> str:
    """What sets a case apart in its sweep."""
    kind = describe(case).partition(") ")[2]
    if case["sweep"] in ("tokens", "d"):
        rows, width = case["batch"]
        return f"{rows * width:,} x {case['d']:,}, {case['dtype']}"
    return kind


def times_head(first: str) -> Rows:
    return [[first, *(f"{noise}, ms" for noise in _TIMES), *(f"{r} / hook" for r in _RATIOS)]]


def times(case: dict[str, Any]) -> list[str]:
    noises = case["noises"]
    spent = [number(noises[noise]["ms"]) for noise in _TIMES]
    return spent + [spread(noises[noise]["over_hook"]) for noise in _RATIOS]


def memory(cases: list[dict[str, Any]]) -> Rows:
    """By shape and dtype, the most of any distribution and token rule."""
    rows = [["shape", "dtype", "hook", "in place", "fresh", "copy"]]
    most: dict[tuple[str, str], dict[str, float]] = {}
    for case in cases:
        if case["sweep"] not in ("tokens", "d"):
            shape = ", ".join(map(str, (*case["batch"], case["d"])))
            seen = most.setdefault((f"({shape})", case["dtype"]), {})
            for noise, found in case["noises"].items():
                seen[noise] = max(seen.get(noise, 0.0), found["extra_memory"])
    for (shape, dtype), seen in most.items():
        rows.append([shape, dtype, *(f"{seen[noise]:.2f}" for noise in rows[0][2:])])
    return rows


def step(found: dict[str, Any]) -> Rows:
    rows = [["noise", "step, ms", "over off"]]
    return rows + [
        [noise, number(one["ms"]), spread(one["over_off"])]
        for noise, one in found["noises"].items()
    ]


def imports(found: dict[str, Any]) -> Rows:
    return [
        ["imported", "ms"],
        ["`torch`", number(found["torch_ms"])],
        ["`neft_plugins`, after it", number(found["package_ms"])],
        ["the same, and `attach_neft` and `NEFTConfig`", number(found["package_and_names_ms"])],
    ]


def setup(record: dict[str, Any]) -> str:
    """On what and how it was measured."""
    versions = ", ".join(" ".join(pair) for pair in record["versions"].items())
    machine = ", ".join(filter(None, [record["gpu"], record["machine"]]))
    text = (
        f"{machine}; {record['threads']} threads; {versions}; seed {record['seed']}; alpha "
        f"{record['alpha']:g}; a vocabulary of {record['vocabulary']:,}."
    )
    if "step" in record:
        step = record["step"]
        text += (
            f" The step: {step['model']}, {step['dtype']}, {step['batch'][0]} rows of "
            f"{step['batch'][1]} tokens, {step['optimizer']}."
        )
    if "compiled" in record:
        text += f" Compiled by the backend {record['compiled']['backend']}."
    if record.get("skipped"):
        left = "; ".join(f"{describe(s)}, {s['needs_GiB']} GiB" for s in record["skipped"])
        text += f" Left out, for more than {record['memory_GiB']:g} GiB of memory: {left}."
    return text


def spread(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return ""
    found = (ratio["median"], *ratio["25_to_75_percent"])
    median, low, high = (f"{each:.{2 if each < 10 else 1}f}" for each in found)
    return f"{median} ({low}-{high})"


def number(value: float) -> str:
    """Three digits, and never fewer than those before the point."""
    if value == 0 or isinstance(value, int):
        return str(value)
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"
