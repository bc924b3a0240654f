"""A training run from its flags to its summary: what main.py calls."""

import contextlib
import dataclasses
import logging
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import models
from config import experiment_dir
from config.training import TrainConfig
from data import open_corpus_from_args
from data.token_files import vocabulary_note
from distributed import Processes, choose_compile, choose_device, choose_precision
from distributed.parallel import RankSlice, choose_parallel
from distributed.processes import Stop
from errors import Failure, UsageError
from files import removed_if_empty
from optim import checkpoint
from optim.estimate import describe
from optim.lock import RunLock
from optim.metrics import MetricsFile, WandbLog, versions, write_summary
from optim.progress import Progress
from optim.resume import Extension, extension, find_start, has_finished
from optim.saver import Saver
from optim.state import TrainState
from optim.train import load_micro_batches, run_micro_batch, seed_torch, train
from optim.validation import Validation

logger = logging.getLogger(__name__)


def run_training(args: Namespace) -> int:
    """Train the model that the flags describe, or resume its training.

    Returns the exit code: 0, or --exit_code_unfinished for a run that was stopped before its last iteration.
    Raises UsageError or Failure; checkpoints stay intact.
    """
    began = time.monotonic()
    on_cuda = args.device != "cpu" and args.distributed_backend != "gloo"
    processes = Processes(on_cuda, timeout_minutes=args.distributed_timeout)
    with processes.exit_together():
        device = choose_device(args.device, args.deterministic, args.tf32)
        folder = experiment_dir(args)
        covered = processes.is_main and has_finished(args, folder)
        if processes.broadcast(covered):
            summary = folder / "summary.json"
            logger.info(f"finished already: {summary} covers {args.iterations} iterations; nothing to do")
            return 0
        describe(args, folder, choose_precision(args.dtype, device), processes)
        if args.dry_run:
            return 0
        stop = Stop(processes, args.max_time, began, args.max_steps_this_run)
        with removed_if_empty(folder), contextlib.ExitStack() as on_exit:
            lock = RunLock(folder, stop.fail) if processes.is_main else None
            if lock is not None:
                on_exit.callback(lock.release)
            processes.barrier()
            run = Run(args, folder, processes, device)
            with stop:
                try:
                    finished = run.train(stop, lock)
                except KeyboardInterrupt:
                    raise KeyboardInterrupt(checkpoint.where_to_resume(folder)) from None
            if finished and lock is not None:
                lock.require()
                run.finish()
            processes.barrier()  # no rank exits before the summary is written
    return 0 if finished else args.exit_code_unfinished


