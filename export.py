"""Export a trained model: `python export.py --checkpoint <run folder or file> --output <folder>`.

Writes model.safetensors, config.json and the tokenizer, without the optimiser's state.
`models.from_pretrained(folder)` loads it, and every command takes the folder as --checkpoint.
"""

import argparse
from pathlib import Path

import config
from errors import Failure, UsageError, run_script


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint file, or a run's folder")
    parser.add_argument("--output", required=True, type=Path, help="folder to write, which must not exist")


def main() -> None:
    own, given = config.parse_with_run(None, add_flags, __doc__)
    if own.output.exists():
        raise UsageError(f"--output {own.output} exists; give another name, or move it away")
    from data.token_files import HF_TOKENIZER
    from evaluation.restore import restore
    from models import pretrained
    from provenance import git_commit

    run = restore(Path(own.checkpoint), given)
    tokenizer, tokenizer_file = run.tokenizer, None
    if tokenizer is not None and tokenizer["name"] == HF_TOKENIZER:
        try:
            tokenizer_file = run.make_tokenizer().path
        except Failure as error:
            print(f"warning: the folder will lack its tokenizer: {error}")
        else:
            tokenizer = {**tokenizer, "path": pretrained.TOKENIZER}
    pretrained.save(
        own.output,
        run.model,
        tokenizer_file,
        step=run.step,
        tokenizer=tokenizer,
        args=vars(run.args),
        checkpoint=str(run.path),
        git_commit=git_commit(),
    )
    size = (own.output / pretrained.WEIGHTS).stat().st_size
    print(f"written: {own.output} ({run.model.parameter_count():,} parameters, {size / 1e6:,.1f} MB)")


if __name__ == "__main__":
    run_script(main)
