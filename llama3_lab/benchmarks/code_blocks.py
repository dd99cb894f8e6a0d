"""find_program(): the Python program in a model's answer, fenced, between tags, or bare among sentences.

What it is not: a repair. A program that is not whole comes out as it stands, and fails when it is run.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Collection

MAX_TEXT = 200_000
MAX_CUTS = 200  # lines that are taken away, one by one, to find where bare code ends
_FENCE = re.compile(
    r"^[ \t]*(?P<mark>```+|~~~+)[ \t]*(?P<kind>[\w+#.-]*)[^\n]*\n(?P<code>.*?)(?:^[ \t]*(?P=mark)[ \t]*$|\Z)",
    re.S | re.M,
)
_TAGS = re.compile(r"\[PYTHON\](.*?)\[/PYTHON\]|\[BEGIN\](.*?)(?:\[DONE\]|\Z)|<code>(.*?)</code>", re.S)
_PYTHON = {"", "py", "python", "python3", "py3", "python2", "ipython"}
_BEGINS = re.compile(r"^(?:def |class |import |from \w[\w.]* import |@|async def |[A-Za-z_]\w* *= )")
_ENDS = re.compile(r"^(?:```|def |class |if __name__|print\(|assert |#|\[/|<)", re.M)


def find_program(text: str, wanted: Collection[str] = ()) -> str:
    """Return the program in an answer, or "" where there is none.

    wanted: names that it must define. The last fenced block that defines one of them counts, with the blocks
    before it where it needs them; a block of usage after it does not.
    """
    text = text[:MAX_TEXT].replace("\r\n", "\n").replace("\r", "\n")
    blocks = [m["code"] for m in _FENCE.finditer(text) if m["kind"].lower() in _PYTHON]
    blocks = blocks or [next(part for part in m.groups() if part is not None) for m in _TAGS.finditer(text)]
    blocks = [code for b in blocks if (code := textwrap.dedent(b).strip("\n")).strip()]
    return _choose(blocks, wanted) if blocks else _bare(text)


def complete(header: str, text: str, wanted: str) -> str:
    """Return header and answer as one program: a whole program stays, a bare continuation gets the header.

    header: imports and the head of the function `wanted`, whose body the answer is to continue. A whole program
    gets the header's lines before the first `def`, for it may lean on its imports.
    """
    program = find_program(text, (wanted,))
    if wanted in defined(program):
        return f"{_imports(header)}{program}"
    text = text[:MAX_TEXT].replace("\r\n", "\n")
    for body in [m["code"] for m in _FENCE.finditer(text)][:1] + [text]:
        stop = _ENDS.search(body)
        body = body[: stop.start()] if stop else body
        for inner in (body, textwrap.indent(textwrap.dedent(body), "    "), "    " + body.lstrip()):
            whole = f"{header.rstrip()}\n{inner.rstrip()}\n"
            if body.strip() and wanted in defined(whole):
                return whole
    return program


def defined(program: str) -> set[str]:
    """Return the names that a program binds at its top level; the empty set where it is no Python."""
    tree = parse(program)
    names: set[str] = set()
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(a.asname or a.name).partition(".")[0] for a in node.names}
        else:
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names


def parse(program: str) -> ast.Module | None:
    """Return a program's syntax tree, or None where it is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(program)
            compile(tree, "<program>", "exec")  # finds what the grammar lets through, such as a return outside
            return tree
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _choose(blocks: list[str], wanted: Collection[str]) -> str:
    names = [defined(b) for b in blocks]
    last = next((i for i in reversed(range(len(blocks))) if names[i] & set(wanted)), None)
    if last is None:
        whole = [b for b in blocks if parse(b)]
        return blocks[0] if wanted or not whole else whole[0]
    tree = parse(blocks[last])
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} if tree else set()
    before = [blocks[i] for i in range(last) if names[i] & (read - names[last]) and not names[i] & set(wanted)]
    return "\n\n".join([*before, blocks[last]])


def _bare(text: str) -> str:
    """Return code that stands among sentences: from the first line that begins like code, as far as it parses."""
    if parse(text):
        return text if defined(text) else ""
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines) if _BEGINS.match(line)), None)
    if start is None:
        return ""
    for end in range(len(lines), max(start, len(lines) - MAX_CUTS), -1):
        code = "\n".join(lines[start:end])
        if parse(code):
            return code
    return "\n".join(lines[start:])


def _imports(header: str) -> str:
    head = re.split(r"^(?:def |class |@)", header, maxsplit=1, flags=re.M)[0].strip("\n")
    return f"{head}\n\n" if head.strip() and parse(head) else ""
