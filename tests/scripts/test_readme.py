"""What README.md tells people to type exists and is accepted."""

import re
import shlex
import subprocess
import sys

import config
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line.strip().removeprefix("python "), comments=True)
    for line in README.replace("\\\n", " ").splitlines()
    if line.startswith("    python ")
]


def test_training_commands_are_accepted():
    commands = [command for command in COMMANDS if command[0] == "main.py"]
    assert commands
    for _, *flags in commands:
        config.parse_args(flags)


def test_commands_on_a_run_use_flags_that_exist():
    import eval as eval_script
    import generate
    import get_attention
    import get_ppl_per_mac
    import get_router_weights

    add_flags = {
        "eval.py": eval_script.add_flags,
        "generate.py": generate.add_flags,
        "get_attention.py": get_attention.add_flags,
        "get_ppl_per_mac.py": get_ppl_per_mac.add_flags,
        "get_router_weights.py": get_router_weights.add_flags,
    }
    used = [command for command in COMMANDS if command[0] in add_flags]
    assert {command[0] for command in used} == set(add_flags)
    for script, *flags in used:
        config.parse_with_run(flags, add_flags[script], None)


def test_scripts_targets_and_flags_that_are_named_exist():
    for name in re.findall(r"\b\w+\.py\b", README):
        assert any(list(ROOT.glob(f"{above}{name}")) for above in ("", "*/", "iridis/*/")), name
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make (demo|test|lint)\b", README)) == {"demo", "test", "lint"} <= set(targets)
    sources = [*ROOT.glob("*.py"), *(path for path in ROOT.glob("*/*.py") if path.parent.name != "tests")]
    known = {flag for path in sources for flag in re.findall(r'"(--\w+)"', path.read_text())} | {"--help"}
    known |= {flag for path in ROOT.glob("iridis/**/*.sh") for flag in re.findall(r"--\w+", path.read_text())}
    known |= {"--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint", "--signals"}  # torchrun's
    known |= {"--nv", "--bind", "--env", "--prefix"}  # of Apptainer and conda
    assert set(re.findall(r"--\w+", README)) <= known


def test_commands_of_modules_are_accepted():
    """Their --help knows the flags that README uses."""
    commands = {tuple(command) for command in COMMANDS if command[0] == "-m"}
    assert len(commands) >= 5
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in command if word.startswith("--")), command
