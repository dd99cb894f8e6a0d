"""The tree keeps its rules: versions agree, layers hold, files stay small, nothing heavy or private slips in."""

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted((ROOT / "llama3_lab").rglob("*.py"))
MAX_CODE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 300, 40, 7
LONGER = {"course/views.py": 350}  # figures, and each one's twin in text, belong side by side
# Of machines and registries; split so that this file does not match itself.
PRIVATE = re.compile("|".join([
    r"/(?:home|ro" r"ot|Us" r"ers)/[a-z]", r"pypi\.o" r"rg", r"pythonho" r"sted", r"download\.pyt" r"orch",
    r"--index-url +http",
    r"files\.pyth" r"on", r"anaconda\.o" r"rg", r"/wo" r"rk/(?:main|shared)",
]))  # fmt: skip


def tracked() -> list[Path]:
    """Every file that git has or would take."""
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [p for name in done.stdout.splitlines() if (p := ROOT / name).is_file()]


def requirements() -> dict[str, Requirement]:
    """Every requirement of pyproject.toml, extras included, by canonical name."""
    extras = PROJECT["project"]["optional-dependencies"]
    lines = [*PROJECT["project"]["dependencies"], *(r for group in extras.values() for r in group)]
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in parsed if r.name != "llama3-lab"}


def pins() -> dict[str, str]:
    """The versions of constraints.txt, by canonical name; a line that is no exact pin fails here."""
    out: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.]+)", line)
            assert match, f"constraints.txt: {line!r} is no exact pin"
            assert canonicalize_name(match[1]) not in out, f"constraints.txt: {line!r} stands there twice"
            out[canonicalize_name(match[1])] = match[2]
    return out


# -- versions


def test_every_requirement_has_a_lower_bound_and_a_pin_within_it():
    pinned = pins()
    for name, requirement in requirements().items():
        assert any(s.operator in (">=", "==") for s in requirement.specifier), f"{name} has no lower bound"
        assert name in pinned, f"{name} has no pin in constraints.txt"
        assert requirement.specifier.contains(pinned[name]), f"{name}: {pinned[name]} is outside {requirement}"


def test_what_the_requirements_require_is_pinned_too():
    from importlib.metadata import requires

    pinned, todo, seen = pins(), list(requirements()), set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in requires(name) or ():
            inner = Requirement(line)
            if inner.marker is None or inner.marker.evaluate({"extra": ""}):
                todo.append(canonicalize_name(inner.name))
    accelerator = {n for n in seen if n.startswith(("nvidia-", "cuda-")) or n == "triton"}
    missing = seen - set(pinned) - accelerator - {"pip", "setuptools"}
    assert not missing, f"constraints.txt lacks {sorted(missing)}"


def test_conda_users_get_the_same_versions():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = {d.split("=")[0]: d for d in conda["dependencies"] if isinstance(d, str)}
    (pip,) = [d["pip"] for d in conda["dependencies"] if isinstance(d, dict)]
    assert pip == ["-c constraints.txt", "-e .[dev]"]
    least = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert plain["python"].split("=")[1] == least
    assert not set(plain) - {"python", "pip", "make"}, "a package from conda would escape constraints.txt"


def test_python_is_the_same_everywhere():
    least = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert PROJECT["tool"]["mypy"]["python_version"] == least
    assert sys.version_info >= tuple(map(int, least.split(".")))


def test_make_installs_with_the_constraints_and_ci_runs_make_test():
    makefile = (ROOT / "Makefile").read_text()
    assert ".venv/ready: pyproject.toml constraints.txt" in makefile
    assert all("-c constraints.txt" in line for line in makefile.splitlines() if "pip" in line and "install" in line)
    for target in ("run", "lab", "test", "check", "notebooks", "bench", "base"):
        assert re.search(rf"^{target}:", makefile, re.M), target
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# -- imports


