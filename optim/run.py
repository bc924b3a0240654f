"""A training run from its flags to its summary: what main.py calls."""

import datetime
import platform
import subprocess
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import torch

import models
from config import experiment_dir, notes
from data.batches import Batches, contiguous_batches, prefetch, validation_subset
from data.token_files import vocabulary_note
from distributed import choose_device, choose_precision, require_single_process
from errors import Failure, UsageError
from evaluation.perplexity import Evaluation, evaluate
from evaluation.text import write_text
from files import write_json
from optim import checkpoint
from optim.compiling import compiled
from optim.config import TrainConfig
from optim.metrics import MetricsFile, curves, read_metrics
from optim.progress import Progress
from optim.randomness import derive_seed, seed_torch
from optim.restore import open_corpus_of
from optim.resume import covered_by_summary, find_start
from optim.state import TrainState
from optim.train import Batch, train
from optim.wandb_log import WandbLog

SAMPLE_TOKENS = 64
EVAL_BATCHES = 24  # of an intermediate evaluation


def run_training(args: Namespace, say: Callable[[str], None] = print) -> Path:
    """Train what the flags describe, or go on with it; returns the run's folder.

    Raises UsageError for what cannot be done and Failure for what went wrong; checkpoints stay intact.
    """
    require_single_process()
    folder = experiment_dir(args)
    if covered_by_summary(folder, args.iterations):
        say(f"finished already: {folder / 'summary.json'} covers {args.iterations} iterations; nothing to do")
        return folder
    run = Run(args, folder, say)
    try:
        run.train()
    except KeyboardInterrupt:
        saved = checkpoint.in_folder(folder)
        kept = f"{saved[0].name} is the last checkpoint" if saved else "no checkpoint had been saved yet"
        raise KeyboardInterrupt(f"{kept}; the same command goes on from there") from None
    run.finish()
    return folder


