"""A small transformer with as many sets of weights as there are runs: every matrix product is one for all runs.

Shapes: R runs, B episodes, S positions (P of the prompt, T of the response), D width, H heads, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention

Weights = dict[str, Tensor]
Cache = list[tuple[Tensor, Tensor]]
TRUNK_GRADIENT = 0.1  # of the value loss: the default of the product's `ValueHead`


class Shape(NamedTuple):
    """What a policy is made of: 12 layers * width^2 parameters, and the embeddings."""

    vocabulary: int
    positions: int
    width: int
    layers: int
    heads: int


SIZES = {"small": (32, 2, 2), "large": (96, 3, 3)}  # width, layers, heads: some 30,000 and 350,000 parameters


def initial(shape: Shape, seed: int) -> Weights:
    """One set of weights, without the R in front. Of the value head only zeros."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float) -> Tensor:
        return torch.randn(*size, generator=generator) * scale

    width, inner = shape.width, 1 / math.sqrt(shape.width)
    weights = {
        "token": normal(shape.vocabulary, width, scale=0.3),
        "before": normal(shape.vocabulary, width, scale=0.3),  # each position also sees the token before it
        "position": normal(shape.positions, width, scale=0.1),
        "head": normal(width, shape.vocabulary, scale=inner),
        "value": torch.zeros(width, 1),
    }
    for layer in range(shape.layers):
        weights[f"{layer}.attention"] = normal(width, 3 * width, scale=inner)
        weights[f"{layer}.mix"] = normal(width, width, scale=0.5 * inner)
        weights[f"{layer}.up"] = normal(width, 4 * width, scale=inner)
        weights[f"{layer}.down"] = normal(4 * width, width, scale=0.25 * inner)
    return weights


def stack(sets: list[Weights]) -> Weights:
    """R sets of weights as one, R in front."""
    return {name: torch.stack([weights[name] for weights in sets]) for name in sets[0]}


def embed(weights: Weights, ids_RBS: Tensor, before_RB: Tensor | None, start: int) -> Tensor:
    """(R, B, S, D). `before_RB`: the tokens before the first ones, none at the start of a text."""
    runs, batch, length = ids_RBS.shape
    first_RB1 = torch.zeros_like(ids_RBS[..., :1]) if before_RB is None else before_RB.unsqueeze(-1)
    before_RBS = torch.cat([first_RB1, ids_RBS[..., :-1]], -1)
    rows_R1 = torch.arange(runs, device=ids_RBS.device).unsqueeze(-1)
    flat_RN = ids_RBS.flatten(1), before_RBS.flatten(1)
    hidden_RND = weights["token"][rows_R1, flat_RN[0]] + weights["before"][rows_R1, flat_RN[1]]
    position_R1SD = weights["position"][:, None, start : start + length]
    return hidden_RND.view(runs, batch, length, -1) + position_R1SD


def hidden(
    shape: Shape,
    weights: Weights,
    ids_RBS: Tensor,
    cache: Cache | None = None,
    before_RB: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    """The last layer's output, (R, B, S, D). Each position looks at itself and back; padding is a token like others.

    Args:
        cache: keys and values of all positions so far; what is computed here is written to it at `start`.
    """
    runs, batch, length = ids_RBS.shape
    x_RND = embed(weights, ids_RBS, before_RB, start).flatten(1, 2)
    for layer in range(shape.layers):
        qkv = torch.bmm(_norm(x_RND), weights[f"{layer}.attention"])
        q, k, v = qkv.view(runs * batch, length, 3, shape.heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            keys, values = cache[layer]
            keys[:, :, start : start + length], values[:, :, start : start + length] = k, v
            k, v = keys[:, :, : start + length], values[:, :, : start + length]
        mixed = scaled_dot_product_attention(q, k, v, is_causal=start == 0)
        mixed_RND = mixed.transpose(1, 2).reshape(runs, batch * length, shape.width)
        x_RND = x_RND + torch.bmm(mixed_RND, weights[f"{layer}.mix"])
        up_RNE = torch.bmm(_norm(x_RND), weights[f"{layer}.up"]).relu()
        x_RND = x_RND + torch.bmm(up_RNE, weights[f"{layer}.down"])
    return _norm(x_RND).view(runs, batch, length, shape.width)


def logits(weights: Weights, hidden_RBSD: Tensor) -> Tensor:
    """(R, B, S, V)."""
    runs, batch, length, _ = hidden_RBSD.shape
    return torch.bmm(hidden_RBSD.flatten(1, 2), weights["head"]).view(runs, batch, length, -1)


def values(weights: Weights, hidden_RBSD: Tensor) -> Tensor:
    """(R, B, S), from the policy's own trunk, of which the value loss moves little."""
    hidden_RBSD = hidden_RBSD.detach().lerp(hidden_RBSD, TRUNK_GRADIENT)
    return torch.bmm(hidden_RBSD.flatten(1, 2), weights["value"]).view(hidden_RBSD.shape[:-1])


def _norm(x: Tensor) -> Tensor:
    return rms_norm(x, (x.shape[-1],))
