"""What the operation should cost at the most, and whether it does."""

from collections.abc import Callable
from typing import Any

LARGE = 2**23  # coordinates
NOISES = ("fresh", "in place")

# Limits on a CPU, and of memory everywhere.
_OVER_HOOK = {"fresh": 0.55, "in place": 0.4}
_OVER_HOOK_GAUSSIAN = {"fresh": 0.8, "in place": 0.7}
_MEMORY = {"fresh": 1.05, "in place": 0.05}


def check_targets(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target, the worst figure of the cases that it is for, and whether it is reached.

    Args:
        record: The results.

    Returns:
        Records; ``figure`` and ``reached`` are None where it was not measured.
    """
    on_cpu = record["device"] == "cpu"
    cases = record.get("operation", [])
    # Not those of a token rule, which has less to draw.
    large = [c for c in cases if c["coordinates"] >= LARGE and c["tokens"] == "all"]
    gaussian = [case for case in large if case["distribution"] == "gaussian"]
    others = [case for case in large if case["distribution"] != "gaussian"]
    small = [
        case
        for case in cases
        if (*case["batch"], case["d"]) == (8, 64, 288) and case["distribution"] != "gaussian"
    ]
    targets = []

    def add(
        what: str, noise: str, limit: float, chosen: list[Any], read: Callable[[Any], Any]
    ) -> None:
        figures = [(read(case["noises"][noise]), describe(case)) for case in chosen]
        known = [figure for figure in figures if figure[0] is not None]
        worst, where = max(known, default=(None, None))
        targets.append(target(what, limit, worst, where))

    def over(of: str) -> Callable[[Any], Any]:
        return lambda noise: noise[f"over_{of}"] and noise[f"over_{of}"]["median"]

    for noise in NOISES:
        limit = _OVER_HOOK[noise] if on_cpu else 0.4
        add(f"time / hook, {noise}", noise, limit, others, over("hook"))
        limit = _OVER_HOOK_GAUSSIAN[noise] if on_cpu else 0.4
        add(f"time / hook, {noise}, gaussian", noise, limit, gaussian, over("hook"))
    for noise in NOISES:
        limit = 3 if on_cpu else 1.3
        add(f"time / copy, {noise}", noise, limit, others, over("copy"))
        add(f"time / copy, {noise}, gaussian", noise, limit, gaussian, over("copy"))
    for noise in NOISES:
        limit = 1 if on_cpu else 1.5
        add(f"time / hook, {noise}, small batch", noise, limit, small, over("hook"))
    for noise in NOISES:
        add(f"extra memory, {noise}", noise, _MEMORY[noise], large, lambda n: n["extra_memory"])
    compiled = record.get("compiled", {})
    counted = ("recompilations", "graph_breaks", "synchronizations")
    names = ("recompilations", "graph breaks", "host synchronisations")
    for name, count in zip(names, map(compiled.get, counted), strict=True):
        where = None if count is None else f"{compiled['steps']} steps"
        targets.append(target(name, 0, count, where))
    return targets


def target(name: str, limit: float, figure: float | None, where: str | None) -> dict[str, Any]:
    reached = None if figure is None else figure <= limit
    return {"target": name, "limit": limit, "figure": figure, "at": where, "reached": reached}


def describe(case: dict[str, Any]) -> str:
    shape = ", ".join(map(str, (*case["batch"], case["d"])))
    rule = "" if case["tokens"] == "all" else f" {case['tokens']}"
    return f"({shape}) {case['dtype']} {case['distribution']}{rule}"
