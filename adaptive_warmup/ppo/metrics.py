"""Every metric that an RL step reports, with its unit and estimator. The names are TRL's PPOTrainer's where it had one.

"The policy" without more is the policy that sampled, before the step's updates. Token means are over response tokens:
those that the policy sampled. In-loop metrics are read at each mini-batch *before* its update, and averaged.
"""

from __future__ import annotations

METRICS: dict[str, str] = {
    "objective/scores": "Task reward: the environment's score, mean over episodes.",
    "objective/kl": "KL of the policy to the reference: k1 summed over an episode's tokens, mean over episodes; nats.",
    "objective/non_score_reward": "The KL's part of the reward, -kl_coef * objective/kl; signed, per episode. "
    "Above zero the policy earns reward by it. 0 where kl_in is 'loss'.",
    "objective/rlhf_reward": "objective/scores + objective/non_score_reward.",
    "objective/entropy": "Minus the log-probabilities of an episode's tokens, summed; mean over episodes; nats.",
    "policy/kl": "The size of the step: KL of the policy before it to the policy after its last mini-batch; k3, token "
    "mean, nats. One forward over the rollout, once per RL step.",
    "policy/reference_kl": "KL of the policy to the reference: k1, token mean, signed; nats. Clearly below zero "
    "it counts tokens that the policy did not sample.",
    "policy/approxkl_avg": "In-loop KL of the sampling policy to the present one: k2, token mean, nats. It misses the "
    "last update, so it reads far below policy/kl.",
    "policy/clipfrac_avg": "In-loop share of tokens at which the surrogate is clipped.",
    "policy/entropy_avg": "In-loop entropy of the policy's distribution, token mean, nats.",
    "policy/grad_norm": "L2 norm of the policy's gradient before clipping, mean over mini-batches.",
    "loss/policy_avg": "In-loop policy loss: clipped surrogate, less the entropy bonus, plus the KL where kl_in is "
    "'loss'.",
    "loss/value_avg": "In-loop value loss: half the clipped squared error, token mean.",
    "val/ratio": "In-loop probability ratio of the present policy to the sampling one, token mean.",
    "value/grad_norm": "L2 norm of the gradient of the critic's own parameters, as above.",
    "value/explained_variance": "1 - Var(return - value) / Var(return) over tokens, values before the updates; 0 "
    "where the returns do not vary.",
    "response_length": "Tokens that the policy sampled, mean over episodes.",
    "skipped_updates": "Updates of this step that were skipped because a gradient norm was not finite.",
    "lr": "The policy's learning rate, as set for this step.",
    "value_lr": "The critic's learning rate, as set for this step.",
}
