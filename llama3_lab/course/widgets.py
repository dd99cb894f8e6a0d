"""Widgets over results that are already there: nothing here trains. The only file that uses ipywidgets.

Each is a slider or a text box, operated by keyboard (Tab to it, then the arrow keys, or type and Enter); on a drop-down
list JupyterLab takes the arrow keys for itself. A page without a kernel shows no widget; there, the cell shows what the
widget would show first, as text.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as w

from llama3_lab.course.views import ReportFigure
from llama3_lab.records import SampleAnswer


@dataclass(frozen=True)
class Page:
    """What is shown in three ways. text: in a terminal; html: in a widget; markdown: on a page without a kernel."""

    text: str
    html: str
    markdown: str


Shown = str | ReportFigure | tuple[str, ReportFigure] | Page
PRE = ("margin:0;white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere;line-height:1.35;"
       "font-family:var(--jp-code-font-family,monospace)")  # fmt: skip
# A position's name is shown whole; left alone, Jupyter cuts it at about 20 letters.
READOUT = "<style>.llama3-lab-explorer .widget-readout{min-width:max-content;max-width:none}</style>"


class Explorer(w.VBox):
    """Controls above, what they show below; as plain text, the first thing that they show."""

    def __init__(self, controls: Sequence[w.Widget], show: Callable[..., Shown], what: str) -> None:
        self.controls, self.control, self.text = tuple(controls), controls[0], w.HTML()
        self._show, self._what, self._made = show, what, {}  # type: ignore[var-annotated]
        super().__init__([*controls, self.text])
        self.add_class("llama3-lab-explorer")  # by which a page, or a test, finds it
        for control in controls:
            control.observe(self._update, names="index")
        self._first = self._update()

    def _update(self, _: object = None) -> tuple[str, str]:
        """Show what belongs to the controls' positions, and return it as plain text and as Markdown."""
        at = tuple(control.index for control in self.controls)
        if at not in self._made:
            self._made[at] = _parts(self._show(*(control.value for control in self.controls)))
        plain, page, markdown = self._made[at]
        self.text.value = READOUT + page
        return plain, markdown

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle, (plain, markdown) = dict(super()._repr_mimebundle_(**kwargs)), self._first
        bundle["text/plain"] = f"[{self._what}; moves where there is a kernel. It begins with:]\n{plain}"
        if markdown:
            bundle["text/markdown"] = markdown
        return bundle


def explore(label: str, options: Sequence[Any], show: Callable[..., Shown],
            more: Mapping[str, Sequence[Any]] | None = None) -> Explorer:  # fmt: skip
    """Return a slider over `options` and, below it, what `show` says about the chosen one.

    options: values, or (label, value) pairs. show(value) returns text, a figure with its text twin in
    `.twin`, both, or a Page; it should look up what is computed already, and is called once for each value.
    more: further sliders, label → options; show gets their values after the first one's.

    Raises:
        ValueError: if there are fewer than two options, or a figure has no text twin.
    """
    made = [_slider(*each) for each in ((label, options), *(more or {}).items())]
    return Explorer([slider for slider, _ in made], show, "; ".join(told for _, told in made))


def _slider(label: str, options: Sequence[Any]) -> tuple[w.Widget, str]:
    """Return a slider, and what a page without a kernel says of it."""
    if len(options) < 2:
        raise ValueError(f"{label}: {len(options)} options; a slider needs two or more")
    pairs = [o if isinstance(o, tuple) and len(o) == 2 else (str(o), o) for o in options]
    slider = w.SelectionSlider(
        options=[(str(name), value) for name, value in pairs], description=label, continuous_update=True,
        style={"description_width": "initial"}, layout=w.Layout(width="min(100%, 40em)"),
    )  # fmt: skip
    return slider, f"slider “{label}”: {', '.join(str(name) for name, _ in pairs)}"


class Asker(w.VBox):
    """A text box above, what `show` says of its text below; as plain text, the first thing that it shows."""

    def __init__(self, label: str, show: Callable[[str], Shown], first: str) -> None:
        self.control, self.text = w.Text(
            value=first, description=label, continuous_update=False, placeholder="type here, then Enter",
            style={"description_width": "initial"}, layout=w.Layout(width="min(100%, 60em)"),
        ), w.HTML()  # fmt: skip
        self._show, self._label, self._made = show, label, {}  # type: ignore[var-annotated]
        super().__init__([self.control, self.text])
        self.add_class("llama3-lab-asker")  # by which a page, or a test, finds it
        self.control.observe(self._update, names="value")
        self._first = self._update()

    def _update(self, _: object = None) -> tuple[str, str]:
        """Show what belongs to the text, and return it as plain text and as Markdown."""
        asked = self.control.value.strip()
        if asked not in self._made:
            try:
                self._made[asked] = _parts(self._show(asked))
            except ValueError as error:  # a text that cannot be used costs one line, no traceback
                self._made[asked] = _parts(str(error))
        plain, page, markdown = self._made[asked]
        self.text.value = f'<div role="status" aria-live="polite">{page}</div>'
        return plain, markdown

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle, (plain, markdown) = dict(super()._repr_mimebundle_(**kwargs)), self._first
        bundle["text/plain"] = f"[text box “{self._label}”; answers where there is a kernel. It begins with:]\n{plain}"
        if markdown:
            bundle["text/markdown"] = markdown
        return bundle


def ask(label: str, show: Callable[[str], Shown], first: str) -> Asker:
    """Return a box to type a text into and, below it, what `show` says about it: Tab to the box, type, Enter.

    first: the text that stands there at the start. show(text) returns what `explore`'s does, and is called once for
    each text, spaces at its ends removed; a ValueError of its own is shown as its one line. What it says is announced
    to a screen reader.

    Raises:
        ValueError: if `first` is empty, so that there is nothing to begin with; or a figure has no text twin.
    """
    if not first.strip():
        raise ValueError(f"{label}: give a first text, so that there is something to see before anybody types")
    return Asker(label, show, first)


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


def _parts(shown: Shown) -> tuple[str, str, str]:
    """Return what is shown as plain text, as HTML and, of a Page, as Markdown; figures are images with their twin."""
    if isinstance(shown, Page):
        return shown.text, shown.html, shown.markdown
    text, figure = shown if isinstance(shown, tuple) else (shown, None) if isinstance(shown, str) else ("", shown)
    plain, page = [text] if text else [], f'<pre style="{PRE}">{escape(text)}</pre>' if text else ""
    if figure is not None:
        if not figure.twin:
            raise ValueError("this figure has no text twin; set figure.twin = describe_…(…), so that all can read it")
        data = base64.b64encode(figure._repr_png_()).decode()
        page += f'<img alt="{escape(figure.twin)}" src="data:image/png;base64,{data}" style="max-width:100%">'
        plain.append(figure.twin)
    return "\n".join(plain), page, ""
