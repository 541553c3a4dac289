"""What a model predicts on a few sequences, read without leaving a trace, and how far two such readings lie apart."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

IGNORED = -100  # the label of a position that does not count, as everywhere in torch and transformers
_CHUNK = 64  # positions that are brought to fp32 at a time


class Excerpt(NamedTuple):
    """The part of a batch that is looked at. R rows, the same P positions in each, `counted` of them."""

    inputs: dict[str, Tensor]
    positions_P: Tensor
    counted_RP: Tensor


def size(batch: Mapping[str, Any] | Excerpt) -> int:
    """How many tokens a batch has, padding included; 0 where it has no tensor `[rows, tokens, ...]`."""
    lead = _lead(batch.inputs if isinstance(batch, Excerpt) else batch)
    return 0 if lead is None else lead.shape[:2].numel()


def excerpt(
    batch: Mapping[str, Any], rows: int, positions: int, length: int, causal: bool, affordable: float = math.inf
) -> Excerpt:
    """At most `rows` rows and `positions` positions of a batch, both evenly spread.

    No more than `affordable` tokens are run, in a whole number of rows, but one row always is.

    A prediction counts where the label it is for is not -100; without labels, where the attention mask is 1; without
    either, everywhere. Of a causal model only `length` tokens from the first such position on are run: what comes
    later changes nothing before it.

    Raises:
        ValueError: no tensor `[rows, tokens, ...]` in the batch.
    """
    tensors, lead = {name: value for name, value in batch.items() if isinstance(value, Tensor)}, _lead(batch)
    if lead is None:
        raise ValueError(f"no tensor [rows, tokens] among {', '.join(batch) or 'no inputs'}: give it token ids")
    total, width = lead.shape[:2]
    counted_BT = _counted(tensors, lead, causal)
    run = min(int(_columns(counted_BT)[0]) + length, width) if causal else width
    chosen_R = _spread(torch.arange(total, device=lead.device), int(min(rows, max(affordable // run, 1))))
    counted_RT = counted_BT[chosen_R]
    columns = _columns(counted_RT)
    inputs = {
        name: t[chosen_R] if len(t) == total else t for name, t in tensors.items() if t.dim() and name != "labels"
    }
    if causal:
        end = int(columns[0]) + length
        columns = columns[columns < end]
        inputs = {name: t[:, :end] if t.shape[1:2] == (width,) else t for name, t in inputs.items()}
    columns = _spread(columns, max(positions // len(chosen_R), 1))
    return Excerpt(inputs, columns, counted_RT[:, columns])


def predictions(model: nn.Module, part: Excerpt) -> Tensor:
    """The logits [R, P, V] of an excerpt, in the dtype that the model gives them.

    One forward in eval mode without gradient, under the caller's autocast; the training flags, the random number
    generators and the autocast cache are left as they were. Sharded modules gather their parameters as ever, so all
    processes must come here together; DDP, DataParallel and `torch.compile` are looked through.

    Raises:
        ValueError: the model returns no logits [rows, positions, vocabulary].
    """
    model = _bare(model)
    positions_P = part.positions_P + _virtual_tokens(model)
    extra = {"use_cache": False, "logits_to_keep": positions_P}
    with _undisturbed(model, part.positions_P.device):
        output = model(**part.inputs, **{name: extra[name] for name in extra.keys() & set(forward_names(model))})
    logits = _logits(output)
    if logits is None or logits.dim() != 3 or logits.shape[-1] < 2:
        found = "none" if logits is None else f"of shape {list(logits.shape)}"
        raise ValueError(
            f"{type(model).__name__} returns no logits [rows, positions, vocabulary] (found {found}): have its forward"
            " return them, as `logits`"
        )
    return logits if logits.shape[1] == len(positions_P) else logits[:, positions_P.to(logits.device)]


def divergence(before_RPV: Tensor, after_RPV: Tensor, counted_RP: Tensor) -> tuple[Tensor, Tensor]:
    """KL(before || after) over the vocabulary, nats, summed over the positions that count; and how many these are.

    Both softmaxes in fp32. A word that `before` rules out (logit -inf) adds nothing.
    """
    chunks = [torch.split(logits_RPV.flatten(0, 1), _CHUNK) for logits_RPV in (before_RPV, after_RPV)]
    kl = torch.cat([_kl(before, after) for before, after in zip(*chunks, strict=True)])
    counted = counted_RP.flatten().to(kl.device)
    # masked_fill: torch.where would copy its 0.0 to the device, and wait for that.
    return kl.masked_fill(~counted, 0.0).sum(), counted.sum()


def first_input(model: nn.Module) -> str:
    """The name of the first argument of the model's forward."""
    return forward_names(model)[0]


