"""A table as Markdown has it."""

Rows = list[list[str]]
"""The cells, heads first."""


def markdown(rows: Rows) -> str:
    """Its lines."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
