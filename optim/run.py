"""A training run from its flags to its summary: what main.py calls."""

import dataclasses
import logging
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import models
from config import experiment_dir, notes
from config.training import TrainConfig
from data import open_corpus_from_args
from data.token_files import vocabulary_note
from distributed import Processes, choose_device, choose_precision
from distributed.parallel import RankSlice, choose_parallel
from errors import Failure, UsageError
from optim import checkpoint, run_folder
from optim.compiling import compile_training
from optim.evaluating import Evaluator
from optim.feeding import training_batches
from optim.lock import RunLock
from optim.metrics import MetricsFile
from optim.progress import Progress
from optim.randomness import seed_torch
from optim.resume import Extension, extension, find_start
from optim.saver import Saver
from optim.state import TrainState
from optim.stop import Stop
from optim.summary import versions, write_summary
from optim.train import train
from optim.wandb_log import WandbLog

logger = logging.getLogger(__name__)


def run_training(args: Namespace) -> int:
    """Train what the flags describe, or go on with it; returns the exit code.

    That is 0, or --exit_code_unfinished for a run that was stopped with steps left. Raises UsageError for
    what cannot be done and Failure for what went wrong; checkpoints stay intact.
    """
    began = time.monotonic()
    on_cuda = args.device != "cpu" and args.distributed_backend != "gloo"
    processes = Processes(on_cuda, timeout_minutes=args.distributed_timeout)
    with processes.exit_together():
        device = choose_device(args.device)
        folder = experiment_dir(args)
        if processes.broadcast(processes.is_main and run_folder.covered_by_summary(folder, args.iterations)):
            what = f"{folder / 'summary.json'} covers {args.iterations} iterations"
            logger.info(f"finished already: {what}; nothing to do")
            return 0
        lock = RunLock(folder) if processes.is_main else None
        processes.barrier()
        try:
            run = Run(args, folder, processes, device)
            with Stop(processes, args.max_time, began) as stop:
                try:
                    finished = run.train(stop)
                except KeyboardInterrupt:
                    raise KeyboardInterrupt(_kept(folder)) from None
            if finished and processes.is_main:
                run.finish()
            processes.barrier()  # nobody leaves before the summary is there
        finally:
            if lock is not None:
                lock.release()
    return 0 if finished else args.exit_code_unfinished


