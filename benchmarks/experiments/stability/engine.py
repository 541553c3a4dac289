"""PPO on many runs at once: the product's advantages and losses under `vmap`, torch's own AdamW for all runs.

Shapes: R runs, B episodes, T response positions, S positions of prompt and response, W weights of one run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from adaptive_warmup.ppo.advantages import gae, kl_penalised_rewards, whiten
from adaptive_warmup.ppo.losses import clip_fraction, k1, k2, k3, masked, masked_mean, policy_loss, value_loss
from benchmarks.experiments.stability.network import Shape, Weights, hidden, logits, values
from benchmarks.experiments.stability.rollout import Episodes, Sampler
from benchmarks.experiments.stability.worlds import EVALUATION, POOL, World

BATCH, MINI_BATCHES = 32, 2
CLIP, VALUE_CLIP, MAX_GRAD_NORM = 0.2, 0.5, 1.0
BETAS = (0.9, 0.999)
EVALUATED = 256  # episodes at the end
Clip = Callable[[Tensor], None]  # of one run's gradient, (W,), in place


class Runs:
    """R runs in one world, each with its own weights, learning rate and random numbers.

    Args:
        references: the reference policy of each run, where it starts as well.
        seeds: of each run; runs of the same seed see the same problems and the same noise.
        epochs: passes over a rollout.
        optimizer: of Adam's kind.
        clips: of the runs that have a clipping of their own, by number; the others clip at `MAX_GRAD_NORM`.

    Attributes:
        kl_coef_R: of the KL in each run's reward; the world's own, until somebody else writes to it.
    """

    def __init__(
        self,
        world: World,
        shape: Shape,
        references: Sequence[Weights],
        seeds: Sequence[int],
        epochs: int,
        optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
        clips: Mapping[int, Clip] = {},
        device: str = "cpu",
    ) -> None:
        self.world, self.shape, self.epochs, self.clips = world, shape, epochs, clips
        self.kl_coef_R = torch.full((len(references),), world.kl_coef, device=device)
        self.sampler = Sampler(world, shape)
        self.layout = {name: tensor.shape for name, tensor in references[0].items()}
        flat = torch.stack([torch.cat([one[name].flatten() for name in self.layout]) for one in references]).to(device)
        self.reference = self._views(flat.clone())
        self.flat_RW = flat.requires_grad_()
        # An optimizer at lr 1 steps on zeros: what it writes there is the update, for each run's own rate to scale.
        self.update_RW = torch.zeros_like(flat, requires_grad=True)
        self.optimizer = optimizer([self.update_RW], lr=1.0, betas=BETAS, weight_decay=0.0)  # type: ignore[call-arg]
        self.rngs = [np.random.default_rng([seed, 77]) for seed in seeds]
        self.seeds = list(seeds)
        self.shuffle = np.random.default_rng(0)  # of the mini-batches, the same for every run whatever it runs beside

    def step(self, rates: Sequence[float]) -> dict[str, np.ndarray]:
        """One RL step at each run's rate; what it was like, each (R,), under the names of `Signals`."""
        episodes = self._rollout([rng.integers(POOL, size=BATCH) for rng in self.rngs], self.rngs)
        mask_RBT = episodes.written_RBT if self.world.unmasked else episodes.sampled_RBT
        inputs = episodes.ids_RBS, mask_RBT
        with torch.no_grad():
            old, frozen = episodes.logprobs_RBT, self._predict(self.reference, *inputs)[0]
            rewards_RBT = vmap(kl_penalised_rewards)(episodes.scores_RB, old, frozen, mask_RBT, self.kl_coef_R)
            advantages_RBT, returns_RBT = gae(rewards_RBT, episodes.values_RBT, mask_RBT, 1.0, 1.0)
            advantages_RBT = vmap(whiten)(advantages_RBT, mask_RBT)
        batch = (*inputs, old, episodes.values_RBT, advantages_RBT, returns_RBT)
        rates_R = torch.tensor(rates, device=self.flat_RW.device)
        found = [
            self._update([part[:, rows] for part in batch], rates_R)
            for _ in range(self.epochs)
            for rows in torch.from_numpy(self.shuffle.permutation(BATCH)).chunk(MINI_BATCHES)
        ]
        with torch.no_grad():
            after = self._predict(self.weights, *inputs)[0]
            mean = vmap(masked_mean)
            reference_kl = masked(k1(old, frozen), mask_RBT)
            metrics = {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}
            metrics |= {
                "kl": mean(k3(old, after), mask_RBT),
                "reference_kl": mean(reference_kl, mask_RBT),
                "task_reward": episodes.scores_RB.mean(1),
                "kl_reward": -self.kl_coef_R * reference_kl.sum(-1).mean(-1),
                "entropy": mean(episodes.entropy_RBT, mask_RBT),
            }
        return {name: value.cpu().numpy().astype(np.float64) for name, value in metrics.items()}

    def evaluate(self) -> np.ndarray:
        """The mean score of each run on problems that training never shows, (R,)."""
        rngs = [np.random.default_rng([seed, 78]) for seed in self.seeds]
        parts = []
        for _ in range(EVALUATED // BATCH):
            problems = [POOL + rng.integers(EVALUATION, size=BATCH) for rng in rngs]
            parts.append(self._rollout(problems, rngs).scores_RB)
        return torch.cat(parts, 1).mean(1).cpu().numpy().astype(np.float64)

    @property
    def weights(self) -> Weights:
        return self._views(self.flat_RW)

    def _views(self, flat_RW: Tensor) -> Weights:
        sizes = [shape.numel() for shape in self.layout.values()]
        parts = flat_RW.split(sizes, dim=1)
        return {name: part.view(-1, *shape) for (name, shape), part in zip(self.layout.items(), parts, strict=True)}

    def _rollout(self, problems: list[np.ndarray], rngs: list[np.random.Generator]) -> Episodes:
        noise = np.stack([rng.random((BATCH, self.world.length)) for rng in rngs])
        episodes = self.sampler(self._views(self.flat_RW.detach()), np.stack(problems), noise)
        longest = int(episodes.written_RBT.any(0).any(0).nonzero().max()) + 1
        return episodes.up_to(self.sampler.prompt, longest)

    def _predict(self, weights: Weights, ids_RBS: Tensor, mask_RBT: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the response's tokens and the critic's values there, each (R, B, T)."""
        length = mask_RBT.shape[-1]
        out = hidden(self.shape, weights, ids_RBS[..., :-1])[:, :, -length:]
        logprobs_RBTV = logits(weights, out).log_softmax(-1)
        return logprobs_RBTV.gather(-1, ids_RBS[..., -length:, None])[..., 0], values(weights, out)

    def _update(self, part: list[Tensor], rates_R: Tensor) -> dict[str, Tensor]:
        """One optimizer update of every run whose gradient is finite."""
        ids, mask, old_logprobs, old_values, advantages, returns = part
        logprobs, values_now = self._predict(self.weights, ids, mask)
        surrogate = logprobs, old_logprobs, advantages, mask
        loss_R = vmap(policy_loss, (0, 0, 0, 0, None))(*surrogate, CLIP)
        value_loss_R = vmap(value_loss, (0, 0, 0, 0, None))(values_now, old_values, returns, mask, VALUE_CLIP)
        (gradient_RW,) = torch.autograd.grad((loss_R + value_loss_R).sum(), [self.flat_RW])
        norms_R = gradient_RW.norm(dim=1)
        finite_R1 = norms_R.isfinite().unsqueeze(1)
        clipped_RW = gradient_RW * (MAX_GRAD_NORM / (norms_R + 1e-6)).clamp(max=1.0).unsqueeze(1)
        for run, clip in self.clips.items():
            if norms_R[run].isfinite():
                clip(clipped_RW[run].copy_(gradient_RW[run]))
        with torch.no_grad():
            self.update_RW.zero_()
            self.update_RW.grad = masked(clipped_RW, finite_R1)
            self.optimizer.step()
            self.flat_RW += masked(self.update_RW * rates_R.unsqueeze(1), finite_R1)
            return {
                "grad_norm": norms_R,
                "loss": loss_R,
                "approx_kl": vmap(masked_mean)(k2(old_logprobs, logprobs), mask),
                "clip_fraction": vmap(clip_fraction, (0, 0, 0, 0, None))(*surrogate, CLIP),
            }
