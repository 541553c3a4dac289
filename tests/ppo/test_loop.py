from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch.optim.lr_scheduler import LinearLR, LRScheduler

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.ppo import (
    METRICS,
    PPO,
    PPOConfig,
    ValueHead,
    ValueModel,
    assess,
    mini_batch_losses,
    mini_batches,
    policy_kl,
    rollout,
    rollout_metrics,
)

SMALL = {"batch_size": 16, "mini_batches": 2, "max_response_tokens": 12, "kl_coef": 0.05, "learning_rate": 1e-3}


@pytest.fixture
def make_ppo(make_policy, tokenizer, tool_task):
    def make(environment=None, kind="llama", critic=None, scheduler=None, **settings):
        policy = make_policy(kind)
        config = PPOConfig(**{**SMALL, **settings})
        return PPO(config, policy, copy.deepcopy(policy), environment or tool_task, tokenizer, critic, scheduler)

    return make


def parameters(ppo):
    return torch.cat([p.detach().flatten() for p in ppo.model.parameters()]).clone()


class Listener(LRScheduler):
    """Halves the rate at each step, and writes down what it is told."""

    per_group = False

    def __init__(self, optimizer, per_group=False):
        self.per_group, self.events, self.factor = per_group, [], 1.0
        super().__init__(optimizer)

    def check_gradient(self, grad_norm, group):
        self.events.append(("gradient", group, grad_norm))

    def observe(self, **signals):
        self.events.append(("observe", signals["group"], signals))

    def get_lr(self):
        if self.last_epoch > 0:
            self.events.append(("step",))
            self.factor /= 2
        return [base * self.factor for base in self.base_lrs]


