"""Free memory, from /proc and from cgroups of both versions."""

from pathlib import Path

import pytest

from hardware import free_main_memory, peak_bf16_flops


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_free_memory_of_this_machine():
    free = free_main_memory()
    assert free is None or free > 2**20


@pytest.mark.parametrize(
    ("version", "folder", "names"),
    [
        ("0::/job/step", "", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:memory:/job/step",
            "memory/",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_the_smallest_limit_of_the_cgroups_holds(tmp_path, version, folder, names):
    limit, used, cached = names
    write(tmp_path / "proc/meminfo", "MemTotal: 4000 kB\nMemFree: 1000 kB\nMemAvailable: 3000 kB\n")
    assert free_main_memory(tmp_path) == 3000 * 1024
    write(tmp_path / "proc/self/cgroup", f"1:cpu:/other\n{version}\n")
    job = tmp_path / "sys/fs/cgroup" / folder / "job"
    write(job / "step" / limit, "max\n")
    write(job / "step" / used, "5\n")
    assert free_main_memory(tmp_path) == 3000 * 1024
    write(job / limit, "1000000\n")
    write(job / used, "800000\n")
    write(job / "memory.stat", f"anon 5\n{cached} 300000\n")
    assert free_main_memory(tmp_path) == 500_000
    write(job / used, "1400000\n")
    assert free_main_memory(tmp_path) == 0


def test_a_container_sees_its_own_limit_at_the_top(tmp_path):
    write(tmp_path / "proc/self/cgroup", "0::/docker/of-the-host\n")
    write(tmp_path / "sys/fs/cgroup/memory.max", "1000\n")
    write(tmp_path / "sys/fs/cgroup/memory.current", "400\n")
    assert free_main_memory(tmp_path) == 600


def test_free_memory_is_unknown_on_other_systems(tmp_path):
    assert free_main_memory(tmp_path) is None


@pytest.mark.parametrize(
    ("card", "tflops"),
    [
        ("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA A10", 125), ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989.4), ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None), ("NVIDIA A10G", None), ("Tesla T4", None),
    ],
)  # fmt: skip
def test_peak_rates_of_cards_by_their_names(card, tflops):
    assert peak_bf16_flops(card) == (None if tflops is None else 1e12 * tflops)
