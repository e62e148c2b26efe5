"""How much memory a rank holds, as metrics. Nothing is waited for: the kernel and torch's allocator keep these numbers anyway."""

from pathlib import Path

from comd_trainer import metrics

STATUS = Path("/proc/self/status")
_HELD = {"VmRSS": metrics.HOST_MEMORY, "VmHWM": metrics.HOST_MEMORY_PEAK}


def measure_memory(device: str) -> None:
    """Of this process, and of its `device` (`cuda:N`, `cpu`). Without /proc, as on a Mac, the host's part is left out."""
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            name, _, amount = line.partition(":")
            if name in _HELD:
                metrics.put(_HELD[name], float(amount.split()[0]) * 1024)  # which the kernel calls kB
    if device.startswith("cuda"):
        import torch

        metrics.put(metrics.DEVICE_MEMORY, torch.cuda.memory_allocated(device))
        metrics.put(metrics.DEVICE_MEMORY_PEAK, torch.cuda.max_memory_allocated(device))
        metrics.put(metrics.DEVICE_MEMORY_SIZE, torch.cuda.get_device_properties(device).total_memory)
