"""The shape of the code: direction of imports, no cycles, sizes of files, and how much a training loads."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT, TEXT, TINY

ROOT_MODULES = {"errors", "files", "flags", "hardware", "provenance", "tables"}  # imported by every package
BELOW_CONFIG = {"models", "data", "distributed"}
BELOW_OPTIM = BELOW_CONFIG | {"config"}
BELOW_EVALUATION = BELOW_OPTIM | {"optim"}
BELOW_SCRIPTS = BELOW_EVALUATION | {"evaluation"}
MAY_IMPORT = {
    "models": set(),
    "data": set(),
    "distributed": set(),
    "config": BELOW_CONFIG,
    "optim": BELOW_OPTIM,
    "evaluation": BELOW_EVALUATION,
    "plots": BELOW_SCRIPTS,
    "analysis": BELOW_SCRIPTS | {"plots"},
    "reproduction": BELOW_SCRIPTS | {"plots"},
    "bench": BELOW_SCRIPTS | {"plots"},
}
# Imports inside functions that go the other way, each with its reason: (importing, imported).
EXCEPTIONS: dict[tuple[str, str], str] = {}
LONGER_THAN_300_LINES: dict[str, str] = {}  # generated files and tables of data, each with its reason
MODULES_OF_A_TRAINING = 65
FILES_OF_A_STEP = {"base": 14, "adm": 16}  # nanoGPT: 2, Lingua: 6


def our_files() -> list[str]:
    """Paths of the modules: the root's and the packages'."""
    folders = ["*.py", *(f"{package}/**/*.py" for package in MAY_IMPORT)]
    return sorted(str(path.relative_to(ROOT)) for glob in folders for path in ROOT.glob(glob))


def name_of(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


MODULES = {name_of(path): path for path in our_files()}


def imports(tree: ast.AST, module: str, path: str) -> Iterator[tuple[str, bool]]:
    """(module of ours, whether it is imported at module level), without `if TYPE_CHECKING`."""
    package = module if path.endswith("__init__.py") else module.rpartition(".")[0]

    def visit(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child, at_import)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, at_import
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in MODULES else base), at_import
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_import and not inside)

    for name, at_import in visit(tree, True):
        if name in MODULES:
            yield name, at_import


def import_graph() -> dict[str, dict[str, bool]]:
    """For each module of ours those it imports, and whether it does so when it is imported itself."""
    graph: dict[str, dict[str, bool]] = {}
    for module, path in MODULES.items():
        found = graph[module] = {}
        for name, at_import in imports(ast.parse((ROOT / path).read_text()), module, path):
            if name != module:
                found[name] = found.get(name, False) or at_import
    return graph


GRAPH = import_graph()


def cycles(graph: dict[str, dict[str, bool]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in graph[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in graph:
        if module not in index:
            visit(module)
    return found


def wrong_directions(graph: dict[str, dict[str, bool]]) -> list[str]:
    found = []
    for module, others in graph.items():
        package = module.partition(".")[0]
        for other, at_import in others.items():
            target = other.partition(".")[0]
            if package not in MAY_IMPORT:  # the root: its modules import each other, its scripts everything
                allowed = package not in ROOT_MODULES or target in ROOT_MODULES
            else:
                allowed = target in MAY_IMPORT[package] | ROOT_MODULES | {package}
            if not allowed and (at_import or (module, other) not in EXCEPTIONS):
                found.append(f"{module} imports {other}")
    return found


def loaded_by(graph: dict[str, dict[str, bool]], module: str, lazily: bool = False) -> set[str]:
    """All modules of ours that importing one loads, with the packages they are in."""
    seen: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        left += [other for other, at_import in graph[name].items() if at_import or lazily]
        above = name.rpartition(".")[0]
        if above in graph:
            left.append(above)
    return seen


def test_no_import_cycles():
    assert cycles(GRAPH) == []


def test_imports_point_one_way():
    assert wrong_directions(GRAPH) == []
    assert {pair for pair in EXCEPTIONS if not GRAPH.get(pair[0], {}).get(pair[1], True)} == set(EXCEPTIONS)


def test_config_does_not_import_torch():
    """`--help` and a typo are answered at once."""
    for module in sorted(loaded_by(GRAPH, "config")):
        tree = ast.parse((ROOT / MODULES[module]).read_text())
        for node in tree.body:
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not any(name.split(".")[0] == "torch" for name in names), module


def test_no_file_is_longer_than_300_lines():
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in our_files()}
    longer = {path for path, length in lengths.items() if length > 300}
    assert longer == set(LONGER_THAN_300_LINES), {path: lengths.get(path) for path in longer}


def test_the_checks_find_what_they_look_for():
    assert cycles({"a": {"b": True}, "b": {"c": False}, "c": {"a": True}, "d": {"a": True}}) == [
        ["a", "b", "c"]
    ]
    assert wrong_directions({"models.block": {"optim.train": True}}) == ["models.block imports optim.train"]
    assert wrong_directions({"errors": {"models.block": False}}) == ["errors imports models.block"]
    assert wrong_directions({"optim.train": {"models.block": True}, "main": {"optim.train": True}}) == []
    code = "import errors\nif TYPE_CHECKING:\n    import files\ndef f():\n    from models import block\n"
    assert list(imports(ast.parse(code), "main", "main.py")) == [("errors", True), ("models.block", False)]


# Trains in a process of its own; prints our modules that are loaded, and our files that a step after the
# first runs in. A call counts when it enters a function of ours between two calls of the optimiser's step.
COUNT = """
import json, sys
from pathlib import Path
root, out = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(root))
sys.argv = ["main.py", *sys.argv[3:]]
import config
args = config.parse_args()
import torch
from optim.run import run_training
steps, files = 0, set()
step = torch.optim.AdamW.step
def seen(frame, event, argument):
    if event == "call" and 3 <= steps < 5:
        name = frame.f_code.co_filename
        if name.startswith(str(root)) and "/.venv/" not in name:
            files.add(str(Path(name).relative_to(root)))
