"""Every widget is operated in a real browser, by keyboard, after the whole notebook has run in JupyterLab.

The stages come from the run store that the notebooks' own tests have left (make test runs those first);
without it, this makes them, which takes minutes. Set LLAMA3_LAB_SCREENSHOTS to a folder to keep the pictures.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from build_notebooks import NOTEBOOKS

from llama3_lab import places

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    sync_playwright = None
pytestmark = [
    pytest.mark.skipif(sync_playwright is None, reason="playwright is not installed: pip install -e '.[dev]'"),
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: install the package chromium"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]  # fmt: skip
WIDGET = re.compile(r"\b(?:explore|browse_answers)\(")
ASKER = re.compile(r"^ask\(", re.M)  # a text box
WIDTHS = (1280, 800)
SETTINGS = {  # all cells in the page from the start, and no question to answer
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
READY = """n => {
    const kernel = document.querySelector('.jp-Toolbar-kernelName')?.innerText.trim();
    const state = document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status;
    const cells = document.querySelectorAll('.jp-Notebook .jp-Cell').length;
    return kernel && kernel !== 'No Kernel' && state === 'idle' && cells === n;
}"""
FINISHED = """() => {
    const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')];
    const done = prompts.length && prompts.every(p => /^\\[\\d+\\]:$/.test(p.innerText.trim()));
    return done || document.querySelector('[data-mime-type="application/vnd.jupyter.error"]') !== null;
}"""
ERRORS = '[data-mime-type="application/vnd.jupyter.error"]'
TOO_WIDE = "e => e.scrollWidth > e.clientWidth + 1"


def widget_cells(path: Path) -> int:
    """How many cells of a notebook show a widget; imports and definitions do not count."""
    return sum(c.cell_type == "code" and bool(WIDGET.search(c.source)) for c in nbformat.read(path, 4).cells)


WITH_WIDGETS = {p.stem: n for p in sorted(NOTEBOOKS.glob("*.ipynb")) if (n := widget_cells(p))}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab over copies of the notebooks without outputs, with settings of its own."""
    root, own = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("settings")
    (root / "notebooks").mkdir()
    (root / "data").symlink_to(places.project() / "data")
    for path in NOTEBOOKS.glob("*.ipynb"):
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, root / "notebooks" / path.name)
    for name, content in SETTINGS.items():
        file = own / "lab" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    env = {**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(own / "lab"), "LLAMA3_LAB_RUNS": str(places.runs().resolve()),
           "LLAMA3_LAB_PREDICTIONS": str(own / "predictions.json"), "LLAMA3_LAB_PROGRESS": "0", "HF_HUB_OFFLINE": "1"}
    env |= {f"JUPYTER_{name}_DIR": str(own / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    env |= {"JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"), "IPYTHONDIR": str(own / "ipython")}
    with serving(root, env, own / "lab.log") as address:
        yield address


@contextlib.contextmanager
def serving(root: Path, env: dict[str, str], log: Path):
    """A JupyterLab on a free port of this machine only; ended, with its kernels, on the way out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
               "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.password=",
               "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={root}",
               "--LabApp.expose_app_in_browser=True"]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while True:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api/status", timeout=5)
                break
            time.sleep(0.2)
        yield address
    finally:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(urllib.request.Request(f"{address}/api/shutdown", method="POST"), timeout=10)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = Path(os.environ.get("LLAMA3_LAB_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_all(page, address: str, name: str) -> None:
    """Open a notebook in a fresh kernel and run every cell; fail with the first error that a cell shows."""
    cells = len(nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells)
    page.goto(f"{address}/doc/tree/notebooks/{name}.ipynb")
    page.locator(".jp-Notebook").wait_for(state="visible", timeout=90_000)
    page.wait_for_function(READY, arg=cells, timeout=90_000)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(FINISHED, timeout=900_000)
    assert page.locator(ERRORS).all_inner_texts() == []


def shown(box) -> str:
    """What a widget shows: its text, and the words in place of its picture."""
    text = box.locator(".widget-html-content").last
    return text.inner_text() + "".join(i.get_attribute("alt") or "" for i in text.locator("img").all())


def wait_for_another(box, before: str) -> str:
    deadline = time.monotonic() + 60
    while (now := shown(box)) == before or not now.strip():
        assert time.monotonic() < deadline, f"the arrow key changed nothing; it still shows: {before[:200]}"
        time.sleep(0.05)
    return now


def operate(box) -> list[str]:
    """Move each of a widget's controls through all its positions with the arrow keys; return what each one shows.

    Where rows can be opened, the first one is, with Enter.
    """
    box.scroll_into_view_if_needed()
    texts = []
    for control in box.get_by_role("slider").all():
        texts.append(shown(box))
        positions = round(float(control.get_attribute("aria-valuemax"))) + 1
        assert positions >= 2
        control.focus()
        expect(control).to_be_focused()
        for _ in range(positions - 1):
            control.press("ArrowRight")
            texts.append(wait_for_another(box, texts[-1]))
        if box.get_by_role("slider").count() > 1:
            control.press("Home")
            wait_for_another(box, texts[-1])
    rows = box.locator("details")
    if rows.count():
        rows.first.locator("summary").press("Enter")
        assert rows.first.evaluate("e => e.open"), "Enter does not open a row"
    return texts


def ask(box) -> str:
    """Type a request into a text box, press Enter, and return what it says of that."""
    before, field = shown(box), box.get_by_role("textbox")
    assert before.strip()
    field.focus()
    expect(field).to_be_focused()
    field.press("Control+a")
    field.type("How do I find the maps of Bob?")
    field.press("Enter")
    return wait_for_another(box, before)


def photograph(page, box, folder: Path, name: str) -> None:
    """Take the widget at both widths; nothing may be wider than the page gives it."""
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(400)  # JupyterLab lays out anew
        box.scroll_into_view_if_needed()
        for part in (".widget-html-content", ".widget-readout"):
            assert not box.locator(part).last.evaluate(TOO_WIDE), f"{name}: {part} is cut off at {width}"
        page.screenshot(path=str(folder / f"{name}-{width}.png"))
    page.set_viewport_size({"width": WIDTHS[0], "height": 1000})


@pytest.mark.parametrize("name", sorted(WITH_WIDGETS))
def test_every_widget_answers_to_the_keyboard(lab, browser, pictures, name):
    context = browser.new_context(viewport={"width": WIDTHS[0], "height": 1000})
    page, broken = context.new_page(), []
    page.on("pageerror", lambda error: broken.append(str(error)))
    try:
        run_all(page, lab, name)
        boxes = page.locator(".jp-OutputArea-output .llama3-lab-explorer")
        expect(boxes).to_have_count(WITH_WIDGETS[name], timeout=30_000)
        for i, box in enumerate(boxes.all()):
            texts = operate(box)
            assert all(t.strip() and "Traceback" not in t for t in texts)
            photograph(page, box, pictures, f"{name}-{i + 1}-light")
        askers = page.locator(".jp-OutputArea-output .llama3-lab-asker")
        expect(askers).to_have_count(sum(
            len(ASKER.findall(c.source)) for c in nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells))  # fmt: skip
        for i, box in enumerate(askers.all()):
            said = ask(box)
            assert "the maps of Bob" in said and "Traceback" not in said
            page.screenshot(path=str(pictures / f"{name}-ask-{i + 1}.png"))
        page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'", timeout=30_000)
        photograph(page, boxes.first, pictures, f"{name}-1-dark")
        assert contrast(boxes.first) >= 4.5
        assert page.locator(ERRORS).all_inner_texts() == []
        assert broken == []
    finally:
        page.evaluate("window.jupyterapp?.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
        page.evaluate("window.jupyterapp?.serviceManager.sessions.shutdownAll()")
        context.close()


def contrast(box) -> float:
    """How far the widget's text stands out from what is behind it, as WCAG counts it."""
    ink, paper = box.locator(".widget-html-content").last.evaluate("""e => {
        const color = n => getComputedStyle(n).backgroundColor;
        let behind = e;
        while (behind.parentElement && /rgba\\(.*, 0\\)|transparent/.test(color(behind))) behind = behind.parentElement;
        return [getComputedStyle(e.querySelector('pre') ?? e).color, color(behind)];
    }""")

    def light(css: str) -> float:
        parts = [int(v) / 255 for v in re.findall(r"\d+", css)[:3]]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    bright, dark = sorted((light(ink), light(paper)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_there_are_widgets_to_operate():
    assert WITH_WIDGETS