def imported(path: Path) -> set[str]:
    """The first names of all imports of a file, those inside functions included."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            out.add(node.module.split(".")[0])
    return out


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("trl", {"pipeline/training.py"}), ("ipywidgets", {"course/widgets.py"}),
     ("peft", {"models.py", "adapters.py", "pipeline/training.py", "pipeline/averaging.py"})],
)
def test_a_package_stays_where_it_belongs(package, allowed):
    users = {p.relative_to(ROOT / "llama3_lab").as_posix() for p in MODULES if package in imported(p)}
    assert users <= allowed
    assert users, f"nobody uses {package}; drop it, or this test looks in the wrong place"


def test_importing_the_package_and_what_needs_no_model_loads_no_torch():
    modules = ["llama3_lab", "llama3_lab.records", "llama3_lab.profiles", "llama3_lab.store", "llama3_lab.cli",
               "llama3_lab.doctor", "llama3_lab.world.corpus", "llama3_lab.pipeline.prompts"]  # fmt: skip
    code = f"import sys, {', '.join(modules)}; print(sorted({{'torch', 'transformers', 'trl'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_takes_no_time():
    code = "import time; t = time.process_time(); import llama3_lab; print(time.process_time() - t)"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < 0.15


def test_data_flows_one_way():
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_every_module_has_its_place_in_the_layers():
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    placed = {m.strip() for layer in layers for m in layer.split("|")}
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        names = {".".join(parts[:n]) for n in range(2, len(parts) + 1)}
        assert path.name == "__init__.py" or names & placed, f"{'.'.join(parts)} is in no layer of pyproject.toml"


# -- size and words


def code_lines(text: str) -> int:
    """Lines that hold code: no blank ones, no comments, no docstrings."""
    lines: set[int] = set()
    idle = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in idle:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def functions(path: Path) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]


def test_lines_of_code_are_counted_as_said():
    assert code_lines('"""Doc.\n\nMore."""\n\n# why\nx = 1\n\n\ndef f():\n    """Doc."""\n    return """a\nb"""\n') == 4


@pytest.mark.parametrize("path", MODULES, ids=[p.relative_to(ROOT).as_posix() for p in MODULES])
def test_a_module_is_small_and_says_what_it_is_for(path):
    name = path.relative_to(ROOT / "llama3_lab").as_posix()
    assert code_lines(path.read_text()) <= LONGER.get(name, MAX_CODE_LINES)
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(path.read_text())), "no docstring"
    for f in functions(path):
        length = f.end_lineno - f.lineno + 1
        assert length <= MAX_FUNCTION_LINES, f"{f.name} has {length} lines"
        given = [a for a in [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs] if a.arg not in ("self", "cls")]
        assert len(given) <= MAX_PARAMETERS, f"{f.name} takes {len(given)} parameters"


def test_public_functions_and_classes_have_docstrings():
    bare = []
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            inside = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else []
            for n in [node, *inside]:
                public = isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")
                if public and not ast.get_docstring(n):
                    bare.append(f"{path.relative_to(ROOT)}: {n.name}")
    inherited = {"collate", "__call__", "torch_call", "log", "compute_loss"}
    bare = [b for b in bare if b.rpartition(" ")[2] not in inherited and not re.search(r": on_\w+$", b)]
    assert not bare, bare


def test_a_module_is_named_for_a_noun():
    assert not {p.stem for p in MODULES} & {"utils", "util", "common", "helpers", "base", "misc"}


def test_no_file_names_a_machine_or_a_registry():
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {m[0]}" for m in [PRIVATE.search(text)] if m]
    allowed = "tests/test_notebooks.py: "  # there a path of nobody shows that such paths are found
    assert not [f for f in found if not f.startswith(allowed)]


@pytest.mark.parametrize("text", ["/ho" "me/ann/x", "https://py" "pi.org/simple", "/ro" "ot/x"])
def test_a_path_or_an_address_would_be_found(text):
    assert PRIVATE.search(text)


# -- what must be there


def test_licence_and_citation_are_there_and_agree():
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert "CC BY 4.0" in (ROOT / "LICENSE-TEXT").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    import llama3_lab

    assert citation["version"] == llama3_lab.__version__
    assert citation["license"] == PROJECT["project"]["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors", "type"} <= set(citation)
