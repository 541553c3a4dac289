"""What in a plan asks for trouble. Each rule is a short function of the plan that yields cautions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from adaptive_warmup.advice.evidence import (
    KL_BLOG,
    LOGS,
    LORA,
    MASK,
    NEGATIVE_KL,
    PILOT,
    PROBE,
    SEARCH_R1,
    TWO_WARMUPS,
    UNTUNED,
    Caution,
)
from adaptive_warmup.advice.nominal import bearable
from adaptive_warmup.advice.plan import Plan
from adaptive_warmup.quoting import plural
from adaptive_warmup.signals import in_loop_scale

_USUAL_LRS = {  # (task, lora): peak learning rates seen for language models of .5 billion parameters and more
    ("rl", False): (1e-7, 5e-6),
    ("rl", True): (1e-6, 1e-4),
    ("finetuning", False): (1e-6, 1e-4),
    ("finetuning", True): (1e-5, 1e-3),
}
_LONG = 0.5  # of the run: from here on the warmup is most of it
_NEARLY = 0.99  # of the untuned warmup's length: rounded, it may have been
_HEAVY = 0.1  # kl_coef per unit of task reward: 2 to 100 times what is usual
_BIASED: dict[str, tuple[Callable[[float], bool], str, str]] = {
    # Settings that make the sampler another one than the policy: when each is off, how to say so, what it does.
    "top_p": (lambda p: p >= 1.0, "1", "it never draws the tail"),
    "top_k": (lambda k: k <= 0, "0 (vLLM, verl: -1)", "it never draws the tail"),
    "min_p": (lambda p: p == 0.0, "0", "it never draws the tail"),
    "min_new_tokens": (lambda n: n <= 0, "0, or leave the barred steps out of the KL", "it bars the end of the text"),
    "repetition_penalty": (lambda r: r == 1.0, "1", "it reweights tokens that were there before"),
}


def find(plan: Plan, target_kl: float) -> Iterator[Caution]:
    """All cautions, the gravest kind first."""
    yield from _unsampled(plan)
    yield from _hidden(plan)
    yield from _coefficient(plan)
    yield from _learning_rate(plan)
    yield from _earlier_runs(plan, target_kl)
    yield from _warmup(plan)
    yield from _measurement(plan)


def exposed(plan: Plan) -> bool:
    """Whether the KL reward can be gamed: it is in the reward, and counts tokens that the policy did not sample."""
    return plan.kl_in == "reward" and any(caution.setting != "dropout" for caution in _unsampled(plan))


def _unsampled(plan: Plan) -> Iterator[Caution]:
    """Settings under which tokens count in the KL that the policy, as its log-probs have it, did not sample."""
    if plan.task != "rl" or plan.kl_in == "none":
        return
    effect = _effect(plan)
    for name, (off, remedy, how) in _BIASED.items():
        value = getattr(plan, name)
        if value is not None and not off(value):
            why = f"the sampler is not the policy ({how}), so {effect}"
            yield Caution(name, f"{value:g}", why, f"set {name} to {remedy}", f"{KL_BLOG}; {NEGATIVE_KL}")
    yield from _temperature(plan, effect)
    yield from _tool_tokens(plan, effect)
    if plan.dropout:
        why = "log-probs taken in eval mode and in train mode then differ before any update: a floor under every KL"
        yield Caution("dropout", f"{plan.dropout:g}", why, "set it to 0, or take all log-probs in eval mode", PROBE)


def _effect(plan: Plan) -> str:
    negative = "the sampled k1 can go below zero"
    if plan.kl_in == "loss":
        return f"{negative} and any estimate of the KL is biased"
    if plan.kl_in == "reward":
        return f"{negative}, and driving it there earns reward"
    return f"{negative}; where the KL is in the reward, driving it there earns reward"


def _temperature(plan: Plan, effect: str) -> Iterator[Caution]:
    sampled, scored = plan.temperature, plan.logprob_temperature
    if sampled is None or sampled == (1.0 if scored is None else scored):
        return
    known = f"log-probs are at {scored:g}" if scored is not None else "nothing says that log-probs are taken at it too"
    remedy = "divide the logits of policy and reference by the sampler's temperature (then say logprob_temperature)"
    yield Caution("temperature", f"{sampled:g}", f"{known}; at another one {effect}", remedy, KL_BLOG)


def _tool_tokens(plan: Plan, effect: str) -> Iterator[Caution]:
    if (plan.turns or 1) == 1 and plan.tool_tokens_masked is not False:
        return
    if plan.tool_tokens_masked is None:
        why = f"over {plan.turns} turns the environment inserts tokens; where they count in the KL, {effect}"
        yield Caution("tool_tokens_masked", "not said", why, "check loss mask and KL mask, then say so", MASK)
    elif not plan.tool_tokens_masked:
        why = f"tokens that the policy did not sample count: {effect} (a pilot run's score: .92 to .01 in 12 steps)"
        yield Caution("tool_tokens_masked", "false", why, "mask them, in the loss and in the KL", f"{MASK}; {PILOT}")


def _hidden(plan: Plan) -> Iterator[Caution]:
    if plan.kl_estimator in ("k2", "k3", "abs") and any(c.setting != "dropout" for c in _unsampled(plan)):
        why = "it is never negative, so it hides the sign by which the above would show"
        yield Caution("kl_estimator", plan.kl_estimator, why, "log the signed k1 too, as reference_kl", KL_BLOG)


def _coefficient(plan: Plan) -> Iterator[Caution]:
    if plan.kl_in not in ("reward", "loss") or plan.kl_coef is None:
        return
    low, high = plan.reward_range or (0.0, 1.0)
    if plan.kl_coef == 0.0:
        why = f"the KL is meant to be in the {plan.kl_in}, and at 0 it is not"
        yield Caution("kl_coef", "0", why, "set it, such as .001; or say kl_in none", SEARCH_R1)
    elif plan.kl_in == "reward" and plan.kl_coef > _HEAVY * (high - low):
        range_words = f"a task reward from {low:g} to {high:g}" + ("" if plan.reward_range else " (assumed)")
        why = f"against {range_words} the KL is the greater part of the reward"
        remedy = "usual for a range of 1: .001 (Search-R1) to .05 (TRL)"
        yield Caution("kl_coef", f"{plan.kl_coef:g}", why, remedy, f"{PILOT}; the run that was gamed had .3")


def _learning_rate(plan: Plan) -> Iterator[Caution]:
    usual = _USUAL_LRS.get((plan.task, bool(plan.lora)))
    if usual is None or usual[0] <= plan.lr <= usual[1]:
        return
    what = f"{'LoRA' if plan.lora else 'full'} {'RL' if plan.task == 'rl' else 'fine-tuning'}"
    side = "above" if plan.lr > usual[1] else "below"
    why = f"{side} the usual range for {what} of language models, {usual[0]:g} to {usual[1]:g} (usual, not a law)"
    remedy = "keep the feedback on, it holds a lower lr" if side == "above" else "expect little learning, or raise it"
    yield Caution("lr", f"{plan.lr:g}", why, f"{remedy}; small models bear more", LORA)


def _earlier_runs(plan: Plan, target_kl: float) -> Iterator[Caution]:
    for run in plan.logs:
        name = str(run.about.get("arm", run.config.law))
        lrs = bearable(run, target_kl)
        if lrs and plan.lr > 2.0 * statistics.median(lrs):
            why = f"an earlier run ({name}) bore about {statistics.median(lrs):.2g} at target_kl {target_kl:g}"
            yield Caution("lr", f"{plan.lr:g}", why, "take that; or expect to be held at about it", LOGS)
        if any(alarm[0] == "kl_gaming" for step in run.steps for alarm in step.get("alarms", ())):
            why = "its KL reward was being gamed: a fault of mask or sampler, which no lr cures"
            yield Caution("earlier run", name, why, "mend it before this run", LOGS)


def _warmup(plan: Plan) -> Iterator[Caution]:
    steps, total = plan.planned_warmup, plan.total_steps
    if (plan.warmup_steps or 0) > 0 and plan.warmup_ratio:
        value = f"{plural(plan.warmup_steps or 0, 'step')} and ratio {plan.warmup_ratio:g}"
        why = f"both are given; the steps win over the ratio's {plan.rounded(plan.warmup_ratio * total)}"
        yield Caution("warmup", value, why, "give one", "verl, transformers")
    if plan.untuned_warmup and steps >= max(_NEARLY * plan.untuned_warmup, total):
        why = (
            f"as long as the untuned rule has it, 2/(1-beta2) = {plan.untuned_updates} updates, beyond the run's end at"
        )
        why += f" {total}: the lr never comes to its peak"
        yield Caution("warmup", plural(steps, "step"), why, "the advised warmup; that rule is for long runs", UNTUNED)
    elif steps >= _LONG * total:
        left = plural(max(total - steps, 0), "step")
        why = f"the peak is reached in step {steps} of {total}, which leaves {left} at it"
        yield Caution("warmup", plural(steps, "step"), why, "a longer run, a lower peak, or the advised warmup", PILOT)
    if steps > 1 and plan.host is None:  # the hosts' own ramps are replaced
        why = (
            "but for transformers' and verl's, which ours replaces, it multiplies with ours: the lr rises as the square"
        )
        yield Caution("warmup", plural(steps, "step"), why, "take it out of the schedule, or say host", TWO_WARMUPS)


def _measurement(plan: Plan) -> Iterator[Caution]:
    updates = plan.updates_per_rollout
    if plan.task != "rl" or updates is None or plan.kl_source not in (None, "in_loop"):
        return
    if plan.kl_source is None and (updates > 4 or plan.host is not None):  # a host's integration measures it after
        return
    share = in_loop_scale(plan.epochs or 1, plan.mini_batches or 1)
    value = f"{plan.epochs or 1} x {plan.mini_batches or 1}"
    reads = f"reads some {1 / share:.0f} times too low" if share else "reads zero"
    why = f"a KL taken in the loop, before each update (actor/ppo_kl, approxkl_avg), {reads}"
    remedy = "measure it after the last mini-batch (then say kl_source post_update)"
    remedy += f", or report kl_source='in_loop:{plan.epochs or 1}x{plan.mini_batches or 1}'" if updates > 1 else ""
    yield Caution("epochs x mini_batches", value, why, remedy, PILOT)
