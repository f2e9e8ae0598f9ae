"""A page of the documentation as what a reader does with it: its fenced blocks, in order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["OTHER_ENVIRONMENT", "PAGES", "ROOT", "SERVE", "SERVED", "Block", "blocks_of"]

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = {
    str(path.relative_to(ROOT)): path for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
}
SERVE: Final = "uvicorn sse:app --timeout-graceful-shutdown 3"
"""How the page on Server-Sent Events has its server started."""

OTHER_ENVIRONMENT: Final = {"docs/howto/acp-sdk.md"}
"""Pages whose examples run in an environment of their own, with the tests of what they are about."""

SERVED: Final = {"docs/howto/a2a.md", "docs/howto/openai-agents.md"}
"""Pages whose examples are a server and its clients, and run with the tests of what they are about."""

_FENCED: Final = re.compile(
    r"^(?:<!-- (?P<mark>.+?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Attributes:
        kind: The language after the fence.
        text: What stands in it.
        line: The number of its first line in the page.
        mark: The text of an HTML comment right above the fence: ``file: name`` or a database's name.
        output: What the page shows as the output of the block, in a ``text`` block right after it.
    """

    kind: str
    text: str
    line: int
    mark: str
    output: str | None = None


def blocks_of(path: Path) -> list[Block]:
    """Return the blocks a reader runs; a ``text`` block belongs to the one before it."""
    source = path.read_text(encoding="utf-8")
    blocks: list[Block] = []
    for found in _FENCED.finditer(source):
        line = source.count("\n", 0, found.start("text")) + 1
        block = Block(found["kind"], found["text"], line, found["mark"] or "")
        if block.kind == "text" and not block.mark:
            assert blocks, f"{path}:{line}: output of nothing"
            before = blocks.pop()
            block = Block(before.kind, before.text, before.line, before.mark, output=block.text)
        blocks.append(block)
    fences = sum(line.lstrip().startswith("```") for line in source.splitlines())
    shown = sum(block.output is not None for block in blocks)
    assert fences == 2 * (len(blocks) + shown), f"{path}: a fence that is indented or not closed"
    return blocks
