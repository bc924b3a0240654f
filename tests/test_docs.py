"""README.md and docs/: commands are accepted, links lead somewhere, generated pages are up to date."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "iridis" / "README.md", *ROOT.glob("docs/*.md")]
PAGES = [page for page in PAGES if page.exists()]
# Files that pages name and commands make.
WRITTEN_BY_COMMANDS = {
    "summary.json", "files.json", "meta.json", "config.json", "tokenizer.json", "run.json", "env.local.sh",
    "iridis/env.local.sh", "report.md", "job.sh",
}  # fmt: skip
PLACEHOLDERS = {"...": "", "<model>": "model", "<run>": "run", "<other>": "other", "<file>": "file.json"}


def commands(page: Path) -> list[list[str]]:
    """The indented command lines of a page that run Python, as words, without `python` or torchrun's part."""
    found = []
    for line in page.read_text().replace("\\\n", " ").splitlines():
        if not line.startswith("    "):
            continue
        for placeholder, text in PLACEHOLDERS.items():
            line = line.replace(placeholder, text)
        if not line.strip().startswith(("python ", "torchrun ")):
            continue
        words = shlex.split(line.strip(), comments=True)
        words = words[words.index("main.py") if words[0] == "torchrun" else 1 :]
        found.append(words)
    return found


ALL = [(page.relative_to(ROOT).as_posix(), words) for page in PAGES for words in commands(page)]
TRAINING = [words for _, words in ALL if words[0] == "main.py"]
OTHERS = sorted({tuple(words) for _, words in ALL if words[0] != "main.py"})


@functools.cache
def help_of(*command: str) -> str:
    """--help-all where a script has it, else --help."""
    for flag in ("--help-all", "--help"):
        done = subprocess.run(
            [sys.executable, *command, flag], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        if done.returncode == 0:
            return done.stdout
    raise AssertionError(done.stderr)


def test_pages_show_commands():
    assert len(TRAINING) >= 5 and len(OTHERS) >= 20


@pytest.mark.parametrize("flags", [words[1:] for words in TRAINING], ids=" ".join)
def test_training_commands_are_accepted(flags):
    from config.parser import parse_args

    parse_args(flags)


@pytest.mark.process
@pytest.mark.parametrize("command", OTHERS, ids=" ".join)
def test_other_commands_use_flags_and_subcommands_that_exist(command):
    words = list(command)
    script = words[:2] if words[0] == "-m" else words[:1]
    text = help_of(*script)
    rest = words[len(script) :]
    subcommand = rest[:1] if rest and re.search(rf"[{{,\s]{re.escape(rest[0])}[,}}\s]", text) else []
    if subcommand and not rest[0].startswith("-"):
        text += help_of(*script, *subcommand)
    for flag in (word for word in rest if word.startswith("--") and word != "--"):
        assert re.search(rf"{flag}\b", text), f"{' '.join(script)} has no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", text):
        if not target.startswith("http"):
            linked = page if not target else page.parent / target
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{target}#{anchor}"
    for name in re.findall(r"`((?:\w+/)*[\w.]+\.(?:py|sh|md|json|toml))`", text):
        if name not in WRITTEN_BY_COMMANDS:
            places = [*ROOT.glob(name), *ROOT.glob(f"*/{name}"), *ROOT.glob(f"bench/results/*/{name}")]
            assert places, name


def test_make_targets_exist():
    targets = re.findall(r"^([\w./-]+|\$\(VENV\)/ready):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = {target.replace("$(VENV)", ".venv") for target in targets}
    used = {name for page in PAGES for name in re.findall(r"make ([\w./-]+)", page.read_text())}
    assert {"demo", "test", "test-fast"} <= used
    named = {name.rstrip(".") for name in used if name.startswith(("test", "demo", "lint", "bench", ".venv"))}
    assert named <= known, named - known


def test_the_front_page_stays_short():
    assert len((ROOT / "README.md").read_bytes()) < 9_000


def test_the_picture_is_what_the_script_draws(tmp_path):
    from plots.looped_middle import OUTPUT, draw

    draw(tmp_path / OUTPUT.name)
    strip = functools.partial(re.sub, r"(?s)<metadata>.*?</metadata>", "")
    assert strip((tmp_path / OUTPUT.name).read_text()) == strip(OUTPUT.read_text())