# What a step reports


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_step_reports_every_metric_and_no_other(make_ppo, kl_in, shared):
    ppo = make_ppo(critic=ValueHead(32) if shared else None, kl_in=kl_in)
    ppo.step()
    metrics = ppo.step()
    assert metrics.keys() == METRICS.keys()
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert metrics["policy/kl"] > 0
    assert metrics["skipped_updates"] == 0
    expected = -0.05 * metrics["objective/kl"] if kl_in == "reward" else 0.0
    assert metrics["objective/non_score_reward"] == pytest.approx(expected)
    assert metrics["objective/rlhf_reward"] == pytest.approx(metrics["objective/scores"] + expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_first_update_starts_from_the_policy_that_sampled(make_ppo, kind):
    metrics = make_ppo(kind=kind, mini_batches=1).step()  # GPT-2 has dropout, which has to be off
    assert metrics["val/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-10)
    assert metrics["policy/reference_kl"] == pytest.approx(0.0, abs=1e-6)  # the reference is the first policy
    assert metrics["policy/kl"] > 1e-6  # the one update is seen by the post-update KL alone


def test_the_policy_kl_is_that_between_the_policies_before_and_after(make_ppo, make_policy, copy_task, tokenizer):
    ppo = make_ppo(environment=copy_task, batch_size=2000, mini_batches=1, max_response_tokens=1, learning_rate=1e-2)
    before = copy.deepcopy(ppo.policy)
    reported = ppo.step()["policy/kl"]
    ids = torch.tensor(tokenizer([f"{digit}=" for digit in range(10)])["input_ids"])
    old, new = (model(ids).logits[:, -1].log_softmax(-1) for model in (before, ppo.policy))
    exact = torch.nn.functional.kl_div(new, old, log_target=True, reduction="batchmean").item()
    assert reported == pytest.approx(exact, rel=0.15)  # 2000 samples of an unbiased estimator


def test_explained_variance_is_zero_where_returns_do_not_vary(make_ppo, task_of):
    task = task_of((), [])
    task.score = lambda problem, response: 1.0
    assert make_ppo(environment=task, kl_coef=0.0).step()["value/explained_variance"] == 0.0


def test_objective_kl_against_a_reference_elsewhere(make_policy, tokenizer, copy_task):
    config = PPOConfig(batch_size=64, mini_batches=1, max_response_tokens=5)
    metrics = PPO(config, make_policy(seed=0), make_policy(seed=1), copy_task, tokenizer).step()
    assert metrics["policy/reference_kl"] > 0.1
    assert metrics["objective/kl"] == pytest.approx(
        metrics["policy/reference_kl"] * metrics["response_length"], rel=1e-4
    )


def test_an_environment_that_gives_another_number_of_problems_is_told(make_ppo, copy_task):
    honest = copy_task.sample
    copy_task.sample = lambda count, seed, split="train": honest(count - 3, seed)
    with pytest.raises(ValueError, match=r"CopyTask\.sample\(16, \.\.\.\) gave 13 problems: have it give as many"):
        make_ppo(environment=copy_task).step()


# Inserted tokens


def test_what_the_policies_think_of_inserted_tokens_changes_nothing(make_policy, tokenizer, tool_task):
    policy, reference = make_policy(seed=0).eval(), make_policy(seed=1).eval()
    config = PPOConfig(**SMALL, kl_in="loss", entropy_coef=0.1)
    model = PPO(config, policy, reference, tool_task, tokenizer).model
    problems = tool_task.sample(16, 0)
    draw = torch.Generator().manual_seed(0)
    episodes = rollout(policy, tokenizer, tool_task, problems, max_response_tokens=12, generator=draw)
    mask = episodes.response_mask_BT
    inserted = ~mask & episodes.attention_mask_BS[:, -mask.shape[1] :].bool()
    assert inserted.any()

    def numbers():
        batch = assess(config, model, reference, episodes)
        loss, critic_loss, metrics = mini_batch_losses(config, model, batch)
        gradients = torch.autograd.grad(loss + critic_loss, list(policy.model.parameters()))
        return [
            loss,
            critic_loss,
            *gradients,
            *metrics.values(),
            policy_kl(config, policy, batch),
            *rollout_metrics(config, episodes.scores_B, batch).values(),
        ]

    before = numbers()

    def disturb(module, inputs, logits):
        changed = logits.clone()
        changed[:, -mask.shape[1] - 1 : -1][~mask] = 10 * torch.randn(int((~mask).sum()), logits.shape[-1])
        return changed

    hooks = [model.lm_head.register_forward_hook(disturb) for model in (policy, reference)]
    with torch.random.fork_rng():
        after = numbers()
    for hook in hooks:
        hook.remove()
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)


# Reproducing and resuming


@pytest.mark.parametrize("shared", [True, False])
def test_the_same_seed_gives_the_same_run_and_leaves_the_global_generator_alone(make_ppo, shared):
    def run(seed):
        state = torch.get_rng_state()
        ppo = make_ppo(critic=ValueHead(32) if shared else None, seed=seed)
        metrics = list(ppo.run(3, progress=False))
        assert torch.equal(state, torch.get_rng_state())
        return metrics, parameters(ppo)

    metrics, weights = run(seed=0)
    torch.manual_seed(1234)
    again, weights_again = run(seed=0)
    assert metrics == again
    assert torch.equal(weights, weights_again)
    assert run(seed=1)[0] != metrics


@pytest.mark.parametrize(
    "scheduler", [lambda o: LinearLR(o, 0.1, total_iters=10), lambda o: AdaptiveWarmup(o, warmup_steps=5)]
)
@pytest.mark.parametrize("shared", [True, False])
def test_a_resumed_run_equals_the_uninterrupted_one(make_ppo, shared, scheduler):
    def make():
        return make_ppo(critic=ValueHead(32) if shared else None, scheduler=scheduler)

    whole = make()
    metrics = list(whole.run(4, progress=False))

    first = make()
    list(first.run(2, progress=False))
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    list(first.run(1, progress=False))  # what was saved is a copy
    saved.seek(0)

    second = make()
    second.load_state_dict(torch.load(saved, weights_only=True))
    assert second.steps_done == 2
    assert list(second.run(2, progress=False)) == metrics[2:]
    assert torch.equal(parameters(whole), parameters(second))


def test_evaluation_changes_nothing_and_repeats_itself(make_ppo):
    ppo, undisturbed = make_ppo(), make_ppo()
    assert ppo.evaluate(40, seed=3) == ppo.evaluate(40, seed=3)
    assert ppo.step() == undisturbed.step()


# The optimizer and the scheduler


def test_two_groups_that_cover_everything_once(make_ppo):
    shared = make_ppo(critic=ValueHead(32), value_learning_rate=5e-3)
    policy_group, value_group = shared.optimizer.param_groups
    assert len(value_group["params"]) == 2
    assert (policy_group["lr"], value_group["lr"]) == (1e-3, 5e-3)
    separate = make_ppo()
    grouped = [p for group in separate.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in separate.model.parameters()}
    assert not any(p.requires_grad for p in separate.reference.parameters())


def test_each_epoch_updates_on_every_episode_once_in_a_new_order():
    config = PPOConfig(batch_size=16, epochs=2, mini_batches=4)
    parts = list(mini_batches(config, 16, torch.Generator().manual_seed(0)))
    assert [len(part) for part in parts] == [4] * 8
    first, second = torch.cat(parts[:4]).tolist(), torch.cat(parts[4:]).tolist()
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second != sorted(second)


def test_policy_and_value_gradients_are_clipped_each_by_itself(make_ppo):
    ppo = make_ppo(max_grad_norm=1e-3)
    metrics = ppo.step()
    for name, group in zip(("policy/grad_norm", "value/grad_norm"), ppo.optimizer.param_groups, strict=True):
        clipped = torch.cat([p.grad.flatten() for p in group["params"]]).norm().item()
        assert clipped == pytest.approx(1e-3, rel=1e-3)
        assert metrics[name] > 2e-3


def test_a_zero_rate_leaves_its_part_alone(make_ppo):
    ppo = make_ppo(learning_rate=0.0, value_learning_rate=1e-2)
    policy, critic = copy.deepcopy(ppo.policy.state_dict()), copy.deepcopy(ppo.critic.state_dict())
    metrics = ppo.step()
    assert metrics["policy/kl"] == pytest.approx(0.0, abs=1e-10)
    assert all(torch.equal(policy[name], value) for name, value in ppo.policy.state_dict().items())
    assert not torch.equal(critic["head.bias"], ppo.critic.state_dict()["head.bias"])


def test_a_torch_scheduler_steps_once_per_rl_step(make_ppo):
    ppo = make_ppo(scheduler=lambda o: LinearLR(o, 0.25, total_iters=3), epochs=2)
    metrics = list(ppo.run(5, progress=False))
    assert [m["lr"] for m in metrics] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])
    assert metrics[0]["value_lr"] == pytest.approx(0.25e-3)


