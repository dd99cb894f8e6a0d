"""Widgets over results that are already there: nothing here trains. The only file that uses ipywidgets."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets as w

from llama3_lab.records import SampleAnswer


def browse_answers(answers: Sequence[SampleAnswer]) -> w.VBox:
    """Return a browser over sample answers: pick a prompt by keyboard, read before and after.

    Raises:
        ValueError: if there are no answers.
    """
    if not answers:
        raise ValueError("no answers to browse; run a stage first")
    labels = [f"{i + 1}. {a.skill}, level {a.level}" for i, a in enumerate(answers)]
    pick = w.Dropdown(options=[(label, i) for i, label in enumerate(labels)], description="Prompt")
    text = w.HTML()

    def show(_: object = None) -> None:
        a = answers[pick.value]
        text.value = "".join(
            f"<p><b>{title}</b></p><pre>{_escape(body)}</pre>"
            for title, body in (
                ("Asked", a.question),
                (f"Before: {a.before_outcome}", a.before),
                (f"After: {a.after_outcome}", a.after),
            )
        )

    pick.observe(show, names="value")
    show()
    return w.VBox([pick, text])


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
