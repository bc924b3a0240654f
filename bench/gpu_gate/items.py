"""The items of the gate, in their order: what they check, and how long each may take. No torch here."""

from typing import NamedTuple


class Item(NamedTuple):
    """function: `module:function`, the module in this package; it takes the plan and `arguments`, and yields
    rows.

    limit_s: several times what it should take on an H100; then its process is killed.
    """

    name: str
    about: str
    function: str
    limit_s: float
    arguments: tuple[str, ...] = ()


_LN, _ADM = ("ln_cotformer",), ("adm",)

# What finds most comes first, so that a gate that is cut off has done that.
ITEMS = (
    Item("machine", "card, versions, settings; rates of products and copies", "kernels:machine", 60),
    Item(
        "formats",
        "5 steps of each model: CPU against GPU; float32, bfloat16, float16",
        "numerics:formats",
        90,
    ),
    Item("kernels", "the kernels of attention in each model, none of cuDNN's", "kernels:kernels", 60),
    Item("waits", "no micro-batch lets the host wait for the GPU", "kernels:waits", 40),
    Item("stable", "micro-batches of adm take the same time whatever its capacities", "kernels:stable", 40),
    Item("paper", "the paper's size, LN-CoTFormer: plain, ours, each option", "speed:paper", 200, _LN),
    Item("paper-adm", "the paper's size, ADM: plain, ours", "speed:paper", 90, _ADM),
    Item("largest", "the paper's size, the largest micro-batch up to 64", "speed:largest_batch", 90),
    Item("repeats", "the same steps twice, and saved, killed, resumed: equal bits?", "numerics:repeats", 60),
    Item("checkpoint", "GPU -> CPU -> GPU, and a save while training goes on", "numerics:checkpoint", 40),
    Item("parallel", "DDP and FSDP in a world of one; their checkpoints", "ranks:world_of_one", 60),
    Item("generation", "cached and not, even and uneven prompts, CPU against GPU", "texts:generation", 60),
    Item("decoding", "tokens/s at the paper's size, with the cache and by CUDA graphs", "texts:decoding", 60),
    Item("attention", "the forms of attention against plain", "options:attention", 100),
    Item("rotary", "the rotary kernel against its plain form", "options:rotary", 40),
    Item("loss", "the loss kernel against PyTorch's operations", "options:loss", 40),
    Item("compile", "--compile block and step: losses, graphs, seconds", "options:compiled", 90, _LN),
    Item("compile-adm", "the same with adm, 10 draws of capacities", "options:compiled", 90, _ADM),
    Item("cuda-graphs", "--cuda_graphs: the same losses", "options:cuda_graphs", 40),
    Item("tests", "pytest -m cuda", "tests:cuda_tests", 120),
    Item("several", "several GPUs: DDP, FSDP; a rank that hangs, is killed, fails", "ranks:several", 150),
)
