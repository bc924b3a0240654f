"""What a process runs on."""

import importlib.util
import os

import pytest
import torch

import distributed.device
from distributed import choose_compile, choose_device, choose_precision
from distributed.device import ALLOCATOR_SETTINGS, COMPILING_PAYS, CUBLAS_WORKSPACES
from errors import UsageError
from hardware import cpu_multiplies_bfloat16

CPU = torch.device("cpu")


def test_auto_takes_a_gpu_where_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


def test_a_gpu_that_is_not_there_is_refused():
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with pytest.raises(UsageError, match=f"this machine has {count} GPU"):
        choose_device(f"cuda:{count}")


@pytest.fixture
def two_gpus(monkeypatch):
    """torch believes in two GPUs; its settings and the environment are as before afterwards."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name in (*ALLOCATOR_SETTINGS, "CUBLAS_WORKSPACE_CONFIG", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    products, fill = torch.get_float32_matmul_precision(), torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_float32_matmul_precision(products)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.backends.cuda.enable_cudnn_sdp(True)


def test_a_gpu_is_made_ready(two_gpus):
    torch.backends.cuda.enable_cudnn_sdp(True)
    assert choose_device("auto") == torch.device("cuda:0")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in CUBLAS_WORKSPACES
    assert torch.get_float32_matmul_precision() == "high"
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_determinism_and_tf32_can_be_switched_off(two_gpus):
    choose_device("cuda", deterministic=False, tf32=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("name", ALLOCATOR_SETTINGS)
def test_settings_of_the_allocator_in_the_environment_stay(two_gpus, monkeypatch, name):
    monkeypatch.setenv(name, "expandable_segments:False")
    choose_device("cuda")
    assert [os.environ.get(other) for other in ALLOCATOR_SETTINGS if other != name] == [None]
    assert os.environ[name] == "expandable_segments:False"


def test_an_environment_in_which_cublas_is_not_deterministic(two_gpus, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UsageError, match=r"CUBLAS_WORKSPACE_CONFIG=':0:0'.*--deterministic false"):
        choose_device("cuda")
    assert choose_device("cuda", deterministic=False).type == "cuda"


def test_more_processes_than_gpus(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UsageError, match=r"2 GPUs that torch can use for 4 processes: .*--nproc_per_node 2"):
        choose_device("auto")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == torch.device("cuda:1")


@pytest.mark.parametrize("version", [None, "13.0"])
def test_a_gpu_that_torch_cannot_use_is_no_silent_cpu(monkeypatch, tmp_path, capsys, version):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(distributed.device, "NVIDIA_DRIVER", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    reason = "is built without CUDA" if version is None else "CUDA_VISIBLE_DEVICES='' leaves torch no GPU"
    assert choose_device("auto") == CPU
    said = capsys.readouterr().out
    assert said.startswith("warning: this machine has an NVIDIA driver, but") and reason in said
    assert choose_device("cpu") == CPU
    assert not capsys.readouterr().out
    with pytest.raises(UsageError, match=f"0 GPUs that torch can use .*{reason}"):
        choose_device("cuda")


@pytest.mark.parametrize("products", ["high", "highest"])
@pytest.mark.parametrize("since_ampere", [True, False])
def test_formats_on_a_gpu(two_gpus, monkeypatch, products, since_ampere):
    """What float32 is there, and bfloat16 on an old one, is said."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: since_ampere)
    gpu = choose_device("cuda", tf32=products == "high")
    wide = choose_precision("torch.float32", gpu)
    tf32 = products == "high" and since_ampere
    assert wide.reason == ("float32 (TF32 products)" if tf32 else "float32")
    narrow = choose_precision("torch.bfloat16", gpu)
    assert narrow.dtype == torch.bfloat16
    assert narrow.reason.startswith("bfloat16") and ("emulates" in narrow.reason) != since_ampere


def test_formats_on_a_cpu():
    assert choose_precision("torch.float32", CPU).dtype == torch.float32
    chosen = choose_precision("torch.bfloat16", CPU)
    assert chosen.dtype == (torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32)
    assert ("does not multiply bfloat16" in chosen.reason) == (chosen.dtype == torch.float32)
    with pytest.raises(UsageError, match="needs a GPU"):
        choose_precision("torch.float16", CPU)


@pytest.mark.parametrize("name", ["torch.float32", "torch.bfloat16"])
def test_the_context_computes_in_the_format(name):
    precision = choose_precision(name, CPU)
    layer = torch.nn.Linear(4, 4)
    with precision.autocast():
        assert layer(torch.ones(1, 4)).dtype == precision.dtype
    assert not precision.gradient_scaler().is_enabled()


def test_what_is_compiled(monkeypatch):
    """auto: a function of the whole run, so that a resumed one computes the same."""
    gpu, enough = torch.device("cuda", 0), COMPILING_PAYS
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert choose_compile("auto", CPU, enough) == ("none", "")
    assert choose_compile("auto", gpu, enough)[0] == "block"
    mode, sentence = choose_compile("auto", gpu, enough - 1)
    assert mode == "none" and f"from {enough:,} on it pays" in sentence
    for asked in ("block", "step", "none"):
        assert choose_compile(asked, CPU, 1)[0] == asked
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    mode, sentence = choose_compile("auto", gpu, enough)
    assert mode == "none" and "triton" in sentence
