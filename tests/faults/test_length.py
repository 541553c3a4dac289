"""A run of a million steps costs the same at its end as at its beginning."""

from __future__ import annotations

import json
import random
import resource
import statistics
import time

from adaptive_warmup import Config, Regulator
from tests.faults.catalogue import ALL, fault

STEPS = 1_000_000 if ALL else 20_000
BLOCK = STEPS // 20


@fault("length", "controller", "a million steps", "memory and time of a step are those of the first steps")
def test_a_million_steps() -> None:
    draw, regulator = random.Random(0), Regulator(Config(100, target_kl=0.01))
    times, sizes, memory = [], [], []
    for _ in range(20):
        began = time.process_time()
        for _ in range(BLOCK):
            factor = regulator.decision.factor
            kl = 0.01 * (factor / 0.3) ** 2 * draw.lognormvariate(0.0, 0.5)
            regulator.observe(kl=kl, task_reward=draw.random(), kl_reward=-draw.random(), grad_norm=1 + draw.random())
            regulator.decide()
        times.append(time.process_time() - began)
        sizes.append(len(json.dumps(regulator.state_dict())))
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert regulator.state.step == STEPS
    assert max(sizes) < 1.2 * sizes[0]
    assert memory[-1] - memory[1] < 4096  # KiB, on Linux
    assert statistics.median(times[15:]) < 2.0 * statistics.median(times[:5])