def forward_names(model: nn.Module) -> list[str]:
    """The names of the arguments of the model's forward, in order."""
    inner: Any = _bare(model)
    if hasattr(inner, "get_base_model"):  # peft's own forward takes anything, and passes it on
        inner = inner.get_base_model()
    return list(inspect.signature(inner.forward).parameters)


def prompt_learning(model: nn.Module) -> Any:
    """peft's settings of an adapter that is made of virtual tokens (prompt tuning, and what is like it), or None."""
    config: Any = getattr(model, "active_peft_config", None)
    return config if getattr(config, "is_prompt_learning", False) else None


def _lead(batch: Mapping[str, Any]) -> Tensor | None:
    return next((t for name, t in batch.items() if isinstance(t, Tensor) and t.dim() > 1 and name != "labels"), None)


def _columns(counted_RT: Tensor) -> Tensor:
    """Where at least one row counts; if none does anywhere, the first: run, but nothing there counts."""
    (columns,) = counted_RT.any(0).nonzero(as_tuple=True)
    return columns if len(columns) else torch.zeros(1, dtype=torch.long, device=counted_RT.device)


def _spread(of: Tensor, most: int) -> Tensor:
    count = min(most, len(of))
    return of[torch.arange(count, device=of.device) * len(of) // count]


def _kl(before_NV: Tensor, after_NV: Tensor) -> Tensor:
    logp, logq = before_NV.float().log_softmax(-1), after_NV.float().log_softmax(-1)
    p = logp.exp()
    return (p * (logp - logq)).masked_fill(p == 0.0, 0.0).sum(-1)


def _counted(tensors: Mapping[str, Tensor], lead: Tensor, causal: bool) -> Tensor:
    labels, mask = tensors.get("labels"), tensors.get("attention_mask")
    if labels is not None and labels.dim() == 2:
        counts = labels != IGNORED
    elif mask is not None and mask.dim() == 2:
        counts = mask.bool()
    else:
        return torch.ones(lead.shape[:2], dtype=torch.bool, device=lead.device)
    if causal:  # position t predicts token t + 1
        counts = torch.cat([counts[:, 1:], torch.zeros_like(counts[:, :1])], 1)
        counts = counts & mask.bool() if mask is not None and mask.shape == counts.shape else counts
    return counts


def _bare(model: nn.Module) -> nn.Module:
    """Without wrappers that would compile anew, or talk to other processes, for a forward."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile
            model = model.get_submodule("_orig_mod")
        else:
            return model


def _virtual_tokens(model: nn.Module) -> int:
    """How many positions a model of peft's puts before those of its inputs."""
    config = prompt_learning(model)
    if config is None or config.peft_type == "PREFIX_TUNING":
        return 0  # a prefix lies in the cache
    return int(config.num_virtual_tokens)


def _logits(output: Any) -> Tensor | None:
    if isinstance(output, Mapping):  # a ModelOutput too
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode by the flags alone: `model.eval()` may be overridden, and then does more than that.

    And without the graphs of `model.compile()`: eval mode would have them compiled anew.
    """
    flags = [(module, module.training) for module in model.modules()]
    compiled = [(m, m._compiled_call_impl) for m in model.modules() if m._compiled_call_impl is not None]
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    devices = [] if kind == "cpu" else [device.index]
    reshard = getattr(model, "reshard", None)
    try:
        for module, _ in flags:
            module.training = False
        for module, _ in compiled:
            module._compiled_call_impl = None
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices, device_type="cuda" if kind == "cpu" else kind),
            # Casts that an open autocast has cached are of before the update, and those made here have no gradient.
            torch.autocast(kind, dtype, enabled, cache_enabled=False),
        ):
            yield
    finally:
        for module, flag in flags:
            module.training = flag
        for module, call in compiled:
            module._compiled_call_impl = call
        if callable(reshard):  # FSDP2 keeps the root's parameters gathered until a backward
            reshard()
