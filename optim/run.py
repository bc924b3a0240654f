"""A training run from its flags to its summary: what main.py calls."""

import dataclasses
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import models
from config import experiment_dir, notes
from data.algorithmic import NOT_DUE
from data.batches import Batches, contiguous_batches, prefetch, validation_subset
from data.token_files import vocabulary_note
from distributed import Processes, choose_device, choose_precision
from distributed.parallel import choose_parallel
from distributed.share import Share
from errors import Failure, UsageError
from evaluation.perplexity import Evaluation, evaluate
from evaluation.text import write_text
from optim import checkpoint
from optim.compiling import compiled
from optim.config import TrainConfig
from optim.lock import RunLock
from optim.metrics import MetricsFile
from optim.progress import Progress
from optim.randomness import derive_seed, seed_torch
from optim.restore import open_corpus_of
from optim.resume import covered_by_summary, extension, find_start
from optim.saver import Saver
from optim.state import TrainState
from optim.stop import Stop
from optim.summary import versions, write_summary
from optim.train import MicroBatch, train
from optim.wandb_log import WandbLog

SAMPLE_TOKENS = 64
EVAL_BATCHES = 24  # of an intermediate evaluation


def run_training(args: Namespace, say: Callable[[str], None] = print) -> int:
    """Train what the flags describe, or go on with it; returns the exit code.

    That is 0, or --exit_code_unfinished for a run that was stopped with steps left. Raises UsageError for
    what cannot be done and Failure for what went wrong; checkpoints stay intact.
    """
    processes = Processes(on_cuda=args.device != "cpu", timeout_minutes=args.distributed_timeout)
    say = say if processes.is_main else _say_nothing
    with processes.one_voice():
        device = choose_device(args.device)
        folder = experiment_dir(args)
        if processes.broadcast(processes.is_main and covered_by_summary(folder, args.iterations)):
            what = f"{folder / 'summary.json'} covers {args.iterations} iterations"
            say(f"finished already: {what}; nothing to do")
            return 0
        lock = RunLock(folder, say) if processes.is_main else None
        processes.broadcast(None)  # behind the lock
        try:
            run = Run(args, folder, processes, device, say)
            with Stop(processes, args.max_time, say) as stop:
                try:
                    finished = run.train(stop)
                except KeyboardInterrupt:
                    raise KeyboardInterrupt(_kept(folder)) from None
            if finished and processes.is_main:
                run.finish()
            processes.broadcast(None)  # nobody leaves before the summary is there
        finally:
            if lock is not None:
                lock.release()
    return 0 if finished else args.exit_code_unfinished


def _say_nothing(_: str) -> None:
    """What the other processes have to say is what the first says."""


def _kept(folder: Path) -> str:
    saved = checkpoint.in_folder(folder)
    kept = f"{saved[0].name} is the last checkpoint" if saved else "no checkpoint had been saved yet"
    return f"{kept}; the same command goes on from there"


