"""What a measured number depends on."""

import os
import platform
from pathlib import Path

import torch

from mast_ext import ops


def environment() -> dict[str, object]:
    """Processor, GPU and versions, by name."""
    gpu = torch.cuda.is_available()
    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "driver": getattr(torch._C, "_cuda_getDriverVersion", lambda: None)() if gpu else None,
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, on the CPU {torch.backends.cpu.get_cpu_capability()}",
        "mast_ext": ops.build_info(),
    }


def cpu_name() -> str:
    """The processor's model, and how many of its cores are ours."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{model}, {os.cpu_count()} cores"