def counted(self, *rest, **named):
    global steps
    steps += 1
    return step(self, *rest, **named)
torch.optim.AdamW.step = counted
sys.setprofile(seen)
import threading
threading.setprofile(seen)
code = run_training(args)
sys.setprofile(None)
modules = [n for n, m in sys.modules.items() if str(getattr(m, "__file__", None)).startswith(str(root) + "/")
           and "/.venv/" not in m.__file__]
out.write_text(json.dumps({"steps": steps, "files": sorted(files), "modules": sorted(modules)}))
"""


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    made: dict[str, dict] = {}

    def count(model: str) -> dict:
        if model not in made:
            folder = tmp_path_factory.mktemp("counts")
            text = folder / "data" / "shakespeare-char" / "input.txt"
            text.parent.mkdir(parents=True)
            text.write_text(TEXT)
            flags = TINY.replace("--eval_freq 4 --log_freq 2", "--eval_freq 12 --log_freq 12").split()
            flags += ["--model", model, "--data_dir", str(folder / "data")]
            flags += ["--results_base_folder", str(folder / "exps")]
            command = [sys.executable, "-c", COUNT, str(ROOT), str(folder / "counts.json"), *flags]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
            assert done.returncode == 0, done.stdout + done.stderr
            made[model] = json.loads((folder / "counts.json").read_text())
            assert made[model]["steps"] == 12
        return made[model]

    return count


@pytest.mark.process
def test_a_training_loads_few_modules(counts):
    modules = counts("base")["modules"]
    assert {"optim.run", "models.block", "errors"} <= set(modules)
    assert len(modules) <= MODULES_OF_A_TRAINING, f"{len(modules)}: {' '.join(modules)}"


@pytest.mark.process
@pytest.mark.parametrize("model", ["base", "adm"])
def test_a_training_step_runs_in_few_files(counts, model):
    files = counts(model)["files"]
    assert {"models/block.py", "models/language_model.py"} <= set(files)
    assert len(files) <= FILES_OF_A_STEP[model], f"{len(files)}: {' '.join(files)}"