class Run:
    """The parts of one run, put together."""

    def __init__(
        self,
        args: Namespace,
        folder: Path,
        processes: Processes,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        self.args, self.folder, self.processes, self.say = args, folder, processes, say
        self.parallel = choose_parallel(
            args.distributed_backend, processes, device, opt=args.opt, dtype=args.dtype
        )
        self.config = TrainConfig.from_args(args)
        self.share = Share.of(args.batch_size, args.acc_steps, processes.rank, processes.size)
        self._parts_rows = self.share.rows != slice(0, args.batch_size)
        if self._parts_rows and args.act_loss_reduction == "sum":
            raise UsageError(
                "--act_loss_reduction sum adds up over a micro-batch, and these processes would part one: "
                f"make --acc_steps a multiple of {processes.size}"
            )
        self.precision = choose_precision(args.dtype, device)
        if processes.is_main:
            self.corpus = open_corpus_of(args, args.sequence_length, say)
        processes.broadcast(None)  # by now its token files are there
        if not processes.is_main:
            self.corpus = open_corpus_of(args, args.sequence_length, say)
        seed_torch(args.seed, "initialisation")
        self.model = models.make_model_from_args(args).to(device)
        start = self._find_start()
        self.model = self.parallel.place(self.model)
        self.state = TrainState.fresh(self.model, self.config, self.precision.gradient_scaler())
        if start is not None:
            self._restore(*start)
        self._describe()
        self.tokenizer = self._sample_tokenizer()

    def train(self, stop: Stop) -> bool:
        """Train to the last iteration, evaluate on the whole validation set, save ckpt.pt.

        Whether it got there: where `stop` was asked for, what there is has been saved.
        """
        if self.state.step == self.config.iterations and not self.state.interval.steps:
            return True  # everything but the summary had been written when the run was cut off
        last = self.config.iterations
        if self.args.max_steps_this_run is not None:
            last = min(last, self.state.step + self.args.max_steps_this_run)
        main = self.processes.is_main
        if main:
            checkpoint.remove_leftovers(self.folder)
        metrics = MetricsFile(self.folder, self.state.step) if main else None
        progress = Progress(self.config, self.state.step, shown=main)
        wandb = WandbLog(self.args, self.folder) if main else None
        saver = self._saver(progress)
        saved = -1

        def log(line: dict[str, Any]) -> None:
            if main:
                self._try(lambda: metrics.append(line), progress)
                wandb.log(line)
                progress.metrics(line)

        def save(final: bool = False) -> None:
            nonlocal saved
            if main:
                self._try(metrics.sync, progress)
            if main or self.parallel.sharded:
                saver.save(self._content(), self.state.step, final)
            saved = self.state.step

        try:
            finished = train(
                self.state,
                self._forward(),
                self._batches(),
                self.config,
                self.precision,
                self.parallel,
                evaluate=lambda step: self._evaluate(step, stop),
                log=log,
                save=save,
                stop=lambda: self.state.step == last < self.config.iterations or stop.asked(),
                progress=progress,
            )
            if not finished:
                progress.say(self._unfinished(stop))
            if finished or saved != self.state.step:
                save(final=finished)
            saver.wait(must=True)
            if main:
                metrics.sync()
        finally:
            saver.close()
            progress.close()
            if wandb is not None:
                wandb.close()
        return finished

    def finish(self) -> None:
        """Write summary.json from the lines of metrics.jsonl."""
        write_summary(self.folder, self.args, {
            "iterations": self.config.iterations,
            "parameters": self.model.parameter_count(),
            "tokenizer": self.corpus.meta["tokenizer"],
            "training_seconds": round(self.state.seconds, 3),
            "processes": self.processes.size,
            "device": str(self.precision.device),
            "arithmetic": self.precision.reason,
        })  # fmt: skip
        if self.args.remove_intermediary_checkpoints_at_end:
            checkpoint.remove_intermediary(self.folder)
        final = checkpoint.in_folder(self.folder)[0]
        self.say(f"finished: {final}, summary.json and metrics.jsonl beside it")

    def _find_start(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint to go on from, the same one for all processes: the first one chooses it."""
        start = find_start(self.args, self.folder, self.say) if self.processes.is_main else None
        path = self.processes.broadcast(None if start is None else start[0])
        if path is None:
            return None
        content = start[1] if start is not None else checkpoint.load(path)
        if content.get("format") is not None:
            self.config = dataclasses.replace(
                self.config, scheduled=extension(self.args, content).schedule_iterations
            )
        return path, content

    def _restore(self, path: Path, content: dict[str, Any]) -> None:
        self.state.restore(content, self.config, self.parallel.localise)
        self.corpus.require_tokenizer(content["tokenizer"], f"the model in {path}")
        self.say(f"resuming from {path} at step {self.state.step}")
        # Of a run whose final checkpoint is there, only the summary can be missing; else nothing is to do.
        of_end = checkpoint.is_final(path) and path.parent == self.folder
        left = self.state.step < self.config.iterations or self.state.interval.steps
        if not left and not (of_end and self.state.step == self.config.iterations):
            raise UsageError(
                f"{path} has {self.state.step} steps already, and --iterations {self.config.iterations} "
                "asks for no more; ask for more, or give another --exp_name"
            )
        changed = extension(self.args, content)
        if changed.sentence and self.state.step < self.config.iterations:
            if of_end and self.processes.is_main:
                checkpoint.keep_final(path, self.state.step)
            self.say(changed.sentence.format(rate=self.state.schedule.get_last_lr()[0]))

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
        if self.processes.size > 1:
            rows = self.share.rows
            self.say(
                f"{self.processes.size} processes ({self.parallel.name}); each takes {self.share.acc_steps} "
                f"micro-batches of {rows.stop - rows.start} sequences a step"
            )
        self.say(f"run folder: {self.folder}")

    def _forward(self) -> torch.nn.Module:
        model = self.model
        if self.args.compile and not model.config.variant.stops_early:  # as a note at the start has said
            model = compiled(model, self.precision.device)
        return self.parallel.forward_of(model)

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

    def _batches(self) -> Iterator[MicroBatch]:
        config, share = self.config, self.share
        windows = self.corpus.windows("train", config.sequence_length, self.args.vocab_size)
        source = Batches(windows, config.batch_size, config.acc_steps, config.data_seed)
        pin = self.precision.device.type == "cuda"

        def make(key: tuple[int, int]) -> MicroBatch:
            inputs, targets = source.get(*key, share.rows)
            weight = 1.0
            if self._parts_rows and (targets == NOT_DUE).any():
                _, whole = source.get(*key)
                parts = len(whole) / len(targets)
                weight = parts * ((targets != NOT_DUE).sum() / (whole != NOT_DUE).sum()).item()
            if pin:
                inputs, targets = inputs.pin_memory(), targets.pin_memory()
            return MicroBatch(inputs, targets, weight)

        return prefetch(
            make,
            (
                (step, share.first + number)
                for step in range(self.state.step, config.iterations)
                for number in range(share.acc_steps)
            ),
        )

    def _evaluate(self, step: int, stop: Stop) -> dict[str, Any] | None:
        """24 batches while training goes on, the whole validation set at the end; and a text sample."""
        config = self.config
        windows = self.corpus.windows("val", config.sequence_length, self.args.vocab_size)
        if step == config.iterations:
            batches = contiguous_batches(windows, config.batch_size)
        else:
            seed = derive_seed(config.data_seed, "validation")
            batches = validation_subset(windows, config.batch_size, EVAL_BATCHES, seed)
        found = evaluate(self.model, batches, self.precision, self.processes, stop.asked)
        if found is None:
            return None
        result = evaluation_line(found)
        # A network that lies in several processes is run by all of them.
        if self.tokenizer is not None and (self.processes.is_main or self.parallel.sharded):
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

    def _saver(self, progress: Progress) -> Saver:
        staging = self.args.checkpoint_staging_dir
        return Saver(
            self.folder,
            sharded=self.parallel.sharded,
            group=self.processes.saving_group if self.parallel.sharded else None,
            staging=None if staging is None else Path(staging),
            keep_last=self.args.keep_last,
            keep_every=self.args.keep_every,
            on_cuda=self.precision.device.type == "cuda",
            say=progress.say,
        )

    def _content(self) -> dict[str, Any]:
        return self.state.to_checkpoint() | {
            "args": vars(self.args),
            "tokenizer": self.corpus.meta["tokenizer"],
            "versions": versions(),
        }

    @staticmethod
    def _try(write: Callable[[], None], progress: Progress) -> None:
        """A line that cannot be written now is written with the next one."""
        try:
            write()
        except Failure as error:
            progress.say(f"warning: {error}; training goes on, and tries again")

    def _unfinished(self, stop: Stop) -> str:
        why = stop.reason or f"--max_steps_this_run {self.args.max_steps_this_run}"
        return (
            f"stopping ({why}) behind step {self.state.step} of {self.config.iterations}; the same command "
            "goes on from there"
        )


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
