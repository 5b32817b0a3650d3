"""Make every table and figure of docs/results.md again, from the lines of the study.

    python tests/benchmarks/study/page.py
    python tests/benchmarks/study/page.py --check

In the page, ``<!-- study: TASK TABLE GROUP -->`` begins a table of a group of arms, and
``<!-- end -->`` ends it.
"""

import re
import statistics
import sys
import textwrap
from pathlib import Path

import click
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparisons import RESULTS, Difference, Line, Study, read
from markdown_table import Rows, markdown

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[2] / "docs" / "results.md"
ARMS = yaml.safe_load((HERE / "arms.yaml").read_text(encoding="utf-8"))
BLOCK = re.compile(r"(<!-- study: (\S+) (\w+) ?(\S*) -->\n).*?(<!-- end -->)", re.DOTALL)

PAIRS = (
    ("linear-5-0-response", "linear-5-0"),
    ("linear-5-0-response", "dropout"),
    ("packed-built-in-5", "constant-1"),
    ("packed-constant-5", "constant-5"),
)


def fill(page: str, lines: list[Line]) -> str:
    """The page, its blocks as the lines say."""

    def block(found: re.Match[str]) -> str:
        begin, task, table, group, end = found.groups()
        if table == "setup":
            return begin + textwrap.fill(setup(lines), 100, break_on_hyphens=False) + "\n" + end
        made = TABLES[table](Study(lines, task, ARMS["groups"][group]))
        return begin + "\n" + markdown(made) + "\n" + end

    return BLOCK.sub(block, page)


def setup(lines: list[Line]) -> str:
    """Where the runs ran, and with what."""
    machines = sorted({f"{one['machine']} ({one['cpu_capability']})" for one in lines})
    versions = [
        f"{name} {' and '.join(sorted({one['versions'][name] for one in lines}))}"
        for name in lines[0]["versions"]
    ]
    hours = sum(one["seconds"] for one in lines) / 3600
    threads = sorted({one["settings"]["threads"] for one in lines})
    return (
        f"{len(lines)} runs of {' or '.join(map(str, threads))} thread, {hours:.1f} hours in all, "
        f"on {'; '.join(machines)}; python {lines[0]['python']}, {', '.join(versions)}."
    )


def rates(study: Study) -> Rows:
    """Learning rates without noise."""
    rows = [["learning rate", "validation loss at the best epoch, by seed", "at the end"]]
    for arm, runs in study.arms.items():
        losses = study.by_epoch(arm, "validation_loss")
        lowest = ", ".join(f"{min(each):.3f}" for each in losses)
        last = ", ".join(f"{each[-1]:.3f}" for each in losses)
        rate = next(iter(runs.values()))["settings"]["arguments"]["learning_rate"]
        rows.append([f"{rate:g}", lowest, last])
    return rows


def losses(study: Study) -> Rows:
    """Held-out loss at the end and at the best epoch."""
    head = ["arm", "end", "end - none's end", "best epoch", "best - none's best"]
    rows = [[*head, "end - none's best"]]
    for arm, runs in study.arms.items():
        reference = reference_of(arm)
        epochs = statistics.fmean(
            round(line["best"]["step"] / line["settings"]["arguments"]["max_steps"] * 5)
            for line in runs.values()
        )
        best = f"{spread(study.by_seed(arm, 'test_losses', 'best'))} (epoch {epochs:.2g})"
        changes = [
            study.difference(arm, "test_losses", "end", reference),
            study.difference(arm, "test_losses", "best", reference),
            study.difference(arm, "test_losses", "end", reference, "best"),
        ]
        shown = ["" if arm == reference else shown_change(one) for one in changes[:2]]
        end = spread(study.by_seed(arm, "test_losses"))
        rows.append([arm, end, shown[0], best, shown[1], shown_change(changes[2])])
    return rows


