"""The small policies and tasks of the PPO tests."""

from __future__ import annotations

from tests.ppo.conftest import copy_task, make_policy, one_thread, tokenizer

__all__ = ["copy_task", "make_policy", "one_thread", "tokenizer"]
