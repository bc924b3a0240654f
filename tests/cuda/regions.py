"""Compiled regions on the imitated device: a stand-in for torch.compile that counts Inductor's kernels.

A region is traced as torch.compile traces it (AOTAutograd, Inductor's graph passes, its partition into
forward and backward) and lowered for CUDA up to the point where Inductor's scheduler has decided which
operations become one kernel. No code is generated, so neither Triton nor a GPU is needed. Calls of the region
then return empty tensors of the right shapes, and tell the observers of these kernels with their bytes.

What differs from torch.compile: each shape is traced by itself, not once for a variable number of rows;
Dynamo does not see the function, which must therefore be free of graph breaks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch._guards import detect_fake_mode
from torch._inductor import compile_fx, config, ir, scheduler
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses import fake_tensor
from torch.fx import GraphModule
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_unflatten

from tests.cuda.imitation import CudaTensor, Operation, note

H100 = {
    "type": "cuda", "index": 0, "multi_processor_count": 132, "cc": 90, "major": 9,
    "regs_per_multiprocessor": 65536, "max_threads_per_multi_processor": 2048, "max_threads_per_block": 1024,
    "warp_size": 32,
}  # fmt: skip


class FusedKernel(NamedTuple):
    """A kernel of a compiled region."""

    name: str
    bytes: int
    flops: int


class Graphs(NamedTuple):
    """A region for inputs of one kind: its kernels, and its results without memory."""

    forward: list[FusedKernel]
    backward: list[FusedKernel]
    results: list[Any]  # tensors on "meta", or plain values
    structure: Any


class Region:
    """What `compile` makes of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self._function = function
        self._graphs: dict[Any, Graphs] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = str(structure), torch.is_grad_enabled(), torch.is_autocast_enabled("cuda"), *map(_kind, leaves)
        if key not in self._graphs:
            self._graphs[key] = _lower(self._function, leaves, structure)
        graphs = self._graphs[key]
        made = iter(_Call.apply(graphs, *tensors))
        results = [next(made) if isinstance(result, Tensor) else result for result in graphs.results]
        return tree_unflatten(results, graphs.structure)


def compile(function: Callable[..., Any], **settings: Any) -> Region:
    """In place of torch.compile. settings: of torch.compile; they change nothing here."""
    return Region(function)


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.requires_grad
    return leaf


