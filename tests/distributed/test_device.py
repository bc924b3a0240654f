"""What a process runs on."""

import pytest
import torch

from distributed import choose_device, choose_precision
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