class Run:
    """A run's corpus, model and training state; fresh, or resumed from a checkpoint."""

    def __init__(self, args: Namespace, folder: Path, processes: Processes, device: torch.device) -> None:
        self.args, self.folder, self.processes = args, folder, processes
        self.config = TrainConfig.from_args(args)
        self.rank_slice = RankSlice.of(args.batch_size, args.acc_steps, processes.rank, processes.size)
        self.parallel = choose_parallel(
            args.distributed_backend, processes, device, opt=args.opt, dtype=args.dtype
        )
        if self._splits_micro_batches and args.act_loss_reduction == "sum":
            raise UsageError(
                "--act_loss_reduction sum adds up over a micro-batch, which these processes would split: "
                f"make --acc_steps a multiple of {processes.size}"
            )
        self.precision = choose_precision(args.dtype, device)
        if processes.is_main:
            self.corpus = open_corpus_from_args(args, args.sequence_length)
        processes.barrier()  # rank 0 has prepared the token files
        if not processes.is_main:
            self.corpus = open_corpus_from_args(args, args.sequence_length)
        seed_torch(args.seed, "initialisation")
        self.model = models.make_model_from_args(args).to(device)
        self.micro_batch: Callable[..., Tensor] = run_micro_batch
        if args.cuda_graphs:
            from optim.graphed import GraphedMicroBatch

            self.micro_batch = GraphedMicroBatch(run_micro_batch, self.model, device, processes.size)
        start = self._find_start()
        extended = None if start is None else extension(args, start[1])
        if extended is not None:
            self.config = dataclasses.replace(self.config, scheduled=extended.schedule_iterations)
        self.model = self.parallel.wrap(self.model)
        self.state = TrainState.fresh(self.model, self.config, self.precision.gradient_scaler())
        if start is not None and extended is not None:
            self._resume(*start, extended)
        self._describe()
        self.validation = Validation(args, self.config, self.corpus, self.precision, self.parallel)

    def train(self, stop: Stop, lock: RunLock | None) -> bool:
        """Train to the last iteration, evaluate on the full validation set, save ckpt.pt.

        lock: the main rank's, which must still hold the folder before each write.

        Returns False if `stop` was requested before; the state has been saved then.
        """
        state, config, main = self.state, self.config, self.processes.is_main
        if state.step == config.iterations and not state.interval.steps:
            return True  # the run was killed after its final checkpoint, before its summary
        stop.first_step = state.step
        if main:
            checkpoint.remove_leftovers(self.folder)
        metrics_file = MetricsFile(self.folder, state.step) if main else None
        progress = Progress(config.iterations, state.step, main)
        wandb = WandbLog(self.args, self.folder) if main else None
        saver = self._saver()
        self.processes.exit_only_after(saver.busy)
        windows = self.corpus.windows("train", config.sequence_length, self.args.vocab_size)
        saved_step = -1

        def log(metrics: dict[str, Any]) -> None:
            if lock is not None:
                lock.require()
                self._try(lambda: metrics_file.append(metrics))
                wandb.log(metrics)
                progress.log(metrics)

        def save(final: bool = False) -> None:
            nonlocal saved_step
            synced = True
            if lock is not None:
                lock.require()
            if main and final:
                metrics_file.sync()
            elif main:
                synced = self._try(metrics_file.sync)
            if self.processes.max(not synced):
                return  # a checkpoint must not be ahead of metrics.jsonl
            if main or self.parallel.sharded:
                saver.save(self._content(), state.step, final)
            self.processes.barrier()
            saved_step = state.step

        mode, _ = choose_compile(self.args.compile, self.precision.device, config.micro_batches)
        if mode != "none":
            from optim.compiling import compile_training

            compile_training(self.model, mode, self.precision, required=self.args.compile != "auto")
        try:
            finished = train(
                state,
                self.parallel.training_forward(self.model),
                load_micro_batches(windows, config, self.rank_slice, state.step, self.precision.device),
                config,
                self.precision,
                self.parallel,
                evaluate=lambda step: self.validation(self.model, step, stop.requested),
                log=log,
                save=save,
                stop=stop.requested,
                progress=progress,
                micro_batch=self.micro_batch,
            )
            if not finished:
                logger.info(
                    f"stopping ({stop.reason}) after step {state.step} of {config.iterations}; "
                    "the same command resumes from there"
                )
            if finished or saved_step != state.step:
                save(final=finished)
            if saved_step != state.step:
                raise Failure(f"step {state.step} could not be saved; the warnings above give the reasons")
            saver.wait(must=True)
        except Failure:
            if not self.parallel.sharded:
                saver.wait()  # complete the checkpoint under way before other ranks learn of the failure
            raise
        finally:
            saver.close()
            progress.close()
            if wandb is not None:
                wandb.close()
        return finished

    def finish(self) -> None:
        """Write summary.json from the lines of metrics.jsonl, and tidy up the folder."""
        write_summary(self.folder, self.args, {
            "iterations": self.config.iterations,
            "parameters": self.model.parameter_count(),
            "tokenizer": self.corpus.meta["tokenizer"],
            "training_seconds": round(self.state.seconds, 3),
            "processes": self.processes.size,
            "device": str(self.precision.device),
            "arithmetic": self.precision.reason,
        })  # fmt: skip
        checkpoint.remove_leftovers(self.folder)  # of failed saves
        if self.args.remove_intermediary_checkpoints_at_end:
            checkpoint.remove_intermediary(self.folder)
        final = checkpoint.in_folder(self.folder)[0]
        logger.info(f"finished: {final}, with summary.json and metrics.jsonl next to it")

    def _find_start(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint to resume from and its content; rank 0 chooses it for all."""
        start = find_start(self.args, self.folder) if self.processes.is_main else None
        self.processes.barrier()  # reading may take long
        path = self.processes.broadcast(None if start is None else start[0])
        if path is None:
            return None
        content = start[1] if start is not None else checkpoint.load(path)
        self.processes.barrier()  # all have read it: rank 0 may rename it now
        return path, content

    def _resume(self, path: Path, content: dict[str, Any], extended: Extension) -> None:
        state, iterations = self.state, self.config.iterations
        state.restore(content, self.config, self.parallel.shard_like)
        self.corpus.require_tokenizer(content["tokenizer"], f"the model in {path}")
        if self.corpus.checksum and content.get("data", "") not in ("", self.corpus.checksum):
            logger.warning(f"{self.corpus.folder} holds other training tokens than {path} was trained on")
        logger.info(f"resuming from {path} at step {state.step}")
        own_final = checkpoint.is_final(path) and path.parent == self.folder
        # Of this run's final checkpoint, the summary alone may be missing.
        has_all_steps = state.step >= iterations and not state.interval.steps
        if has_all_steps and not (own_final and state.step == iterations):
            raise UsageError(
                f"{path} has {state.step} steps already, and --iterations {iterations} asks for no more; "
                "ask for more, or give another --exp_name"
            )
        if self.processes.is_main and self.args.use_pretrained != "auto" and path.parent == self.folder:
            checkpoint.set_aside(path, state.step)
        if extended.sentence and state.step < iterations:
            if own_final and self.processes.is_main and path.exists():
                checkpoint.rename_final(path, state.step)
            logger.log(extended.level, extended.sentence.format(rate=state.schedule.get_last_lr()[0]))

    def _describe(self) -> None:
        if vocabulary := vocabulary_note(self.corpus.meta, self.args.vocab_size):
            logger.info(vocabulary)
        if self.processes.size > 1:
            part = self.rank_slice
            logger.info(
                f"{self.processes.size} processes ({self.parallel.name}); each computes {part.acc_steps} "
                f"micro-batches of {part.rows.stop - part.rows.start} sequences per step"
            )
            if self.args.dropout and self._splits_micro_batches:
                logger.info(
                    "note: processes that split a micro-batch draw their own dropout masks: losses differ "
                    "from those of one process as those of two seeds do; with --acc_steps a multiple of "
                    f"{self.processes.size} they would be the same"
                )

    @property
    def _splits_micro_batches(self) -> bool:
        return self.rank_slice.rows != slice(0, self.args.batch_size)

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
            "data": self.corpus.checksum,
            "versions": versions(),
        }

    @staticmethod
    def _try(write: Callable[[], None]) -> bool:
        """Whether the write succeeded; if not, its lines are written with the next ones."""
        try:
            write()
        except Failure as error:
            logger.warning(f"{error}; training continues, and tries again")
            return False
        return True
