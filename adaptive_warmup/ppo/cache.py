"""A policy's key-value cache: what it is called, whether it is one, and room in it for a whole episode."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from adaptive_warmup.predictions import forward_names, prompt_learning


def cache_name(policy: PreTrainedModel) -> str:
    """What the policy's forward calls its cache: `cache` since transformers 5.24, `past_key_values` before.

    By the wrong name a forward that takes any keyword would begin anew at each token, and not say so.
    """
    return "cache" if "cache" in forward_names(policy) else "past_key_values"


def check_adapter(policy: PreTrainedModel) -> None:
    """Raise ValueError for prompt tuning and its like: at each token peft would put their virtual tokens before it."""
    if (config := prompt_learning(policy)) is not None:
        raise ValueError(
            f"the adapter is of the kind {config.peft_type.value}, whose virtual tokens do not go with a cache that is"
            " filled token by token: use one that changes weights, such as LoRA"
        )


def keeps_keys(cache: Any) -> bool:
    """False where there is no cache, and for one of states alone, as Mamba's is since transformers 5.24.

    Such a state has read the padding, too, unless the mask is given in the model's own way.
    """
    layers = getattr(cache, "layers", None)
    return cache is not None and (not layers or any(hasattr(layer, "keys") for layer in layers))


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer of transformers' `DynamicCache` that writes into memory laid out beforehand.

    A `DynamicLayer` copies all that it holds at every token, and a `StaticLayer` has attention read all of its room at
    every token, behind a mask. Here nothing is copied, and attention reads what is there: views of it.
    """

    def __init__(self, begun: DynamicLayer, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(*_held(begun))
        self._room = [tensor.new_empty((*tensor.shape[:2], length, tensor.shape[3])) for tensor in _held(begun)]
        self.update(*_held(begun))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new states behind the old ones; all of them so far, each (B, heads, positions, D)."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values


def make_room(cache: Any, length: int) -> None:
    """Have the layers of `cache` that hold every position, after the prompt, move to room for `length` positions.

    Others, such as those of a sliding window or a convolution, keep their own ways; so does a cache of another kind.
    """
    layers = getattr(cache, "layers", [])
    for i, layer in enumerate(layers):
        if type(layer) is DynamicLayer and layer.is_initialized and _held(layer)[0].dim() == 4:
            layers[i] = RoomyLayer(layer, length)


def _held(layer: DynamicLayer) -> tuple[Tensor, Tensor]:
    return cast(Tensor, layer.keys), cast(Tensor, layer.values)
