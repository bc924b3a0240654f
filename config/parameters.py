"""docs/parameters.md, generated from the flags: `python -m config.parameters`."""

from itertools import groupby
from pathlib import Path

from config.base import all_flags, models_that_read
from errors import run_script
from files import write_atomically
from flags import Flag

OUTPUT = Path(__file__).parents[1] / "docs" / "parameters.md"
HEAD = """# Parameters

Every flag of `python main.py`, made from the code by `python -m config.parameters`. Scripts that work on a
trained run (`eval.py`, `generate.py`, ...) accept them too: there they replace the run's own. A flag marked
with * defines an experiment, and so is part of the name of its run; (*) only if it is not at its default.
"""


def page() -> str:
    """The text of docs/parameters.md: a table for each group of flags."""
    parts = [HEAD]
    shown = [one for one in all_flags() if not one.hidden]
    for group, flags in groupby(shown, key=lambda one: one.group):
        parts.append(f"\n## {group}\n\n| flag | default | values | meaning | read by |\n")
        parts.append(f"{'| --- ' * 5}|\n")
        parts += [_line(one) for one in flags]
    unused = [f"`--{one.name}`" for one in all_flags() if one.hidden]
    parts.append(f"\n## Without effect\n\nAccepted so that old commands keep working: {', '.join(unused)}.\n")
    return "".join(parts)


def _line(one: Flag) -> str:
    mark = {"ALWAYS": " *", "WHEN_READ": " *", "WHEN_CHANGED": " (*)", "NEVER": ""}[one.identity.name]
    default = "$SLURM_TMPDIR" if one.name == "checkpoint_staging_dir" else one.default
    readers = models_that_read(one)
    models = "all" if readers is None else ", ".join(readers)
    meaning = one.help.replace("|", "\\|")
    if readers is not None and len(readers) <= 2:
        meaning = meaning.removeprefix(f"{models}: ")
    return f"| `--{one.name}`{mark} | `{default}` | {_values(one)} | {meaning} | {models} |\n"


def _values(one: Flag) -> str:
    """The choices, or the bound; nothing where the meaning says what is allowed."""
    if one.choices:
        return ", ".join(f"`{choice}`" for choice in one.choices)
    if one.bound:
        return one.bound.rule.replace("must not be", "not").removeprefix("must be ").removeprefix("is ")
    return "" if one.annotation is not bool else "no value" if one.is_switch else "`true`, `false`"


def main() -> None:
    write_atomically(OUTPUT, lambda file: file.write(page().encode()))
    print(f"written: {OUTPUT}")


if __name__ == "__main__":
    run_script(main)