class Run:
    """The parts of one run, put together."""

    def __init__(self, args: Namespace, folder: Path, say: Callable[[str], None]) -> None:
        self.args, self.folder, self.say = args, folder, say
        self.config = TrainConfig.from_args(args)
        self.precision = choose_precision(args.dtype, choose_device(args.device))
        self.corpus = open_corpus_of(args, args.sequence_length, say)
        seed_torch(args.seed, "initialisation")
        self.model = models.make_model_from_args(args).to(self.precision.device)
        self.state = TrainState.fresh(self.model, self.config, self.precision.gradient_scaler())
        self._restore()
        self._describe()
        self.tokenizer = self._sample_tokenizer()

    def train(self) -> None:
        """Train to the last iteration, evaluate on the whole validation set, save ckpt.pt."""
        if self.state.step == self.config.iterations:
            return  # everything but the summary had been written when the run was cut off
        checkpoint.remove_leftovers(self.folder)
        metrics = MetricsFile(self.folder, self.state.step)
        progress = Progress(self.config, self.state.step)
        wandb = WandbLog(self.args, self.folder)

        def log(line: dict[str, Any]) -> None:
            metrics.append(line)
            wandb.log(line)
            progress.metrics(line)

        def save(name: str | None = None) -> None:
            metrics.sync()
            self._save(name or checkpoint.step_name(self.state.step))

        try:
            train(
                self.state,
                self._compiled() if self.args.compile else self.model,
                self._batches(),
                self.config,
                self.precision,
                evaluate=self._evaluate,
                log=log,
                save=save,
                progress=progress,
            )
            save(checkpoint.FINAL_NAME)
        finally:
            progress.close()
            metrics.close()
            wandb.close()

    def finish(self) -> None:
        """Write summary.json from the lines of metrics.jsonl."""
        lines = read_metrics(self.folder)
        write_json(
            self.folder / "summary.json",
            {
                "args": vars(self.args),
                "iterations": self.config.iterations,
                "parameters": self.model.parameter_count(),
                "average_depth": lines[-1].get("val_average_depth"),
                "tokenizer": self.corpus.meta["tokenizer"],
                "final": lines[-1],
                **curves(lines),
                "training_seconds": round(self.state.seconds, 3),
                "device": str(self.precision.device),
                "arithmetic": self.precision.reason,
                "versions": _versions(),
                "git_commit": _git_commit(),
                "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        )
        if self.args.remove_intermediary_checkpoints_at_end:
            checkpoint.remove_intermediary(self.folder)
        self.say(f"finished: {self.folder / checkpoint.FINAL_NAME}, summary.json and metrics.jsonl beside it")

    def _restore(self) -> None:
        start = find_start(self.args, self.folder, self.say)
        if start is None:
            return
        path, content = start
        self.state.restore(content, self.config)
        self.corpus.require_tokenizer(content["tokenizer"], f"the model in {path}")
        self.say(f"resuming from {path} at step {self.state.step}")
        # Of a run whose ckpt.pt is there, only the summary can be missing; elsewhere there is nothing to do.
        done = self.state.step == self.config.iterations and path == self.folder / checkpoint.FINAL_NAME
        if self.state.step >= self.config.iterations and not done:
            raise UsageError(
                f"{path} has {self.state.step} steps already, and --iterations {self.config.iterations} "
                "asks for no more; ask for more, or give another --exp_name"
            )
        earlier = content["args"].get("iterations")
        if earlier != self.config.iterations and self.state.step < self.config.iterations:
            if path == self.folder / checkpoint.FINAL_NAME:
                checkpoint.keep_final(self.folder, self.state.step)
            self.say(
                f"warning: the run was planned for {earlier} iterations and is now to have "
                f"{self.config.iterations}: the schedule is laid out anew, and at step {self.state.step} the "
                f"learning rate becomes {self.state.schedule.get_last_lr()[0]:.3g}. A second schedule is not "
                "the same as one long one (a reproduction lost 0.4 perplexity at 40k + 20k steps)"
            )

    def _describe(self) -> None:
        of_vocabulary = vocabulary_note(self.corpus.meta, self.args.vocab_size)
        for note in [*notes(self.args), *([of_vocabulary] if of_vocabulary else [])]:
            self.say(note)
        device = self.precision.device
        name = (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{torch.get_num_threads()} threads"
        )
        self.say(f"{self.args.model}: {self.model.parameter_count():,} parameters, on {device} ({name})")
        self.say(f"{self.config.tokens_per_step:,} tokens a step, computed in {self.precision.reason}")
        self.say(f"run folder: {self.folder}")

    def _compiled(self) -> torch.nn.Module:
        if self.model.config.variant.stops_early:
            return self.model  # as a note at the start has said
        return compiled(self.model, self.precision.device)

    def _sample_tokenizer(self):
        if self.args.eval_seq_prefix in (None, "none"):
            return None
        try:
            tokenizer = self.corpus.load_tokenizer()
            tokenizer.encode(self.args.eval_seq_prefix)
        except Failure as error:
            self.say(f"note: no text samples at evaluations: {error}")
            return None
        return tokenizer

    def _batches(self) -> Iterator[Batch]:
        config = self.config
        windows = self.corpus.windows("train", config.sequence_length, self.args.vocab_size)
        source = Batches(windows, config.batch_size, config.acc_steps, config.data_seed)
        pin = self.precision.device.type == "cuda"

        def make(key: tuple[int, int]) -> Batch:
            batch = source.get(*key)
            return tuple(tensor.pin_memory() for tensor in batch) if pin else batch

        return prefetch(
            make,
            (
                (step, micro_batch)
                for step in range(self.state.step, config.iterations)
                for micro_batch in range(config.acc_steps)
            ),
        )

    def _evaluate(self, step: int) -> dict[str, Any]:
        """24 batches while training goes on, the whole validation set at the end; and a text sample."""
        config = self.config
        windows = self.corpus.windows("val", config.sequence_length, self.args.vocab_size)
        if step == config.iterations:
            batches = contiguous_batches(windows, config.batch_size)
        else:
            seed = derive_seed(config.data_seed, "validation")
            batches = validation_subset(windows, config.batch_size, EVAL_BATCHES, seed)
        result = evaluation_line(evaluate(self.model, batches, self.precision))
        if self.tokenizer is not None:
            text = write_text(
                self.model,
                self.tokenizer,
                self.args.eval_seq_prefix,
                SAMPLE_TOKENS,
                self.precision,
                seed=derive_seed(config.seed, "sample", step),
                temperature=0.8,
                top_k=40,
            )
            result["sample"] = self.args.eval_seq_prefix + text
        return result

    def _save(self, name: str) -> None:
        content = self.state.to_checkpoint()
        content |= {
            "args": vars(self.args),
            "tokenizer": self.corpus.meta["tokenizer"],
            "versions": _versions(),
        }
        checkpoint.save(self.folder / name, content)


def evaluation_line(result: Evaluation) -> dict[str, Any]:
    """What a line of metrics.jsonl says of an evaluation."""
    return {
        "val_loss": result.loss,
        "val_perplexity": result.perplexity,
        "val_perplexity_interval": result.perplexity_interval,
        "val_accuracy": result.accuracy,
        "val_tokens": result.tokens,
        "val_average_depth": result.average_depth,
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__}


def _git_commit() -> str | None:
    """The commit of this code, with -dirty behind it where files differ; None outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
