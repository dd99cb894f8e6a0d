"""`llama3-lab chat`: ask a policy of a run; with --guard, what the guard makes of every request and every answer.

At a terminal, lines that begin with a slash are commands. In a pipe every line is a request: text that comes from
elsewhere can neither change the threshold nor end the chat. Special tokens in a request are data, never control.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama3_lab import places

if TYPE_CHECKING:
    from llama3_lab.models import Policy
    from llama3_lab.profiles import Profile, Sampling
    from llama3_lab.records import Checkpoint
    from llama3_lab.safety.guard import Guard, GuardVerdict

OF_THE_LOOP = re.compile(r"first|round\d+-(?:sft|policy)")  # the others are controls, parts of an average, notebooks'
INDENT = 9  # columns of "request: "
GUARD_ROOM = 16  # tokens of the guard's format around an answer
COMMANDS = "/threshold 0.3 changes the guard's threshold; /quit or Ctrl-D ends; /help shows this. All else is asked."


@dataclass(frozen=True)
class Chat:
    """Who answers, who watches (None: nobody), how it is sampled; everything: ask what the guard has stopped too."""

    policy: Policy
    guard: Guard | None
    how: Sampling
    everything: bool = False


def add(commands: Any) -> None:
    """Define the sub-command. commands: what `ArgumentParser.add_subparsers` returned."""
    parser = commands.add_parser(
        "chat", help="ask a policy of a run, with or without the guard before and behind it",
        description="Ask a policy of a run. Each request stands alone: the small world has single questions, and the "
        "policy sees nothing of what was said before. From a pipe: one request a line, and nothing but requests.",
    )  # fmt: skip
    text = parser.add_argument
    text("run", nargs="?", type=Path, metavar="RUN", help="a run's folder (default: the newest that has a policy)")
    text("--checkpoint", default="", metavar="NAME", help="one of its policies (default: the last of the loop)")
    text("--guard", action=argparse.BooleanOptionalAction, default=False,
         help="let the guard judge requests and answers, and show its verdicts")  # fmt: skip
    text("--threshold", default="", metavar="T", help="of the guard: a score from here on is unsafe (default: its own)")
    text("--everything", action="store_true", help="with --guard: ask the policy even where the request is stopped")
    text("--max-new-tokens", type=int, metavar="N", help="the longest answer (default: the run's setting)")
    parser.set_defaults(do=show)


def show(args: argparse.Namespace) -> int:
    """Chat until the input ends; ValueError, one line, for a run, a policy or a number that cannot be."""
    os.environ.setdefault("LLAMA3_LAB_PROGRESS", "0")  # a bar for every answer would hide the answers
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        chat = load(args)
        if sys.stdin.isatty() and sys.stdout.isatty():
            _terminal(chat)
        else:
            for line in sys.stdin:
                if line.strip():
                    print(respond(chat, line), flush=True)
    except KeyboardInterrupt:
        print("\nllama3-lab: the chat was stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `llama3-lab chat | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def load(args: argparse.Namespace) -> Chat:
    """Return the chat that the arguments ask for; mistakes show before torch is imported.

    Raises:
        ValueError: for a run without that policy, damaged files, or a number that cannot be.
    """
    if not args.guard and (args.threshold or args.everything):
        raise ValueError(f"{'--threshold' if args.threshold else '--everything'} is about the guard; add --guard")
    threshold = read_threshold(args.threshold) if args.threshold else 0.0
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {args.max_new_tokens}; it must be at least 1")
    run = args.run or newest_run()
    profile, made = settings(run), choose(run, args.checkpoint)
    check_files(run / made.path, made)
    from llama3_lab.models import load_policy
    from llama3_lab.safety.guard import guard_for

    threads = min(profile.model.threads, int(os.environ.get("OMP_NUM_THREADS") or profile.model.threads))
    profile = replace(profile, model=replace(profile.model, threads=threads))
    how = replace(profile.sampling, max_new_tokens=args.max_new_tokens or profile.sampling.max_new_tokens)
    guard = guard_for(profile, threshold) if args.guard else None
    chat = Chat(load_policy(run / made.path, profile.model, made.name), guard, how, args.everything)
    if too_long(chat, "x"):
        raise ValueError(f"--max-new-tokens {how.max_new_tokens} leaves no room for a request; choose a smaller number")
    watched = f"; guard {guard.name}, unsafe from {guard.threshold:.3g} on" if guard else "; no guard (--guard adds it)"
    print(f"chat with {made.name} of {run}{watched}", file=sys.stderr, flush=True)
    return chat


def read_threshold(text: str) -> float:
    """Return a threshold that a person wrote, above 0 and at most 1.

    Raises:
        ValueError: for anything else: 0 would stop everything, more than 1 nothing.
    """
    with contextlib.suppress(ValueError):
        if 0.0 < float(text) <= 1.0:
            return float(text)
    raise ValueError(f"threshold is {text!r}; it must be a number above 0 and at most 1, e.g. 0.3")


def newest_run() -> Path:
    """Return the run in places.runs() whose ledger changed last, of those that have a policy.

    Raises:
        ValueError: if there is none; it says what to run first.
    """
    found = sorted(places.runs().glob("*/stages.jsonl"), key=lambda p: (p.stat().st_mtime, p.as_posix()))
    for path in reversed(found):
        with contextlib.suppress(ValueError):  # a damaged run is passed over
            if policies(path.parent):
                return path.parent
    raise ValueError(f"{places.runs()}: no run with a policy there yet; make one first with `llama3-lab run` or "
                     "notebook 03, or name a run's folder: llama3-lab chat RUN")  # fmt: skip


def settings(run: Path) -> Profile:
    """Return the settings of a run.

    Raises:
        ValueError: if the folder is no run, or was made by another version.
    """
    from llama3_lab.disk import read_bytes
    from llama3_lab.profiles import Profile
    from llama3_lab.typed_json import from_json

    path = run / "settings.json"
    if not path.is_file():
        raise ValueError(f"{run}: no run there; name the folder of a `llama3-lab run`, e.g. runs/tiny-paper-seed0")
    try:
        return from_json(Profile, json.loads(read_bytes(path))["profile"])
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path}: not the settings of a run of this version ({reason}); make a new run: "
                         "llama3-lab run --out FOLDER") from error  # fmt: skip


def finished(run: Path) -> list[Checkpoint]:
    """Return the checkpoints of a run, finished or not, in the order in which they were made. Takes no lock.

    Raises:
        ValueError: if its ledger is damaged.
    """
    from llama3_lab.disk import read_bytes
    from llama3_lab.store import Stage
    from llama3_lab.typed_json import parse_line

    path = run / "stages.jsonl"
    data = read_bytes(path) if path.is_file() else b""
    lines = data[: data.rfind(b"\n") + 1].splitlines()  # a stage whose line is cut off did not finish
    stages = [parse_line(Stage, line, f"{path}:{n}") for n, line in enumerate(lines, 1)]
    return [s.checkpoint for s in stages if s.checkpoint and (run / s.checkpoint.path).is_dir()]


def policies(run: Path) -> list[Checkpoint]:
    """Return the policies among the checkpoints of a run; raises as `finished` does."""
    return [c for c in finished(run) if c.kind == "policy"]


def choose(run: Path, name: str) -> Checkpoint:
    """Return the policy of that name; without one, the last of the loop (of notebooks, where there is no other).

    Raises:
        ValueError: if there is none; it lists those there are.
    """
    there = {c.name: c for c in policies(run)}
    if not there:
        raise ValueError(f"{run}: no policy there yet; go on with the run: llama3-lab run --out {run}")
    if not name:
        of_loop = [c for c in there.values() if OF_THE_LOOP.fullmatch(c.name)]
        return (of_loop or list(there.values()))[-1]
    if name not in there:
        raise ValueError(f"{run}: no policy {name!r} there; there is: {', '.join(there)}")
    return there[name]


def check_files(folder: Path, made: Checkpoint) -> None:
    """Refuse a checkpoint of which a file is missing, or is not what was written.

    Raises:
        ValueError: naming the file.
    """
    from llama3_lab.disk import digest_file

    for file, digest in made.files:
        if not (folder / file).is_file() or digest_file(folder / file) != digest:
            raise ValueError(f"{folder / file}: missing, altered or cut off; choose another with --checkpoint, or "
                             f"delete {folder} and run the same `llama3-lab run` again")  # fmt: skip


def respond(chat: Chat, text: str) -> str:
    """Return what is printed for one request: the verdicts, where there is a guard, and what a person is shown.

    Every part begins with its label at the start of a line, where no answer can put anything. The last line is empty.
    """
    from llama3_lab.models import quiet
    from llama3_lab.pipeline.candidates import sample
    from llama3_lab.records import Check, Prompt
    from llama3_lab.world.hazards import SKILL

    text = text.strip()
    with quiet():
        if line := too_long(chat, text):
            return f"{line}\n"
        if chat.guard:
            parts = _judged(chat, chat.guard, text)
        else:
            prompt = Prompt("typed", SKILL, text, "test", 1, Check("rubric", ""))
            said = sample(chat.policy, [prompt], replace(chat.how, k=1, temperature=0.0))[0].text
            parts = [("shown", said)]
    return "".join(f"{label + ':':<{INDENT}}{_printable(value)}\n" for label, value in parts)


def _judged(chat: Chat, guard: Guard, text: str) -> list[tuple[str, str]]:
    """Return labels and texts: the verdict on the request, that on the answer, and what is shown."""
    from llama3_lab.safety.layers import BLOCKED, reply

    fate = reply(chat.policy, guard, text, chat.how, chat.everything)
    if fate.output is None:
        return [("request", verdict(fate.request, guard)), ("answer", "not asked for, the request was stopped"),
                ("shown", fate.shown)]  # fmt: skip
    after, shown = verdict(fate.output, guard), fate.shown
    if fate.answer.strip() and _overflows(guard, text, fate.answer):
        after, shown = "unsafe, longer than the guard can read", BLOCKED
    said = [("said", fate.answer)] if chat.everything else []
    return [("request", verdict(fate.request, guard)), *said, ("answer", after), ("shown", shown)]


def verdict(found: GuardVerdict, guard: Guard) -> str:
    """Return a verdict in words: safe or unsafe, P(unsafe), and the categories with their names on the model card."""
    from llama3_lab.safety.taxonomy import by_code

    said = f"{'unsafe' if found.unsafe else 'safe'}, P(unsafe) {found.score:.3f}"
    if not found.unsafe:
        return said
    named = "; ".join(f"{c.code} {c.name}" for c in by_code(found.codes, guard.known))
    return f"{said}, {named or 'no category named'}"


def too_long(chat: Chat, text: str) -> str:
    """Return a line that says by how much a request is too long for the policy or the guard; "" where it fits."""
    from llama3_lab.models import encode_prompt
    from llama3_lab.safety import guard as guards
    from llama3_lab.safety.guard_format import Turn

    longest, asked = chat.how.max_new_tokens, encode_prompt(chat.policy.tokenizer, text)
    readers: list[tuple[str, Policy | Guard, int, int]] = [("policy", chat.policy, len(asked), longest)]
    if chat.guard:
        asked = guards.encode(chat.guard.tokenizer, [Turn("User", text)], chat.guard.known)
        readers.append(("guard", chat.guard, len(asked), longest + GUARD_ROOM + guards.ANSWER_CAP))
    for name, reader, tokens, kept in readers:
        context = reader.model.config.max_position_embeddings
        if tokens + kept > context:
            return (f"too long: {tokens} tokens for the {name}, whose context of {context} leaves {context - kept} "
                    "beside the answer; ask something shorter")  # fmt: skip
    return ""


def _overflows(guard: Guard, text: str, said: str) -> bool:
    """Return whether a request and its answer are more than the guard can read: forged tokens are spelled out."""
    from llama3_lab.safety import guard as guards
    from llama3_lab.safety.guard_format import Turn

    asked = guards.encode(guard.tokenizer, [Turn("User", text), Turn("Agent", said)], guard.known)
    return len(asked) + guards.ANSWER_CAP > guard.model.config.max_position_embeddings


def _printable(text: str) -> str:
    """Return a text that a terminal shows as it is: other lines indented, no control characters."""
    lines = text.strip().split("\n") if text.strip() else ["(nothing)"]
    clean = ["".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in lines]
    return ("\n" + " " * INDENT).join(clean)


def _terminal(chat: Chat) -> None:
    """Ask for a line, obey or answer it, until /quit or Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and what was typed before, in input()
    print(COMMANDS)
    while True:
        try:
            line = input("you> ").strip()
        except EOFError:
            print()
            return
        if line == "/quit":
            return
        if line.startswith("/"):
            chat, said = obey(chat, line)
            print(f"{said}\n", flush=True)
        elif line:
            print(respond(chat, line), flush=True)


def obey(chat: Chat, line: str) -> tuple[Chat, str]:
    """Return the chat after a command, and what to say about it; a mistake changes nothing."""
    from llama3_lab.safety.guard import at

    name, _, value = line.partition(" ")
    if name == "/help":
        return chat, COMMANDS
    if name != "/threshold":
        return chat, f"there is no command {name}. {COMMANDS}"
    if not chat.guard:
        return chat, "there is no guard in this chat; start it with --guard"
    try:
        guard = at(chat.guard, read_threshold(value.strip()))
    except ValueError as error:
        return chat, str(error)
    return replace(chat, guard=guard), f"threshold {guard.threshold:g}: a score from here on is unsafe"
