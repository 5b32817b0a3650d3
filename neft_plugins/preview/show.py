"""What a preview found, in the terminal and as files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

_BLOCKS = " ▁▂▃▄▅▆▇█"
_LINES = 8
"""Of text that alpha is drawn in."""


def print_preview(found: Mapping[str, Any], console: Console) -> None:
    """Print tables, alpha over the steps, the advice, and what there is to warn of.

    Args:
        found: What ``preview`` gives.
        console: Where to.
    """
    console.print(Text(str(found["description"]), style="bold"))
    console.print(_about(found), highlight=False)
    has_noise = found["noise"] is not None and found["noise"]["alpha"] > 0
    if has_noise:
        if found["alpha"]:
            console.print(_plot(found["alpha"], found["total_steps"], console.width))
        console.print(_points(found))
        if any(row[each["name"]] for row in found["table"] for each in found["points"]):
            console.print(_lengths(found))
        console.print(_builtin(found), highlight=False)
    if found["advice"]:
        console.print(_advice(found))
    for title, texts in (
        ("Warnings: what training would warn of, and what it could not know:", found["warnings"]),
        ("Not known:", found["unknown"]),
    ):
        if texts:
            console.print(Group(Text(title, style="bold"), *(Text(f"- {text}") for text in texts)))


def write_preview(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``preview.json``, and ``alpha.png`` where matplotlib is installed.

    Args:
        found: What ``preview`` gives.
        folder: Where to; made if it is not there.

    Returns:
        What was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "preview.json"
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    figure = _figure(found)
    if figure is None:
        return [path]
    figure.savefig(folder / "alpha.png", dpi=144)
    return [path, folder / "alpha.png"]


def _about(found: Mapping[str, Any]) -> Text:
    """The steps, the data and the embedding, a line each."""
    steps, epochs = found["total_steps"], found["epochs"]
    processes = found["num_processes"]
    lines = []
    if steps is None:
        lines.append("steps:     not known")
    else:
        about = "" if found["total_steps_is_exact"] else "about "
        of = f", {_count(epochs, 'epoch')}" if epochs else ""
        lines.append(f"steps:     {about}{steps}{of}, for {_count(processes, 'process', 'es')}")
    if found["rows"] is not None:
        count = found["rows_of_dataset"]
        lines.append(f"data:      {found['rows']} of {count or 'an unknown number of'} rows")
    embedding = found["embedding"]
    if embedding is not None:
        rms = "" if embedding["rms"] is None else f", RMS {embedding['rms']:.3g}"
        factor = "" if embedding["factor"] == 1 else f", times {embedding['factor']:.4g} inside"
        lines.append(
            f"embedding: {embedding['name']}, d = {embedding['hidden_size']}, "
            f"{embedding['dtype']}{rms}{factor}"
        )
    return Text("\n".join(lines))


def _plot(curve: Sequence[Sequence[float]], total_steps: int | None, width: int) -> Text:
    """Alpha over training in block characters, an eighth of a line fine."""
    steps, alphas = zip(*curve, strict=True)
    top, columns = max(alphas) or 1.0, max(min(width - 10, 64), 8)
    places = (round(column * (len(alphas) - 1) / (columns - 1)) for column in range(columns))
    eighths = [round(alphas[place] / top * _LINES * 8) for place in places]
    lines = ["  alpha"]
    for line in reversed(range(_LINES)):
        label = f"{top * (line + 1) / _LINES:.3g}" if line % 2 else ""
        blocks = "".join(_BLOCKS[min(max(eighth - 8 * line, 0), 8)] for eighth in eighths)
        lines.append(f"{label:>7} |{blocks}")
    unit, end = ("fraction of training", "1") if total_steps is None else ("step", f"{steps[-1]}")
    lines += [f"{'0':>7} +{'-' * columns}", f"{'':9}{f'0 ({unit})':{columns - len(end)}}{end}"]
    return Text("\n".join(lines))


def _points(found: Mapping[str, Any]) -> Table:
    table = Table("", "step", "alpha", "RMS", "to signal", "noised tokens")
    table.title = "noise, as training logs it"
    for each in found["points"]:
        numbers = (each["noise_rms"], each["noise_to_signal"], each["noised_tokens"])
        step = "" if each["step"] is None else str(each["step"])
        table.add_row(each["name"], step, _text(each["alpha"]), *map(_text, numbers))
    return table


def _lengths(found: Mapping[str, Any]) -> Table:
    names = [each["name"] for each in found["points"]]
    table = Table(
        Column("document", no_wrap=True),
        *names,
        title="noise RMS / noise-to-signal, by the document's length",
    )
    for row in found["table"]:
        of = "" if row["percentile"] is None else f" (percentile {row['percentile']})"
        cells = (row[name] or {"noise_rms": None, "noise_to_signal": None} for name in names)
        texts = [f"{_text(c['noise_rms'])} / {_text(c['noise_to_signal'])}" for c in cells]
        table.add_row(f"{row['tokens']} tokens{of}", *texts)
    return table


def _builtin(found: Mapping[str, Any]) -> Text:
    builtin = found["builtin"]
    if builtin is None or builtin["ratio"] is None:
        return Text(end="")
    return Text(
        f"The built-in NEFTune with this alpha: {builtin['ratio']:.3g} times this noise on the "
        f"tokens that get it, and {builtin['on_padding']:.1%} of its noise energy on padding."
    )


def _advice(found: Mapping[str, Any]) -> Table:
    median = next((r["tokens"] for r in found["table"] if r["percentile"] == 50), None)
    title = f"for the median document ({median} tokens)"
    table = Table("noise-to-signal", "neftune_noise_alpha", "or with neft_scale: relative")
    table.title = title
    for each in found["advice"]:
        numbers = (each["noise_to_signal"], each["alpha"], each["relative"])
        table.add_row(*map(_text, numbers))
    table.caption = found["study"]
    table.caption_justify = "left"
    return table


def _figure(found: Mapping[str, Any]) -> Any:
    """Alpha over training; None without matplotlib or without noise."""
    if not found["alpha"]:
        return None
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*found["alpha"], strict=True), color="#0072b2")
    axes.set(ylabel="alpha", ylim=(0, None), title=found["description"])
    axes.title.set_fontsize(9)
    axes.set_xlabel("fraction of training" if found["total_steps"] is None else "optimizer step")
    axes.grid(alpha=0.3)
    return figure


def _count(number: float, what: str, plural: str = "s") -> str:
    return f"{number:.4g} {what}{'' if number == 1 else plural}"


def _text(number: float | None) -> str:
    return "?" if number is None else f"{number:.3g}"
