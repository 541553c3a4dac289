"""What the processes of these tests have in their environment before verl is imported."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
ENVIRONMENT = {
    "VERL_USE_EXTERNAL_MODULES": "on_cpu",
    "VERL_PLATFORM": "cpu",
    "VERL_ENGINE_VENDOR": "adaptive_warmup",
    "PYTHONPATH": str(HERE),
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_prestart_worker_first_driver": "0",  # no process for each CPU that verl reserves
    "RAY_DEDUP_LOGS": "0",
    "RAY_raylet_start_wait_time_s": "300",  # a busy machine is slow to start
    "RAY_USAGE_STATS_ENABLED": "0",
}