def answers(study: Study) -> Rows:
    """What the models answer, at the end."""
    head = ["arm", "ROUGE-L", "minus none's", "best epoch, minus none's", "recited"]
    rows = [[*head, "minus none's", "words", "repeated 2-grams"]]
    for arm in study.arms:
        reference = reference_of(arm)
        rouge = [
            study.difference(arm, "test_outputs rouge_l", model, reference)
            for model in ("end", "best")
        ]
        recited = study.difference(arm, "train_outputs verbatim", "end", reference)
        same = arm == reference
        rows.append(
            [
                arm,
                spread(study.by_seed(arm, "test_outputs rouge_l")),
                *("" if same else shown_change(one) for one in rouge),
                percent(study.by_seed(arm, "train_outputs verbatim")),
                "" if same else shown_change(recited, percent=True),
                f"{statistics.fmean(study.by_seed(arm, 'test_outputs words')):.1f}",
                percent(study.by_seed(arm, "test_outputs repetition")),
            ]
        )
    return rows


def others(study: Study) -> Rows:
    """Training loss, forgetting and robustness, at the end."""
    head = ["arm", "training rows", "stories", "minus none's", "typos", "minus none's"]
    rows = [[*head, "typos - no typos, minus none's"]]
    for arm in study.arms:
        reference = reference_of(arm)
        metrics = ("stories_losses", "typos_losses", "typos_losses - test_losses")
        changes = [study.difference(arm, metric, "end", reference) for metric in metrics]
        shown = ["" if arm == reference else shown_change(one) for one in changes]
        losses = [
            spread(study.by_seed(arm, metric))
            for metric in ("train_losses", "stories_losses", "typos_losses")
        ]
        rows.append([arm, losses[0], losses[1], shown[0], losses[2], shown[1], shown[2]])
    return rows


def epochs(study: Study) -> Rows:
    """Held-out loss at each epoch."""
    rows = [["arm", *map(str, range(1, 6))]]
    for arm in study.arms:
        by_epoch = zip(*study.by_epoch(arm, "test_loss"), strict=True)
        rows.append([arm, *(f"{statistics.fmean(each):.3f}" for each in by_epoch)])
    return rows


def direct(study: Study) -> Rows:
    """Arms against each other: held-out loss and ROUGE-L at the end."""
    pairs = [pair for pair in PAIRS if {*pair} <= {*study.arms}]
    study.level = 1 - 0.05 / len(pairs)
    rows = [["arm", "against", "held-out loss at the end", "ROUGE-L at the end"]]
    for arm, reference in pairs:
        changes = [
            study.difference(arm, metric, "end", reference)
            for metric in ("test_losses", "test_outputs rouge_l")
        ]
        rows.append([arm, reference, *map(shown_change, changes)])
    return rows


TABLES = {
    "direct": direct,
    "rates": rates,
    "losses": losses,
    "answers": answers,
    "others": others,
    "epochs": epochs,
}


def reference_of(arm: str) -> str:
    """The arm without noise that an arm is compared with."""
    return "packed-none" if arm.startswith("packed-") else "none"


def spread(by_seed: list[float]) -> str:
    """Mean and, of several seeds, their standard deviation."""
    deviation = f" ± {statistics.stdev(by_seed):.3f}" if len(by_seed) > 1 else ""
    return f"{statistics.fmean(by_seed):.3f}{deviation}"


def percent(by_seed: list[float]) -> str:
    return f"{statistics.fmean(by_seed):.1%}"


def shown_change(found: Difference | None, percent: bool = False) -> str:
    """A difference and its interval; bold where it counts."""
    if found is None:
        return ""
    by, digits = (100, 1) if percent else (1, 3)
    mean, low, high = (f"{by * x:+.{digits}f}" for x in (found.mean, *found.interval))
    mean = f"**{mean}**" if found.counts else mean
    return f"{mean} ({low} to {high})"


@click.command(help=__doc__.partition("\n")[0])
@click.option("--check", is_flag=True, help="Only say whether the page is as the lines say.")
def main(check: bool) -> None:
    """Fill and draw, or check."""
    page, lines = PAGE.read_text(encoding="utf-8"), read(RESULTS)
    filled = fill(page, lines)
    if check:
        if page != filled:
            raise SystemExit(f"{PAGE.name} is not what the lines say: run this without --check.")
        return
    from figures import draw

    PAGE.write_text(filled, encoding="utf-8")
    draw(lines, PAGE.parent / "figures")


if __name__ == "__main__":
    main()
