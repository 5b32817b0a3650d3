"""Put the results of noise_op.py into docs/benchmarks.md, and draw its plots.

    python tests/benchmarks/noise_op_page.py
    python tests/benchmarks/noise_op_page.py --check

In the page, ``<!-- results: table -->`` begins a table of ``results/results.json``, and
``<!-- end -->`` ends it.
"""

import json
import re
import textwrap
from pathlib import Path

import click
from markdown_table import markdown
from noise_op_tables import make_tables, setup

RESULTS = Path(__file__).with_name("results")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
BLOCK = re.compile(r"(<!-- (\w+): (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str) -> str:
    """The page, its blocks as the results say."""
    return BLOCK.sub(lambda found: found[1] + block(found[2], found[3]) + found[4], page)


def block(results: str, table: str) -> str:
    record = json.loads((RESULTS / f"{results}.json").read_text(encoding="utf-8"))
    if table == "setup":
        return textwrap.fill(setup(record), 100, break_on_hyphens=False) + "\n"
    return "\n" + markdown(make_tables(record)[table]) + "\n"


@click.command(help=__doc__.partition("\n")[0])
@click.option("--check", is_flag=True, help="Only say whether the page is as the results say.")
def main(check: bool) -> None:
    """Fill and draw, or check."""
    page = PAGE.read_text(encoding="utf-8")
    filled = fill(page)
    if check:
        if page != filled:
            raise SystemExit(f"{PAGE.name} is not what the results say: run this without --check")
        return
    from plot_noise_op import draw

    PAGE.write_text(filled, encoding="utf-8")
    for results in sorted({found[2] for found in BLOCK.finditer(page)}):
        draw(RESULTS / f"{results}.json", PAGE.with_name(f"{results}.svg"))


if __name__ == "__main__":
    main()
