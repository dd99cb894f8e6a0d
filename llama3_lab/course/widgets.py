"""Widgets over results that are already there: nothing here trains. The only file that uses ipywidgets.

Each is a slider, operated by keyboard (Tab to it, then the arrow keys); on a drop-down list JupyterLab
takes the arrow keys for itself. A page without a kernel shows no widget; there, the cell shows what the
widget would show first, as text.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets as w

from llama3_lab.course.views import ReportFigure
from llama3_lab.records import SampleAnswer

Shown = str | ReportFigure | tuple[str, ReportFigure]
PRE = ("margin:0;white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere;line-height:1.35;"
       "font-family:var(--jp-code-font-family,monospace)")  # fmt: skip
# A position's name is shown whole; left alone, Jupyter cuts it at about 20 letters.
READOUT = "<style>.llama3-lab-explorer .widget-readout{min-width:max-content;max-width:none}</style>"


class Explorer(w.VBox):
    """A control above, what it shows below; as plain text, the first thing it shows."""

    def __init__(self, control: w.Widget, show: Callable[[Any], Shown], what: str) -> None:
        self.control, self.text = control, w.HTML()
        self._show, self._what, self._made = show, what, {}  # type: ignore[var-annotated]
        super().__init__([control, self.text])
        self.add_class("llama3-lab-explorer")  # by which a page, or a test, finds it
        control.observe(self._update, names="index")
        self._first = self._update()

    def _update(self, _: object = None) -> str:
        """Show what belongs to the control's position, and return it as plain text."""
        at = self.control.index
        if at not in self._made:
            self._made[at] = _parts(self._show(self.control.value))
        plain, page = self._made[at]
        self.text.value = READOUT + page
        return plain

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = dict(super()._repr_mimebundle_(**kwargs))
        bundle["text/plain"] = f"[{self._what}; moves where there is a kernel. It begins with:]\n{self._first}"
        return bundle


def explore(label: str, options: Sequence[Any], show: Callable[[Any], Shown]) -> Explorer:
    """Return a slider over `options` and, below it, what `show` says about the chosen one.

    options: values, or (label, value) pairs. show(value) returns text, a figure with its text twin in
    `.twin`, or both; it should look up what is computed already, and is called once for each value.

    Raises:
        ValueError: if there are fewer than two options, or a figure has no text twin.
    """
    if len(options) < 2:
        raise ValueError(f"{label}: {len(options)} options; a slider needs two or more")
    pairs = [o if isinstance(o, tuple) and len(o) == 2 else (str(o), o) for o in options]
    slider = w.SelectionSlider(
        options=[(str(name), value) for name, value in pairs], description=label, continuous_update=True,
        style={"description_width": "initial"}, layout=w.Layout(width="min(100%, 40em)"),
    )  # fmt: skip
    return Explorer(slider, show, f"slider “{label}”: {', '.join(str(name) for name, _ in pairs)}")


def browse_answers(answers: Sequence[SampleAnswer]) -> Explorer:
    """Return a slider over sample answers: read the same prompt's before and after.

    Raises:
        ValueError: if there are no answers.
    """
    if not answers:
        raise ValueError("no answers to browse; run a stage first")
    names = [f"{i + 1}. {a.skill}, level {a.level}" for i, a in enumerate(answers)]
    return explore("prompt", list(zip(names, answers, strict=True)), _before_and_after)


def _before_and_after(a: SampleAnswer) -> str:
    return (
        f"Asked\n{a.question}\n\nBefore: {a.before_outcome}\n{a.before}\n\nAfter: {a.after_outcome}\n{a.after}"
    )


def _parts(shown: Shown) -> tuple[str, str]:
    """Return what is shown as plain text and as HTML, figures as images whose alternative text is their twin."""
    text, figure = shown if isinstance(shown, tuple) else (shown, None) if isinstance(shown, str) else ("", shown)
    plain, page = [text] if text else [], f'<pre style="{PRE}">{escape(text)}</pre>' if text else ""
    if figure is not None:
        if not figure.twin:
            raise ValueError("this figure has no text twin; set figure.twin = describe_…(…), so that all can read it")
        data = base64.b64encode(figure._repr_png_()).decode()
        page += f'<img alt="{escape(figure.twin)}" src="data:image/png;base64,{data}" style="max-width:100%">'
        plain.append(figure.twin)
    return "\n".join(plain), page
