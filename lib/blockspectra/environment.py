"""What numbers are computed with: commit, packages, device, precision, memory."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import torch


def environment(device: str = "cuda") -> dict:
    """Describe what numbers are computed with: commit, packages, device, precision, memory.

    The device is the GPU, where there is one and ``device`` is not "cpu".
    """
    packages = ("torch", "numpy", "scipy", "pandas", "matplotlib", "seaborn", "papermill")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    gpu = torch.cuda.get_device_name() if "cuda" in device and torch.cuda.is_available() else None
    return {
        **_commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": versions,
        "device": gpu or f"CPU, {torch.get_num_threads()} threads",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "peak_memory_MiB": round(peak_memory() / 2**20),
    }


def _commit() -> dict:
    """Commit and dirtiness of the repository, or None where git or the repository is missing."""
    try:
        run = ["git", "-C", str(Path(__file__).parent)]
        head, status = (
            subprocess.run(
                [*run, *arguments], capture_output=True, text=True, check=True, timeout=30
            ).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
        return {"commit": head, "dirty": bool(status)}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def peak_memory() -> int:
    """Return the most bytes that this process, or the largest of its children, has held."""
    try:
        import resource
    except ImportError:  # Windows, which keeps the peak itself
        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024
    every = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return unit * max(resource.getrusage(who).ru_maxrss for who in every)