class _Call(torch.autograd.Function):
    """A call of a region, and its backward pass: kernels are told, results are empty."""

    @staticmethod
    def forward(ctx: Any, graphs: Graphs, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.graphs, ctx.inputs = graphs, [tensor.inner for tensor in tensors]
        _tell(graphs.forward)
        return tuple(CudaTensor(result) for result in graphs.results if isinstance(result, Tensor))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        for grad in grads:
            grad.contiguous()  # a copy, perhaps: AOTAutograd's graphs for any number of rows want it
        _tell(ctx.graphs.backward)
        with _disable_current_modes():
            made = [torch.empty_like(x, device="meta") for x in ctx.inputs]
        needed = zip(made, ctx.needs_input_grad[1:], strict=True)
        return None, *(CudaTensor(grad) if needs else None for grad, needs in needed)


def _tell(kernels: Sequence[FusedKernel]) -> None:
    for kernel in kernels:
        note(Operation(kernel.name, None, (), {}, None, cost=(kernel.bytes, kernel.flops)))


def _lower(function: Callable[..., Any], leaves: Sequence[Any], structure: Any) -> Graphs:
    """Trace a function of these inputs, forward and backward, and lower it."""
    kernels: dict[str, list[FusedKernel]] = {"forward": [], "backward": []}
    found: dict[str, Any] = {}

    def flat(*tensors: Tensor) -> list[Any]:
        given = iter(tensors)
        args, kwargs = tree_unflatten(
            [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure
        )
        found["results"], found["structure"] = tree_flatten(function(*args, **kwargs))
        return found["results"]

    def compiler(part: str) -> Callable[..., Any]:
        def lower(graph: GraphModule, inputs: Sequence[Any]) -> Any:
            kernels[part] += _kernels(graph, inputs)
            return make_boxed_func(graph.forward)

        return lower

    with _disable_current_modes(), _inductor_for_cuda(), fake_tensor.FakeTensorMode():
        inputs = [
            torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="cuda").requires_grad_(
                leaf.requires_grad
            )
            for leaf in leaves
            if isinstance(leaf, Tensor)
        ]
        traced = aot_function(
            flat, compiler("forward"), compiler("backward"), compile_fx.partition_fn, select_decomp_table()
        )
        results = traced(*inputs)
        tensors = [result for result in results if isinstance(result, Tensor) and result.requires_grad]
        if tensors:
            torch.autograd.backward(tensors, [torch.empty_like(result) for result in tensors])
    with _disable_current_modes():
        empty = [
            torch.empty_strided(result.shape, result.stride(), dtype=result.dtype, device="meta")
            if isinstance(result, Tensor)
            else result
            for result in results
        ]
    return Graphs(kernels["forward"], kernels["backward"], empty, found["structure"])


def _kernels(graph: GraphModule, inputs: Sequence[Any]) -> list[FusedKernel]:
    """The kernels that Inductor launches for a graph, one after another."""
    fake_mode = detect_fake_mode(inputs)
    with V.set_fake_mode(fake_mode):
        compile_fx._recursive_post_grad_passes(graph)
        lowering = GraphLowering(graph, example_inputs=inputs, shape_env=fake_mode.shape_env)
        with V.set_graph_handler(lowering), DebugContext():
            lowering.run(*inputs)
            lowering._update_scheduler()
            return [_kernel(node) for node in lowering.scheduler.nodes if _launches(node)]


def _launches(node: scheduler.BaseSchedulerNode) -> bool:
    if isinstance(node, scheduler.NopKernelSchedulerNode):
        return False
    return not isinstance(getattr(node, "node", None), ir.MultiOutput)  # part of another's result


def _kernel(node: scheduler.BaseSchedulerNode) -> FusedKernel:
    if isinstance(node, scheduler.ExternKernelSchedulerNode):
        called = node.node.python_kernel_name or str(getattr(node.node, "op_overload", "extern"))
        name = called.rpartition("extern_kernels.")[2]
    else:
        reduces = any(part.is_reduction() for part in node.get_nodes())
        name = "fused reduction" if reduces else "fused pointwise"
    return FusedKernel(f"compiled {name}", _bytes(node), node.estimate_flops() or 0)


def _bytes(node: scheduler.BaseSchedulerNode) -> int:
    """What a kernel reads and writes. Of an extern kernel's inputs, which may be parts of larger buffers,
    only these parts count."""
    if not isinstance(node, scheduler.ExternKernelSchedulerNode):
        return node.get_read_write_buffers_sizes()
    tensors = [part for part in (*node.node.inputs, node.node) if hasattr(part, "get_numel")]
    return sum(int(tensor.get_numel()) * tensor.get_dtype().itemsize for tensor in tensors)


@contextmanager
def _inductor_for_cuda() -> Iterator[None]:
    """Inductor lowers for an H100, although neither Triton nor a GPU is there."""
    properties = {name: value for name, value in H100.items() if name in DeviceProperties._fields}
    known = SimpleNamespace(
        name="imitated", gcnArchName="", total_memory=80 * 2**30, warp_size=32, minor=0, **{
            name: H100[name]
            for name in ("major", "multi_processor_count", "max_threads_per_multi_processor")
        },
    )  # fmt: skip
    replaced = [
        (scheduler, "has_triton", lambda *args: True),
        (fake_tensor, "init_gpu_context", lambda device: None),
        (DeviceProperties, "create", lambda device: DeviceProperties(**properties)),
        (torch.cuda, "get_device_properties", lambda *args: known),
        (torch.cuda, "is_available", lambda: False),  # else patterns would be traced with real tensors
        (torch.compiler, "_is_compiling_flag", True),
    ]
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        # Off is what would measure, or compute with tensors on the device.
        off = {"shape_padding": False, "joint_graph_constant_folding": False, "compile_threads": 1}
        stack.enter_context(config.patch(off))
        stack.enter_context(functorch_config.patch(guess_tangent_strides_as_outputs=False))
        yield
