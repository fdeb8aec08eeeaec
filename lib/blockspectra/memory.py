"""How much memory there is, and how much is in use."""

import ctypes
import re
from contextlib import suppress
from pathlib import Path

import psutil
import torch

UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
PLANNED = 0.8  # share of what is left that is planned with: allocators keep some of what is freed


def in_bytes(memory: str | int) -> int:
    """Turn an amount such as ``"4GiB"`` into bytes."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMG]i?B)?\s*", str(memory))
    try:
        return int(float(found[1]) * UNITS[found[2] or ""])
    except (TypeError, ValueError):
        raise ValueError(f"memory={memory!r} is no amount: write it like '4GiB'.") from None


def readable(size: float) -> str:
    """Write a number of bytes as people read it."""
    unit = "GiB" if size >= UNITS["GiB"] else "MiB"
    return f"{size / UNITS[unit]:.1f} {unit}"


def in_use(device: torch.device) -> int:
    """Bytes that this process holds now: resident on a CPU, of living tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def available(memory: str | int | None, device: torch.device) -> int:
    """Bytes to plan with, four fifths of what is left; negative where too much is in use already.

    ``memory`` is what the whole process may use (on a GPU: its tensors there). None: all that is
    free.
    """
    left = free(device) if memory is None else in_bytes(memory) - in_use(device)
    return int(PLANNED * left)


def free(device: torch.device) -> int:
    """Bytes that this process could still get: of the machine, and of its container or job."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    left = [max(0, most - used) for most, used in groups()]
    return min([psutil.virtual_memory().available, *left])


def groups(
    mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[tuple[int, int]]:
    """Limit and use, in bytes, of each control group with a limit that this process is in.

    Beyond a limit, which containers and job schedulers set, the kernel kills. (Linux, version 2.)
    """
    found = []
    lines = own.read_text().splitlines() if own.exists() else []
    for group in (Path(line[3:]).relative_to("/") for line in lines if line.startswith("0::")):
        for folder in (mount / part for part in (group, *group.parents)):
            limit = folder / "memory.max"
            if limit.exists() and (most := limit.read_text().strip()) != "max":
                stat = dict(x.split() for x in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / "memory.current").read_text()) - int(stat["inactive_file"])
                found.append((int(most), used))
    return found


def give_back() -> None:
    """Return freed memory to the system, which glibc else keeps where it lies between other memory.

    Without, what the checks took in float64 counts in the process's peak: measured, budgets of some
    hundred MiB were exceeded by a few per cent.
    """
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