@pytest.mark.parametrize("per_group", [False, True])
def test_a_listening_scheduler_is_told_before_it_steps(make_ppo, per_group):
    ppo = make_ppo(scheduler=lambda o: Listener(o, per_group))
    first, second = ppo.run(2, progress=False)
    groups = [0, 1] if per_group else [0]
    kinds = [event[:2] for event in ppo.scheduler.events[: len(ppo.scheduler.events) // 2]]
    assert kinds == [*[("gradient", g) for g in groups * 2], *[("observe", g) for g in groups], ("step",)]
    signals = next(event[2] for event in ppo.scheduler.events if event[0] == "observe")
    assert signals == {
        "kl": first["policy/kl"],
        "reference_kl": first["policy/reference_kl"],
        "task_reward": first["objective/scores"],
        "kl_reward": first["objective/non_score_reward"],
        "grad_norm": first["policy/grad_norm"],
        "loss": first["loss/policy_avg"],
        "clip_fraction": first["policy/clipfrac_avg"],
        "entropy": first["policy/entropy_avg"],
        "explained_variance": first["value/explained_variance"],
        "group": 0,
    }
    assert second["lr"] == first["lr"] / 2


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # torch: no update was made before the step
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(make_ppo, tool_task, monkeypatch):
    ppo = make_ppo(environment=tool_task, scheduler=Listener, epochs=2)
    before = parameters(ppo)
    honest = tool_task.score
    monkeypatch.setattr(tool_task, "score", lambda problem, response: math.nan)
    broken = ppo.step()
    assert broken["skipped_updates"] == 4
    assert math.isnan(broken["policy/grad_norm"])
    assert broken["policy/kl"] == pytest.approx(0.0, abs=1e-10)
    assert math.isnan(ppo.scheduler.events[0][2])  # the scheduler is shown it
    assert torch.equal(before, parameters(ppo))
    monkeypatch.setattr(tool_task, "score", honest)
    assert ppo.step()["skipped_updates"] == 0
    assert not torch.equal(before, parameters(ppo))


def test_models_that_one_trains_and_another_holds_must_be_apart(make_policy, tokenizer, copy_task):
    policy, other = make_policy(), make_policy()
    for reference, critic, says in [
        (policy, None, r"reference shares parameters with the policy.*give copy\.deepcopy\(policy\)"),
        (other, ValueModel(policy.base_model), "critic shares parameters with the policy: give a model of its own, or"),
        (other, ValueModel(other.base_model), "critic shares parameters with the reference"),
    ]:
        with pytest.raises(ValueError, match=says):
            PPO(PPOConfig(), policy, reference, copy_task, tokenizer, critic)
        assert all(parameter.requires_grad for parameter in policy.parameters())
    with pytest.raises(ValueError, match="no parameter to train"):
        PPO(PPOConfig(), make_policy().requires_grad_(False), other, copy_task, tokenizer)


def test_a_reference_or_critic_of_fewer_tokens_is_refused_and_padding_is_no_token(make_policy, tokenizer, copy_task):
    policy, small, padded = make_policy(), make_policy(), make_policy()
    small.resize_token_embeddings(len(tokenizer) - 1)
    policy.resize_token_embeddings(len(tokenizer) + 8)
    says = rf"knows {len(tokenizer) - 1} tokens, and the policy may write {len(tokenizer)}: give one with the"
    with pytest.raises(ValueError, match=f"the reference {says}"):
        PPO(PPOConfig(), policy, small, copy_task, tokenizer)
    with pytest.raises(ValueError, match=f"the critic {says}"):
        PPO(PPOConfig(), policy, padded, copy_task, tokenizer, ValueModel(small.base_model))
    PPO(PPOConfig(), policy, padded, copy_task, tokenizer)


@pytest.mark.parametrize("logit", [-200.0, -math.inf])
@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_an_inserted_token_that_the_policy_rules_out_is_in_no_gradient(make_ppo, tool_task, kl_in, logit):
    """The reference finds it e^200 times likelier: the k3 of it overflows, and counts nowhere."""

    ppo = make_ppo(environment=tool_task, kl_in=kl_in, max_response_tokens=6)
    less = torch.zeros(len(ppo.tokenizer))
    less[ppo.tokenizer.convert_tokens_to_ids("x")] = logit  # which the environment writes, and now the policy never
    ppo.policy.lm_head.register_forward_hook(lambda module, inputs, logits: logits + less)
    for _ in range(2):
        report = ppo.step()
        assert report["skipped_updates"] == 0
        assert math.isfinite(report["policy/grad_norm"])


# Learning


@pytest.mark.parametrize("shared", [True, False])
def test_it_learns_to_copy_a_digit(make_policy, tokenizer, copy_task, shared):
    policy = make_policy()
    config = PPOConfig(batch_size=64, mini_batches=2, epochs=2, learning_rate=5e-3, max_response_tokens=2, kl_coef=0.0)
    critic = ValueHead(32) if shared else None
    ppo = PPO(config, policy, copy.deepcopy(policy), copy_task, tokenizer, critic)
    before = ppo.evaluate(200, seed=0)
    list(ppo.run(40, progress=False))
    assert before < 0.2
    assert ppo.evaluate(200, seed=0) > 0.6


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_a_larger_penalty_keeps_the_policy_nearer_to_the_reference(make_ppo, kl_in):
    free, held = (
        list(make_ppo(kl_coef=coef, kl_in=kl_in, learning_rate=5e-3).run(15, progress=False)) for coef in (0.0, 1.0)
    )
    assert held[-1]["objective/kl"] < free[-1]["objective/kl"] / 2


def test_an_entropy_bonus_keeps_the_entropy_up(make_ppo):
    plain, bonus = (
        list(make_ppo(entropy_coef=coef, learning_rate=5e-3).run(15, progress=False)) for coef in (0.0, 1.0)
    )
    assert bonus[-1]["policy/entropy_avg"] > plain[-1]["policy/entropy_avg"] + 0.3
