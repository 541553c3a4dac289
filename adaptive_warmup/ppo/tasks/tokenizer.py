"""A small tokenizer made for one task: byte-level BPE, so that any name can be written, with its digits apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"


def train_tokenizer(texts: Iterable[str], tags: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train on `texts`.

    Args:
        texts: what the merges are learnt from.
        tags: markup that becomes one token each and, unlike padding and end of text, is kept by
            `decode(skip_special_tokens=True)`.
        vocabulary: number of tokens, the 256 bytes, `tags`, padding and end of text included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(tags),
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    wrap = cast(Callable[..., PreTrainedTokenizerFast], PreTrainedTokenizerFast)  # transformers leaves it untyped
    return wrap(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, padding_side="left")
