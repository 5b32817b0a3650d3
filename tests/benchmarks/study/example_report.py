"""The report of five runs as a page for the docs, without the data's texts.

    neft report RUNS --train ROWS/train.jsonl --test ROWS/test.jsonl --output REPORT
    python tests/benchmarks/study/example_report.py REPORT/report.json

The rows are not part of this project, so their prompts and references are left out, and so are the
outputs to training prompts, which may recite them.
"""

import json
from pathlib import Path
from typing import Any

import click

from neft_plugins.report.page import render_page

PAGE = Path(__file__).resolve().parents[3] / "docs" / "example_report.html"


def without_texts(report: dict[str, Any]) -> dict[str, Any]:
    """The report, its prompts named by their places, and what may be the data's left out."""
    for run in report["runs"]:
        run["path"] = run["name"]
        for split, part in run["splits"].items():
            for place, example in enumerate(part.get("examples") or ()):
                example["prompt"] = f"(prompt {place + 1})"
                example["reference"] = f"(reference {place + 1})"
                example.pop("references", None)
                if split == "train":
                    example["output"] = "(not shown: it may recite the reference)"
    said = "Prompts and references are left out of this page: the data is not part of the project."
    return report | {"problems": [*report["problems"], said]}


@click.command(help=__doc__.partition("\n")[0])
@click.argument("report", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(report: Path) -> None:
    """Write the page."""
    page = render_page(without_texts(json.loads(report.read_text(encoding="utf-8"))))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
