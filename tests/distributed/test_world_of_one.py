"""DDP and FSDP with one rank, over NCCL where there is a GPU: the training of a single process."""

import dataclasses

import pytest
import torch
import torch.distributed as dist

from data.batches import MicroBatch
from distributed import Processes, choose_precision
from distributed.parallel import DDP, FSDP, RankSlice, SingleProcess
from models.config import ModelConfig
from models.language_model import LanguageModel
from optim import checkpoint
from optim.compiling import compile_training
from optim.saver import Saver
from optim.state import TrainState
from optim.train import training_step
from tests.conftest import assert_same_state
from tests.optim.test_optimizers import CONFIG

SIZES = {
    "vocab_size": 64, "sequence_length": 16, "n_layer": 4, "n_layer_begin": 1, "n_layer_end": 1, "n_head": 2,
    "n_embd": 16, "n_repeat": 3, "depth_embedding": "learned",
}  # fmt: skip
GRAPHS = torch._dynamo.utils.counters
TRAINING = dataclasses.replace(CONFIG, acc_steps=2, grad_clip=1.0, iterations=20)


@pytest.fixture(autouse=True)
def world(device):
    backend = "gloo"
    if device.type == "cuda":
        backend = "cuda:nccl,cpu:gloo"
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Training:
    """The parts of a run: a model, its optimiser, and a way to train it."""

    def __init__(self, model, device, way=SingleProcess, compiled="none", **sizes):
        precision = choose_precision("torch.float32", device)
        self.parallel = SingleProcess() if way is SingleProcess else way(Processes(), device)
        torch.manual_seed(3)
        network = LanguageModel(ModelConfig(model=model, **SIZES | sizes)).to(device)
        self.model = self.parallel.wrap(network)
        self.state = TrainState.fresh(self.model, TRAINING, precision.gradient_scaler())
        if compiled != "none":
            compile_training(self.model, compiled, precision, backend="aot_eager")
        self.forward = self.parallel.training_forward(self.model).train()
        self.autocast = precision.autocast()

    def step(self):
        """Loss and norm of a step, on batches that follow from its number."""
        draws = torch.Generator().manual_seed(self.state.step)
        ids = torch.randint(0, 64, (2, 3, 17), generator=draws)
        batches = iter([MicroBatch(part[:, :-1], part[:, 1:], 48) for part in ids])
        rank_slice = RankSlice.of(3, TRAINING.acc_steps, 0, 1)
        return training_step(
            self.state, self.forward, batches, rank_slice, TRAINING, self.autocast, self.parallel,
            lambda step: False,
        )  # fmt: skip

    def full(self):
        """Its checkpoint, of unsharded tensors."""

        def full(tensors):
            return {name: self.parallel.full_tensor(part).detach().clone() for name, part in tensors.items()}

        content = self.state.to_checkpoint()
        optimizer = {index: full(slots) for index, slots in content["optimizer"].items()}
        return content | {"model": full(content["model"]), "optimizer": optimizer}


@pytest.fixture
def same(device):
    """Compares trainings: to the bit on CPUs; to rounding on GPUs, whose kernels sum in any order."""

    def compare(one, other):
        if device.type == "cpu":
            assert_same_state(one, other)
        else:
            torch.testing.assert_close(one["model"], other["model"], rtol=1e-4, atol=1e-5)
            assert one["step"] == other["step"]

    return compare


@pytest.mark.parametrize("way", [DDP, FSDP])
@pytest.mark.parametrize("model", ["base", "ln_cotformer", "adm"])
def test_trains_as_a_single_process_does(model, way, device, same):
    alone, one_rank = Training(model, device), Training(model, device, way)
    assert isinstance(one_rank.forward, torch.nn.parallel.DistributedDataParallel) == (way is DDP)
    for _ in range(2):
        assert one_rank.step() == pytest.approx(alone.step(), rel=0 if device.type == "cpu" else 1e-4)
    same(one_rank.full(), alone.full())


def test_a_checkpoint_of_shards_becomes_a_file_and_shards_again(tmp_path, device, same):
    sharded = Training("adm", device, FSDP)
    for _ in range(2):
        sharded.step()
    saver = Saver(
        tmp_path, sharded=True, group=dist.new_group(backend="gloo"), staging=None, keep_last=None,
        keep_every=None, on_cuda=device.type == "cuda",
    )  # fmt: skip
    saver.save(sharded.state.to_checkpoint(), 2)
    expected = sharded.full()
    third = sharded.step()  # while it is written
    saver.wait(must=True)
    saver.close()
    path = tmp_path / checkpoint.name_of(2, checkpoint.FOLDER)
    for way in (SingleProcess, DDP, FSDP):
        training = Training("adm", device, way)
        training.state.restore(checkpoint.load(path), TRAINING, training.parallel.shard_like)
        assert_same_state(training.full(), expected)
        path = tmp_path / checkpoint.name_of(2)
        checkpoint.write(path, training.full())
        assert training.step() == pytest.approx(third, rel=0 if device.type == "cpu" else 1e-4)
        same(training.full(), sharded.full())


def test_a_compiled_step_is_one_graph_under_ddp(device):
    """Though its blocks, at each of their uses, hold more than DDP's first bucket of 1 MiB."""
    torch._dynamo.reset()
    sizes = {"n_embd": 128, "n_layer": 3, "n_repeat": 2}
    alone, compiled = Training("but", device, **sizes), Training("but", device, DDP, "step", **sizes)
    before = GRAPHS["stats"]["unique_graphs"], GRAPHS["aot_autograd"]["total"]
    for _ in range(2):
        assert compiled.step() == pytest.approx(alone.step(), rel=1e-4)
    made = GRAPHS["stats"]["unique_graphs"], GRAPHS["aot_autograd"]["total"]
    assert [after - number for after, number in zip(made, before, strict=True)] == [1, 1]  # and not cut up


@pytest.mark.parametrize("way", [SingleProcess, DDP, FSDP])
def test_compiled_blocks_share_their_graphs(way, device):
    torch._dynamo.reset()
    before = GRAPHS["stats"]["unique_graphs"]
    sizes = {"activation_checkpointing": "block" if way is FSDP else "none"}
    alone, compiled = Training("adm", device, **sizes), Training("adm", device, way, "block", **sizes)
    for _ in range(3):
        assert compiled.step() == pytest.approx(alone.step(), rel=1e-5)
    assert GRAPHS["stats"]["unique_graphs"] - before == 4
    for one, other in zip(alone.full()["model"].values(), compiled.full()["model"].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
