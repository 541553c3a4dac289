"""Episodes of all runs in lockstep, with the environment's turns, each run with random numbers of its own.

Shapes: R runs, B episodes, P prompt positions, T response positions, S = P + T, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.experiments.stability.network import Shape, Weights, hidden, logits, values
from benchmarks.experiments.stability.worlds import EOS, PAD, World, replier, scorer


@dataclass(frozen=True)
class Episodes:
    """Finished episodes with what the policy and the critic made of them.

    Attributes:
        ids_RBS: prompt and response, `PAD` after the end.
        written_RBT: True at the tokens of the response, those of the environment too.
        sampled_RBT: True at those of the policy.
        scores_RB: the environment's, without any KL.
        logprobs_RBT: of all tokens of the response under the policy, nats.
        entropy_RBT: of what they were drawn from, nats.
        values_RBT: the critic's.
    """

    ids_RBS: Tensor
    written_RBT: Tensor
    sampled_RBT: Tensor
    scores_RB: Tensor
    logprobs_RBT: Tensor
    entropy_RBT: Tensor
    values_RBT: Tensor

    def up_to(self, prompt: int, length: int) -> Episodes:
        """The first `length` positions of the response."""
        ids, scores = self.ids_RBS[..., : prompt + length], self.scores_RB
        rest = self.logprobs_RBT, self.entropy_RBT, self.values_RBT
        written, sampled = self.written_RBT[..., :length], self.sampled_RBT[..., :length]
        return Episodes(ids, written, sampled, scores, *(part[..., :length] for part in rest))


class Sampler:
    """Rollouts in one world."""

    def __init__(self, world: World, shape: Shape) -> None:
        self.world, self.shape = world, shape
        self.prompts_NP = torch.from_numpy(world.prompts)
        self.score, self.reply, self.stops = scorer(world), replier(world), world.stops()
        self.prompt = self.prompts_NP.shape[1]

    @torch.no_grad()
    def __call__(self, weights: Weights, problems_RB: np.ndarray, noise_RBT: np.ndarray) -> Episodes:
        """One episode for each problem; `noise_RBT` uniform in [0, 1) draws the tokens."""
        device = weights["token"].device
        problems = torch.from_numpy(problems_RB)
        ids_RBS = torch.full((*problems.shape, self.prompt + self.world.length), PAD)
        ids_RBS[..., : self.prompt] = self.prompts_NP[problems]
        table = _Table(self, problems_RB)
        noise = torch.from_numpy(noise_RBT).float().to(device)
        seen = self._write(weights, ids_RBS.to(device), noise, table)
        rows = problems_RB.size
        response = torch.from_numpy(table.ids).view(*problems.shape, -1)
        ids_RBS[..., self.prompt :] = response
        scores = [self.score(int(problems_RB.flat[i]), tuple(table.ids[i, : table.ends(i)])) for i in range(rows)]
        shape = (*problems.shape, self.world.length)
        return Episodes(
            ids_RBS.to(device),
            torch.from_numpy(table.kinds > 0).view(shape).to(device),
            torch.from_numpy(table.kinds == 1).view(shape).to(device),
            torch.tensor(scores, dtype=torch.float32).view(problems.shape).to(device),
            *seen,
        )

    def _write(
        self, weights: Weights, ids_RBS: Tensor, noise_RBT: Tensor, table: _Table
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fills the table; log-probabilities, entropies and values, each (R, B, T)."""
        runs, batch, length = ids_RBS.shape
        heads, width = self.shape.heads, self.shape.width // self.shape.heads
        size = (2, runs * batch, heads, length, width)
        cache = [tuple(torch.zeros(size, device=ids_RBS.device)) for _ in range(self.shape.layers)]
        seen = torch.zeros(3, runs, batch, self.world.length, device=ids_RBS.device)
        ids, before, start = ids_RBS[..., : self.prompt], None, 0
        for t in range(self.world.length):
            out = hidden(self.shape, weights, ids, cache, before, start)[:, :, -1:]
            logits_RBV = logits(weights, out)[:, :, 0]
            logprobs_RBV = logits_RBV.log_softmax(-1)
            chosen_RB = draw(logprobs_RBV, noise_RBT[..., t], t < self.world.barred)
            tokens = table.advance(t, chosen_RB.flatten().cpu().numpy())
            before, start = ids[..., -1], self.prompt + t
            ids = torch.from_numpy(table.ids[:, t]).view(runs, batch, 1).to(ids_RBS.device)
            seen[0, ..., t] = logprobs_RBV.gather(-1, ids)[..., 0]
            seen[1, ..., t] = -(logprobs_RBV.exp() * logprobs_RBV).sum(-1)
            seen[2, ..., t] = values(weights, out)[..., 0]
            if tokens is None:
                break
        return seen[0], seen[1], seen[2]


def draw(logprobs_RBV: Tensor, noise_RB: Tensor, barred: bool) -> Tensor:
    """A token, by inverting the distribution function; where that is not a number, some token."""
    cumulated = logprobs_RBV.exp()
    if barred:
        cumulated[..., EOS] = 0.0
    cumulated = cumulated.cumsum(-1)
    below = cumulated < noise_RB.unsqueeze(-1) * cumulated[..., -1:]
    return below.sum(-1).clamp(max=logprobs_RBV.shape[-1] - 1)


class _Table:
    """The responses, a row each: `kinds` is 1 where the policy wrote, 2 where the environment did, 0 after the end."""

    def __init__(self, sampler: Sampler, problems_RB: np.ndarray) -> None:
        rows, length = problems_RB.size, sampler.world.length
        self.sampler, self.problems = sampler, problems_RB.ravel()
        self.ids = np.full((rows, length), PAD)
        self.kinds = np.zeros((rows, length), dtype=np.int8)
        self.done = np.zeros(rows, dtype=bool)
        self.replies = np.zeros(rows, dtype=int)
        self.stops = np.array(sorted(sampler.stops), dtype=int)

    def advance(self, t: int, chosen: np.ndarray) -> np.ndarray | None:
        """Enter position t; what the policies read next, or None when all episodes have ended."""
        inserted, own = self.kinds[:, t] == 2, ~self.done & (self.kinds[:, t] == 0)
        tokens = np.where(inserted, self.ids[:, t], np.where(own, chosen, PAD))
        self.ids[:, t] = tokens
        self.kinds[own, t] = 1
        self.done |= own & (tokens == EOS)
        for row in np.nonzero(own & np.isin(tokens, self.stops))[0]:
            self._turn(int(row), t)
        return None if self.done.all() else tokens

    def ends(self, row: int) -> int:
        """Where the text of the response ends."""
        length = int((self.kinds[row] > 0).sum())
        return length - 1 if length and self.ids[row, length - 1] == EOS else length

    def _turn(self, row: int, t: int) -> None:
        asked = self.replies[row] < self.sampler.world.environment.max_turns
        so_far = tuple(self.ids[row, : t + 1])
        reply: Sequence[int] | None = self.sampler.reply(int(self.problems[row]), so_far) if asked else None
        if reply is None:
            self.done[row] = True
            return
        self.replies[row] += 1
        room = reply[: self.ids.shape[1] - t - 1]
        self.ids[row, t + 1 : t + 1 + len(room)] = room
        self.kinds[row, t + 1 : t + 1 + len(room)] = 2
