from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    GenerationConfig,
    LlamaConfig,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

from adaptive_warmup.ppo import ActorCritic, Problem, ValueHead, response_logprobs, rollout, sample_episodes
from adaptive_warmup.ppo.dialogue import tokenise

T, F = True, False


def script(tokenizer, *texts):
    """Each character writes the next one; the last one of each text is the end of the text."""
    rows = [[*tokenizer.convert_tokens_to_ids(list(text)), tokenizer.eos_token_id] for text in texts]
    return {before: after for row in rows for before, after in itertools.pairwise(row)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_masks_of_a_dialogue_by_hand(tokenizer, scripted_policy, task_of):
    # "q=" -> "a?" (stop), "x1" is inserted, "b" and the end. "qq#" -> "c" and the end, then padding.
    policy = scripted_policy(script(tokenizer, "=a?", "1b", "#c"), len(tokenizer))
    task = task_of(("?",), ["x1"])
    episodes = rollout(
        policy,
        tokenizer,
        task,
        [Problem("q=", None), Problem("qq#", None)],
        max_response_tokens=9,
        generator=generator(),
    )
    assert episodes.responses == ["a?x1b", "c"]
    assert task.asked == ["a?"]
    assert tokenizer.batch_decode(episodes.token_ids_BS) == ["<pad>q=a?x1b<eos>", "qq#c<eos><pad><pad><pad><pad>"]
    assert episodes.attention_mask_BS.tolist() == [[0, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0, 0]]
    assert episodes.response_mask_BT.tolist() == [[T, T, F, F, T, T], [T, T, F, F, F, F]]
    assert episodes.scores_B.tolist() == [5.0, 1.0]


@pytest.mark.parametrize(
    ("max_turns", "replies", "response"),
    [(0, [], "a?"), (1, ["x="], "a?x=a?"), (9, ["x=", None], "a?x=a?"), (9, ["=", "#"], "a?=a?#c")],
)
def test_turns_are_bounded_and_the_environment_may_end_the_episode(
    tokenizer, scripted_policy, task_of, max_turns, replies, response
):
    policy = scripted_policy(script(tokenizer, "=a?", "#c"), len(tokenizer))
    task = task_of(("?",), replies, max_turns)
    episodes = rollout(policy, tokenizer, task, [Problem("=", None)], max_response_tokens=20, generator=generator())
    assert episodes.responses == [response]
    assert len(task.asked) == len(replies)


def test_an_empty_reply_lets_the_policy_write_on(tokenizer, scripted_policy, task_of):
    policy = scripted_policy(script(tokenizer, "=a?b"), len(tokenizer))
    task = task_of(("?",), [""])
    episodes = rollout(policy, tokenizer, task, [Problem("=", None)], max_response_tokens=20, generator=generator())
    assert episodes.responses == ["a?b"]
    assert episodes.response_mask_BT.tolist() == [[T, T, T, T]]


def test_the_token_limit_cuts_an_insertion(tokenizer, scripted_policy, task_of):
    policy = scripted_policy(script(tokenizer, "=a?b"), len(tokenizer))
    task = task_of(("?",), ["x1x2"])
    episodes = rollout(policy, tokenizer, task, [Problem("=", None)], max_response_tokens=4, generator=generator())
    assert episodes.responses == ["a?x1"]
    assert episodes.response_mask_BT.tolist() == [[T, T, F, F]]


def test_a_stop_may_span_tokens_but_not_turns(tokenizer, scripted_policy, task_of):
    # The first turn ends at "<s>". "<s" is inserted and the policy writes ">" after it: that is not its own stop.
    policy = scripted_policy(script(tokenizer, "=<") | script(tokenizer, "<s>b"), len(tokenizer))
    task = task_of(("<s>",), ["<s"])
    episodes = rollout(policy, tokenizer, task, [Problem("=", None)], max_response_tokens=20, generator=generator())
    assert task.asked == ["<s>"]
    assert episodes.responses == ["<s><s>b"]


def test_a_stop_within_a_longer_token(scripted_policy, task_of):
    backend = Tokenizer(models.BPE({"<": 0, "s": 1, ">": 2, "b": 3, ">b": 4, "=": 5, "<eos>": 6}, [(">", "b")]))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    task = task_of(("<s>",), [None])
    policy = scripted_policy({5: 0, 0: 1, 1: 4, 4: 3, 3: 6}, 7)
    episodes = rollout(policy, tokenizer, task, [Problem("=", None)], max_response_tokens=9, generator=generator())
    assert episodes.responses == ["<s>b"]


def test_a_stop_that_is_split_within_a_character(scripted_policy, task_of):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({**{c: i for i, c in enumerate(alphabet)}, "<eos>": 256}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    first, second = tokenizer("»")["input_ids"]
    (start,) = tokenizer("=")["input_ids"]
    policy = scripted_policy({start: first, first: second, second: start}, 257)
    episodes = rollout(
        policy, tokenizer, task_of(("»",), [None]), [Problem("=", None)], max_response_tokens=9, generator=generator()
    )
    assert episodes.responses == ["»"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_logits_under_the_cache_are_those_of_a_full_forward(kind, tokenizer, make_policy, tool_task):
    policy = make_policy(kind).eval()
    seen = []
    hook = policy.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output[:, -1]))
    episodes = rollout(
        policy, tokenizer, tool_task, tool_task.sample(16, 0), max_response_tokens=20, generator=generator()
    )
    hook.remove()
    length = episodes.response_mask_BT.shape[1]
    cached = torch.stack(seen, dim=1).log_softmax(-1)
    cached = cached.gather(-1, episodes.token_ids_BS[:, -length:, None]).squeeze(-1)
    full = response_logprobs(policy, episodes.token_ids_BS, episodes.attention_mask_BS, length)
    written = episodes.attention_mask_BS[:, -length:].bool()
    assert (episodes.attention_mask_BS[:, 0] == 0).any()  # there is left padding
    assert (written & ~episodes.response_mask_BT).any()  # and there are inserted tokens
    torch.testing.assert_close(cached[written], full[written], atol=1e-5, rtol=0)


def test_the_cache_goes_by_the_name_that_the_policy_gives_it_under_an_adapter_too(tokenizer, make_policy, tool_task):
    peft = pytest.importorskip("peft")
    problems, policies = tool_task.sample(4, 0), (make_policy(), peft.get_peft_model(make_policy(), peft.LoraConfig()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # of transformers, at a name of old
        bare, adapted = (
            rollout(policy, tokenizer, tool_task, problems, max_response_tokens=9, generator=generator())
            for policy in policies
        )
    assert bare.responses == adapted.responses
    torch.testing.assert_close(bare.logprobs_BT, adapted.logprobs_BT)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_values_of_a_shared_trunk_while_it_samples_are_those_of_a_full_forward(kind, tokenizer, make_policy, tool_task):
    policy, head = make_policy(kind).eval(), ValueHead(32)
    torch.nn.init.normal_(head.weight_D)
    episodes = rollout(
        policy,
        tokenizer,
        tool_task,
        tool_task.sample(16, 0),
        max_response_tokens=20,
        generator=generator(),
        value_head=head,
    )
    mask = episodes.response_mask_BT
    full = ActorCritic(policy, head)(episodes.token_ids_BS, episodes.attention_mask_BS, mask.shape[1])
    assert full.values_BT[mask].std() > 0.1
    torch.testing.assert_close(episodes.values_BT[mask], full.values_BT[mask], atol=1e-4, rtol=0)
    torch.testing.assert_close(episodes.logprobs_BT[mask], full.logprobs_BT[mask], atol=1e-5, rtol=0)


def test_a_rollout_may_be_sampled_some_rows_at_a_time(tokenizer, make_policy, tool_task):
    policy, head, problems = make_policy().eval(), ValueHead(32), tool_task.sample(16, 0)
    torch.nn.init.normal_(head.weight_D)
    seen = []
    policy.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    arguments = {"max_response_tokens": 20, "generator": generator(), "value_head": head}
    episodes = sample_episodes(policy, tokenizer, tool_task, problems, **arguments, rows=3)
    assert set(seen) == {3, 1}
    mask = episodes.response_mask_BT
    assert len({int(row.sum()) for row in mask}) > 3  # the parts differ in length
    full = ActorCritic(policy, head)(episodes.token_ids_BS, episodes.attention_mask_BS, mask.shape[1])
    torch.testing.assert_close(episodes.logprobs_BT[mask], full.logprobs_BT[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(episodes.values_BT[mask], full.values_BT[mask], atol=1e-4, rtol=0)
    certain = {**arguments, "temperature": 1e-4}
    whole, cut = (sample_episodes(policy, tokenizer, tool_task, problems, **certain, rows=rows) for rows in (None, 5))
    assert cut.responses == whole.responses
    assert torch.equal(cut.token_ids_BS, whole.token_ids_BS)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_left_padding_does_not_change_a_row(kind, tokenizer, make_policy):
    policy = make_policy(kind).eval()
    ids = torch.tensor([tokenizer("12=ab?x9")["input_ids"]])
    alone = response_logprobs(policy, ids, torch.ones_like(ids), 5)
    padded, mask = torch.nn.functional.pad(ids, (7, 0), value=4), torch.nn.functional.pad(ids * 0 + 1, (7, 0))
    torch.testing.assert_close(response_logprobs(policy, padded, mask, 5), alone, atol=1e-5, rtol=0)


def test_it_samples_the_full_softmax(tokenizer, make_policy, copy_task):
    policy = make_policy().eval()
    episodes = rollout(
        policy, tokenizer, copy_task, [Problem("7=", "7")] * 4000, max_response_tokens=1, generator=generator()
    )
    ids = torch.tensor([tokenizer("7=")["input_ids"]])
    expected = policy(ids).logits[0, -1].softmax(-1)
    counted = torch.bincount(episodes.token_ids_BS[:, -1], minlength=len(tokenizer)) / 4000
    assert (counted - expected).abs().max() < 0.03
    assert (counted > 0).sum() > len(tokenizer) // 2


def test_a_low_temperature_picks_the_likeliest(tokenizer, make_policy, copy_task):
    policy = make_policy().eval()
    episodes = rollout(
        policy,
        tokenizer,
        copy_task,
        [Problem("7=", "7")] * 20,
        max_response_tokens=1,
        temperature=1e-4,
        generator=generator(),
    )
    likeliest = policy(torch.tensor([tokenizer("7=")["input_ids"]])).logits[0, -1].argmax()
    assert (episodes.token_ids_BS[:, -1] == likeliest).all()


def test_a_row_is_the_same_whoever_is_in_the_batch_when_the_policy_is_certain(tokenizer, scripted_policy, task_of):
    policy = scripted_policy(script(tokenizer, "=abc", "#c"), len(tokenizer))
    for neighbours in ([], [Problem("#", None)], [Problem("999999#", None), Problem("=", None)]):
        problems = [Problem("12=", None), *neighbours]
        episodes = rollout(policy, tokenizer, task_of((), []), problems, max_response_tokens=9, generator=generator())
        assert episodes.responses[0] == "abc"


def test_the_training_mode_is_given_back(tokenizer, make_policy, copy_task):
    policy = make_policy().train()
    rollout(policy, tokenizer, copy_task, copy_task.sample(2, 0), max_response_tokens=2, generator=generator())
    assert policy.training


def test_a_checkpoint_of_chats_may_name_further_tokens_that_end_an_episode(tokenizer, scripted_policy, task_of):
    """As Gemma's does, whose turns end otherwise than its texts. What a bare config says is no such name."""
    policy, end = scripted_policy(script(tokenizer, "=abbb"), len(tokenizer)), tokenizer.convert_tokens_to_ids("b")
    problems, task = [Problem("q=", None)], task_of((), [])
    arguments = {"max_response_tokens": 4}
    policy.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, end])
    ended = rollout(policy, tokenizer, task, problems, generator=generator(), **arguments)
    assert (ended.responses, ended.finished_B.tolist()) == (["a"], [True])
    policy.config = LlamaConfig(eos_token_id=[tokenizer.eos_token_id, end])  # some name them there
    policy.generation_config = GenerationConfig.from_model_config(policy.config)
    assert rollout(policy, tokenizer, task, problems, generator=generator(), **arguments).responses == ["a"]
    policy.config = LlamaConfig(eos_token_id=end)
    policy.generation_config = GenerationConfig.from_model_config(policy.config)
    plain = rollout(policy, tokenizer, task, problems, generator=generator(), **arguments)
    assert plain.responses[0].startswith("ab")


@pytest.mark.parametrize(("replies", "response"), [(["x"], "a?x1b"), ([None], "a?")])
def test_an_end_of_turn_that_is_a_stop_of_the_environments_is_answered(
    tokenizer, scripted_policy, task_of, replies, response
):
    """As Llama 3's <|eom_id|>, which its checkpoints name among the ends, and by which it calls a tool."""
    policy, end = scripted_policy(script(tokenizer, "=a?") | script(tokenizer, "x1b"), len(tokenizer)), "?"
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)]
    policy.generation_config = GenerationConfig(eos_token_id=ends)
    task = task_of((end,), replies)
    found = rollout(policy, tokenizer, task, [Problem("=", None)], generator=generator(), max_response_tokens=20)
    assert task.asked == ["a?"]
    assert (found.responses, found.finished_B.tolist()) == ([response], [True])


def test_a_policy_gone_to_nan_does_not_crash(tokenizer, make_policy, copy_task):
    policy = make_policy()
    with torch.no_grad():
        policy.lm_head.weight.fill_(torch.nan)
    episodes = rollout(
        policy, tokenizer, copy_task, copy_task.sample(2, 0), max_response_tokens=2, generator=generator()
    )
    assert episodes.response_mask_BT.any()


def test_errors_quote_the_value_and_the_remedy(tokenizer, make_policy, copy_task):
    policy = make_policy()
    with pytest.raises(ValueError, match="no problems: give it at least one"):
        rollout(policy, tokenizer, copy_task, [], max_response_tokens=2, generator=generator())
    with pytest.raises(ValueError, match="the prompt '' has no tokens"):
        rollout(policy, tokenizer, copy_task, [Problem("", "1")], max_response_tokens=2, generator=generator())
    with pytest.raises(ValueError, match=r"max_response_tokens=99 do not fit the policy's 64 positions: shorten"):
        rollout(policy, tokenizer, copy_task, [Problem("1=", "1")], max_response_tokens=99, generator=generator())


def test_of_a_tokenizer_that_ends_every_text_a_prompt_is_not_ended(tokenizer, make_policy):
    ending = copy.deepcopy(tokenizer)
    eos = ending.eos_token_id
    template = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", eos)])
    ending.backend_tokenizer.post_processor = template
    assert ending("12")["input_ids"][-1] == eos
    assert tokenise(make_policy(), ending, ["12", "3"], 4) == tokenizer(["12", "3"])["input_ids"]


@pytest.mark.parametrize("kind", ["PromptTuning", "PrefixTuning"])
def test_an_adapter_of_virtual_tokens_is_refused(tokenizer, make_policy, copy_task, kind):
    """Sampled token by token, their log-probabilities were off by nats from those of a forward of the whole."""
    peft = pytest.importorskip("peft")
    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", num_virtual_tokens=4)
    policy = peft.get_peft_model(make_policy(), config)
    with pytest.raises(ValueError, match=r"the adapter is of the kind PR.*_TUNING.*such as LoRA"):
        rollout(policy, tokenizer, copy_task, copy_task.sample(2, 0), max_response_tokens=3, generator=generator())


def test_a_policy_without_a_cache_and_an_empty_stop_are_refused(tokenizer, make_policy, copy_task):
    arguments = {"max_response_tokens": 3, "generator": generator()}
    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    second = Mamba2Config(**shape, num_heads=4, head_dim=8, n_groups=1)
    for mamba in (MambaForCausalLM(MambaConfig(**shape)), Mamba2ForCausalLM(second)):
        with pytest.raises(ValueError, match=f"{type(mamba).__name__} keeps no keys in its cache"):
            rollout(mamba, tokenizer, copy_task, copy_task.sample(2, 0), **arguments)
    copy_task.stops = ("",)
    with pytest.raises(ValueError, match="have an empty one"):
        rollout(make_policy(), tokenizer, copy_task, copy_task.sample(2, 0), **arguments)
