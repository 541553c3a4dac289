"""The decision log of a real PPO run: small, and the same decisions bit for bit, through a resumption too."""

from __future__ import annotations

import copy

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.history import DecisionLog, read, replay
from adaptive_warmup.ppo import PPO, PPOConfig

STEPS, SAVED, LOST = 30, 12, 4


def test_a_real_run_with_all_its_signals(tmp_path, make_policy, tokenizer, tool_task) -> None:
    """A peak far too high, so that the lr is held and alarms ring; killed, and resumed from its checkpoint."""
    path = tmp_path / "run.jsonl"
    settings = {"batch_size": 16, "mini_batches": 2, "max_response_tokens": 12, "kl_coef": 0.05, "learning_rate": 0.1}

    def ppo() -> PPO:
        policy, log = make_policy(), DecisionLog(path, task="tool", seed=0)

        def warmup(optimizer):
            return AdaptiveWarmup(optimizer, warmup_steps=[10, 3], law=["feedback", "linear"], log=log)

        return PPO(PPOConfig(**settings), policy, copy.deepcopy(policy), tool_task, tokenizer, scheduler=warmup)

    killed = ppo()
    for step in range(SAVED + LOST):
        if step == SAVED:
            checkpoint = copy.deepcopy(killed.state_dict())
        killed.step()
    resumed = ppo()
    resumed.load_state_dict(checkpoint)
    metrics = [resumed.step() for _ in range(SAVED, STEPS)]

    run = read(path)
    assert [step["step"] for step in run.steps] == list(range(STEPS))
    assert run.signal("task_reward")[SAVED:] == [one["objective/scores"] for one in metrics]
    assert max(len(step["signals"]) for step in run.steps) == 9  # all that the loop knows
    decided = [(step["next"], step["phase"], step["reasons"]) for step in run.steps]
    assert [(d.factor, d.phase, list(d.reasons)) for d in replay(run)] == decided
    lines = [line for line in path.read_text().splitlines(keepends=True) if "adaptive_warmup" not in line]
    assert len(lines) == STEPS + LOST
    assert sum(map(len, lines)) / len(lines) <= 400
    assert "superseded" in str(run.problem)
