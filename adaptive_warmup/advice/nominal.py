"""The numbers of the advice: nominal warmup, target KL, law settings, and the reason for each."""

from __future__ import annotations

import math
import statistics
from typing import Literal

from adaptive_warmup.advice.evidence import (
    ARTICLE,
    COLLAPSES,
    DEMO,
    JUDGEMENT,
    LOGS,
    MASK,
    PILOT,
    PROBE,
    SEARCH_R1,
    TUNING,
    UNTUNED,
    Reason,
)
from adaptive_warmup.advice.plan import Plan
from adaptive_warmup.history import Run
from adaptive_warmup.quoting import plural
from adaptive_warmup.report.reading import peaks
from adaptive_warmup.signals import kl_scale

_BASE, _EACH, _MOST = 10, 5, 30  # per cent of the run: of any run, for each complexity, at most
_SHORTEST, _LONGEST = 10, 1000  # steps: no first update above a tenth of the peak; no warmup for ever
_MANY_UPDATES = 4  # per rollout: from here on the policy moves within the step
_FEW_SEQUENCES = 32
_AFTERWARDS = ("post_update", "probe", "training_probe")  # KLs that are measured after the update
_EARLY = 8  # measured steps of an earlier run that tell what it bore at its start


def warmup(plan: Plan) -> tuple[int, list[Reason]]:
    """The nominal warmup in steps: what the run falls back to without signals, and 1 / the factor of update 0."""
    extra = _complexities(plan) if plan.task == "rl" else []
    share = min(_BASE + _EACH * len(extra), _MOST)
    steps = min(max(math.ceil(share * plan.total_steps / 100), _SHORTEST), _LONGEST, plan.total_steps)
    reasons = [_base(plan, share, steps), *extra]
    early = [lr for run in plan.logs for lr in bearable(run, target_kl(plan)[0])[:_EARLY]]
    if early and (needed := math.ceil(min(plan.lr / statistics.median(early), plan.total_steps))) > steps:
        at_first = f"{statistics.median(early):.2g} at its start, so the first update has to be 1/{needed} of the peak"
        reasons.append(Reason("warmup_steps", f"{needed} steps instead: an earlier run bore about {at_first}", LOGS))
        steps = needed
    return steps, [*reasons, *_consequences(plan, steps)]


def target_kl(plan: Plan) -> tuple[float, Reason]:
    """The policy KL per step that suits the plan, nats per token, post-update."""
    updates = plan.updates_per_rollout
    if plan.task != "rl":
        target = 0.003 if plan.task == "finetuning" else 0.01
        text = f"{plan.task}: .003 did best when fine-tuning, .01 from scratch; in plain training it counts threefold"
        return target, Reason("target_kl", text, PROBE)
    if updates == 1 and plan.kl_in == "none":
        text = "one update per rollout and no KL term: .003 did better than .01 (score .90 against .83)"
        return 0.003, Reason("target_kl", text, PROBE)
    target = 0.01 if (updates or 1) <= 2 * _MANY_UPDATES else 0.02
    known = f"{updates} update{'' if updates == 1 else 's'} per rollout" if updates else "updates per rollout not said"
    text = f"{known}: .01 that falls to .001 did best at 2, and as well as .02 at 8, where a constant .1 fails"
    return target, Reason("target_kl", text, TUNING)


def law_settings(plan: Plan, exposed: bool) -> tuple[Literal["hold", "stop"], list[Reason]]:
    """`on_gaming`, and what else there is to say on the law. `exposed`: the KL reward can be gamed."""
    reasons = []
    on_gaming: Literal["hold", "stop"] = "stop" if exposed else "hold"
    if exposed:
        text = "stop: the warned-of settings let the KL pay the policy; a lower lr delays that, it does not cure it"
        reasons.append(Reason("on_gaming", text, PILOT))
    text = (
        "keep guard=True: the main effect is an lr ceiling learned from the run, not the length of the warmup (in the"
    )
    text += " recorded demo the lr is held at 1/45 to 1/90 of its peak)"
    reasons.append(Reason("guard", text, DEMO))
    if plan.task == "rl" and plan.schedule is not None and "constant" in plan.schedule:
        text = "consider a decay: the KL budget falls with its square (on two tasks .95 and .94, against .94 and .93)"
        reasons.append(Reason("schedule", text, PILOT))
    if plan.kl_in == "reward" and plan.tool_tokens_masked and (plan.turns or 1) > 1:
        text = (
            "masked in the KL as well as in the loss? Search-R1 at first masked the loss only, and summed k1 over all"
        )
        reasons.append(Reason("tool_tokens_masked", text, MASK))
    if plan.task == "rl" and plan.batch_size is not None and plan.batch_size < _FEW_SEQUENCES:
        text = f"{plan.batch_size} responses in all: k3 on so few is noisy; exact over the vocabulary, 8 are worth 32"
        reasons.append(Reason("kl_source", text, PROBE))
    return on_gaming, reasons


