"""A script on several processes that form one `torch.distributed` group over the loopback.

The launcher of torch asks the machine for its name and an address to go with it. A bare machine may have
neither, so the tests set what the launcher would set.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_processes(script: str, folder: Path, *args: object, count: int = 2, timeout: float = 900) -> None:
    """Run `script` with `args` as ranks 0 .. count - 1. Raises AssertionError with the error output of all ranks."""
    path = folder / "process.py"
    path.write_text(script)
    port = _free_port()
    logs = [folder / f"rank{rank}.log" for rank in range(count)]
    command = [sys.executable, str(path), *map(str, args)]
    running = [
        subprocess.Popen(command, env=_environment(rank, count, port), stdout=log.open("w"), stderr=subprocess.STDOUT)
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    assert not any(codes), "\n".join(f"rank {rank}: {log.read_text()[-3000:]}" for rank, log in enumerate(logs))


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    fixed = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **fixed, **{key: str(value) for key, value in group.items()}}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