def _kept(folder: Path) -> str:
    saved = run_folder.in_folder(folder)
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
    ) -> None:
        self.args, self.folder, self.processes = args, folder, processes
        self.config = TrainConfig.from_args(args)
        self.rank_slice = RankSlice.of(args.batch_size, args.acc_steps, processes.rank, processes.size)
        self.parallel = choose_parallel(
            args.distributed_backend,
            processes,
            device,
            self.rank_slice.acc_steps,
            opt=args.opt,
            dtype=args.dtype,
        )
        if self.rank_slice.rows != slice(0, args.batch_size) and args.act_loss_reduction == "sum":
            raise UsageError(
                "--act_loss_reduction sum adds up over a micro-batch, and these processes would part one: "
                f"make --acc_steps a multiple of {processes.size}"
            )
        self.precision = choose_precision(args.dtype, device)
        if processes.is_main:
            self.corpus = open_corpus_from_args(args, args.sequence_length)
        processes.barrier()  # by now its token files are there
        if not processes.is_main:
            self.corpus = open_corpus_from_args(args, args.sequence_length)
        seed_torch(args.seed, "initialisation")
        self.model = models.make_model_from_args(args).to(device)
        start = self._find_start()
        if start is not None:
            extended = extension(args, start[1])
            self.config = dataclasses.replace(self.config, scheduled=extended.schedule_iterations)
        self.model = self.parallel.wrap(self.model)
        self.state = TrainState.fresh(self.model, self.config, self.precision.gradient_scaler())
        if start is not None:
            self._restore(*start, extended)
        self._describe()
        self.evaluator = Evaluator(args, self.config, self.corpus, self.precision, self.parallel)

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
        saver = self._saver()
        self.processes.exit_only_after(saver.busy)
        windows = self.corpus.windows("train", self.config.sequence_length, self.args.vocab_size)
        saved = -1

        def log(line: dict[str, Any]) -> None:
            if main:
                self._try(lambda: metrics.append(line))
                wandb.log(line)
                progress.metrics(line)

        def save(final: bool = False) -> None:
            nonlocal saved
            logged = True
            if main and final:
                metrics.sync()
            elif main:
                logged = self._try(metrics.sync)
            if self.processes.max(not logged):
                return  # a checkpoint would claim that its steps are logged
            if main or self.parallel.sharded:
                saver.save(self._content(), self.state.step, final)
            self.processes.barrier()
            saved = self.state.step

        try:
            finished = train(
                self.state,
                self._forward(),
                training_batches(
                    windows, self.config, self.rank_slice, self.state.step, self.precision.device
                ),
                self.config,
                self.precision,
                self.parallel,
                evaluate=lambda step: self.evaluator(self.model, step, stop.asked),
                log=log,
                save=save,
                stop=lambda: self.state.step == last < self.config.iterations or stop.asked(),
                progress=progress,
            )
            if not finished:
                logger.info(self._unfinished(stop))
            if finished or saved != self.state.step:
                save(final=finished)
            if saved != self.state.step:
                raise Failure(f"step {self.state.step} could not be saved, as the warnings above say")
            saver.wait(must=True)
        except Failure:
            if not self.parallel.sharded:
                saver.wait()  # what was begun is whole before anybody is told of the end
            raise
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
        checkpoint.remove_leftovers(self.folder)  # of saves that failed
        if self.args.remove_intermediary_checkpoints_at_end:
            checkpoint.remove_intermediary(self.folder)
        final = run_folder.in_folder(self.folder)[0]
        logger.info(f"finished: {final}, summary.json and metrics.jsonl beside it")

    def _find_start(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint to go on from, the same one for all processes: the first one chooses it."""
        start = find_start(self.args, self.folder) if self.processes.is_main else None
        self.processes.barrier()  # it may have read for long
        path = self.processes.broadcast(None if start is None else start[0])
        if path is None:
            return None
        content = start[1] if start is not None else checkpoint.load(path)
        self.processes.barrier()  # they have read it: the first may rename it now
        return path, content

    def _restore(self, path: Path, content: dict[str, Any], extended: Extension) -> None:
        self.state.restore(content, self.config, self.parallel.shard_like)
        self.corpus.require_tokenizer(content["tokenizer"], f"the model in {path}")
        logger.info(f"resuming from {path} at step {self.state.step}")
        # Of a run whose final checkpoint is there, only the summary can be missing; else nothing is to do.
        of_end = run_folder.is_final(path) and path.parent == self.folder
        left = self.state.step < self.config.iterations or self.state.interval.steps
        if not left and not (of_end and self.state.step == self.config.iterations):
            raise UsageError(
                f"{path} has {self.state.step} steps already, and --iterations {self.config.iterations} "
                "asks for no more; ask for more, or give another --exp_name"
            )
        if self.processes.is_main and self.args.use_pretrained != "auto" and path.parent == self.folder:
            checkpoint.set_aside(path, self.state.step)
        if extended.sentence and self.state.step < self.config.iterations:
            if of_end and self.processes.is_main and path.exists():
                checkpoint.keep_final(path, self.state.step)
            logger.log(extended.level, extended.sentence.format(rate=self.state.schedule.get_last_lr()[0]))

    def _describe(self) -> None:
        of_vocabulary = vocabulary_note(self.corpus.meta, self.args.vocab_size)
        for note in [*notes(self.args), *([of_vocabulary] if of_vocabulary else [])]:
            logger.info(note)
        device = self.precision.device
        name = (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{torch.get_num_threads()} threads"
        )
        logger.info(f"{self.args.model}: {self.model.parameter_count():,} parameters, on {device} ({name})")
        logger.info(f"{self.config.tokens_per_step:,} tokens a step, computed in {self.precision.reason}")
        if self.processes.size > 1:
            part = self.rank_slice
            logger.info(
                f"{self.processes.size} processes ({self.parallel.name}); each takes {part.acc_steps} "
                f"micro-batches of {part.rows.stop - part.rows.start} sequences a step"
            )
        logger.info(f"run folder: {self.folder}")

    def _forward(self) -> torch.nn.Module:
        if self.args.compile:
            compile_training(self.model, self.precision.device)
        return self.parallel.training_forward(self.model)

    def _saver(self) -> Saver:
        staging = self.args.checkpoint_staging_dir
        return Saver(
            self.folder,
            sharded=self.parallel.sharded,
            group=self.processes.checkpoint_group if self.parallel.sharded else None,
            staging=None if staging is None else Path(staging),
            keep_last=self.args.keep_last,
            keep_every=self.args.keep_every,
            on_cuda=self.precision.device.type == "cuda",
        )

    def _content(self) -> dict[str, Any]:
        return self.state.to_checkpoint() | {
            "args": vars(self.args),
            "tokenizer": self.corpus.meta["tokenizer"],
            "versions": versions(),
        }

    @staticmethod
    def _try(write: Callable[[], None]) -> bool:
        """Whether it worked. A line that cannot be written now is written with the next one."""
        try:
            write()
        except Failure as error:
            logger.warning(f"{error}; training goes on, and tries again")
            return False
        return True

    def _unfinished(self, stop: Stop) -> str:
        why = stop.reason or f"--max_steps_this_run {self.args.max_steps_this_run}"
        return (
            f"stopping ({why}) behind step {self.state.step} of {self.config.iterations}; the same command "
            "goes on from there"
        )