def bearable(run: Run, target: float) -> list[float]:
    """For each measured step of an earlier run the lr whose KL would have been `target`: KL grows as lr squared.

    Of a KL that came late it is the lr of the step that it is of.
    """
    found = []
    for step, peak in zip(run.steps, peaks(run), strict=True):
        signals = step["signals"]
        source, kl = signals.get("kl_source", "post_update"), signals.get("kl", 0.0)
        lr = peak * signals["kl_lr"] if "kl_lr" in signals else step["lr"]
        if lr > 0.0 and 1e-12 < kl < math.inf and source.partition(":")[0] in _AFTERWARDS:
            found.append(lr * math.sqrt(target * kl_scale(source) / kl))
    return found


def _base(plan: Plan, share: int, steps: int) -> Reason:
    text = (
        f"{plural(steps, 'step')}, as a fallback where no signal comes: {share} % of {plan.total_steps}"
        f" (at least {_SHORTEST} steps, at most {_MOST} % and {_LONGEST} steps)"
    )
    if plan.task != "rl":
        text += "; 10 % did better than 3 % at high lrs and cost little at safe ones"
        return Reason("warmup_steps", text, PROBE)
    text += (
        ". Below the lr that the run bears a longer warmup only costs: area under the score .72 to .85 without warmup,"
        " .65 to .80 at 28.5 %, .56 to .72 at 95 %"
    )
    return Reason("warmup_steps", text, PILOT)


def _complexities(plan: Plan) -> list[Reason]:
    """What makes a more careful fallback advisable, each for 5 % of the run."""
    low, high = plan.reward_range or (0.0, 0.0)
    updates = plan.updates_per_rollout or 1
    rows = (
        (plan.kl_in == "reward", "the KL is in the reward, which the policy can trade against the task", ARTICLE),
        (plan.critic, "a critic is learned along: advantages are noise at first", JUDGEMENT),
        ((plan.turns or 1) > 1, f"up to {plan.turns} turns: such runs are known to collapse", COLLAPSES),
        (plan.sparse_reward, "the reward is sparse: few episodes carry the first updates", JUDGEMENT),
        (high - low > 10.0, f"rewards range over {high - low:g}: so do the critic's first errors", JUDGEMENT),
        (updates >= _MANY_UPDATES, f"{updates} updates per rollout: later ones are off-policy", JUDGEMENT),
    )
    return [Reason("warmup_steps", f"+{_EACH} %: {text}", source) for holds, text, source in rows if holds]


def _consequences(plan: Plan, steps: int) -> list[Reason]:
    reasons = []
    if plan.task == "rl":
        text = "beyond the lr that the run bears a fixed warmup saves no run, long or short (far beyond that lr"
        text += " 95 % and 28.5 % both collapsed on 3 of 3 seeds): that is the feedback's part"
        reasons.append(Reason("warmup_steps", text, DEMO))
    first = f"the first update runs at 1/{steps} of the peak, lr {plan.lr / steps:.2g}; no feedback can undo that one"
    reasons.append(Reason("warmup_steps", first, PILOT))
    if plan.untuned_warmup is not None:
        rule = f"untuned warmup, 2/(1-beta2), at beta2 {plan.beta2:g}: {plan.untuned_updates} updates"
        text = f"for comparison, the {rule}, here {plural(plan.untuned_warmup, 'step')}"
        if plan.untuned_warmup > plan.total_steps:
            text += f", more than the run's {plan.total_steps}: no length to take from that rule here (beta2 .95 would"
            text += " make it 40 updates)"
        reasons.append(Reason("warmup_steps", text, UNTUNED))
    if plan.warmup_ratio and plan.planned_warmup:
        planned = plural(plan.planned_warmup, "step")
        text = f"warmup_ratio {plan.warmup_ratio:g} of {plan.total_steps}: that is {planned}"
        if plan.task == "rl":
            text += ". Search-R1's .95 of 305 is 289 and its later .285 of 1005 is 286: the same warmup, before more"
            text += " steps at the peak; so the smaller ratio is no evidence that a shorter warmup is safe"
        reasons.append(Reason("your warmup", text, SEARCH_R1))
    if plan.critic:
        text = "the critic may have its own, shorter warmup: 15 steps in Search-R1 (.05 of 305, .015 of 1005)"
        reasons.append(Reason("critic", text, SEARCH_R1))
    return reasons
