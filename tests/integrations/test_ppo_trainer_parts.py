"""`PPOTrainer` with parts of other kinds: adapters, experts, schedules, prompts, stops."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoHaConfig, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, PhimoeConfig, Zamba2Config

from adaptive_warmup.history import read
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from adaptive_warmup.integrations.ppo_trainer.model import AdapterOff
from adaptive_warmup.integrations.ppo_trainer.prompts import check_dataset, check_prompts, problem
from adaptive_warmup.ppo.dialogue import Dialogue, Episode
from adaptive_warmup.ppo.environment import Problem
from adaptive_warmup.ppo.model import ValueModel
from tests.integrations.ppo_trainers import make
from tests.integrations.tiny import logged, model, tokenizer
from tests.integrations.trainers import same, weights

TARGETS = ["q_proj", "v_proj"]
EXPERTS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
EXPERTS |= {"num_key_value_heads": 1, "num_local_experts": 4, "max_position_embeddings": 64}


def test_what_the_reference_shares_with_the_policy_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"peft_config has bias='all': those are the reference's too"):
        make(tmp_path, parts={"peft_config": LoraConfig(target_modules=TARGETS, bias="all")})
    policy = get_peft_model(model(), LoraConfig(target_modules=TARGETS, modules_to_save=["lm_head"]))
    make(tmp_path, policy)
    opened = next(parameter for name, parameter in policy.named_parameters() if "layernorm" in name)
    opened.requires_grad_(True)
    with pytest.raises(ValueError, match=r"layernorm\.weight is trained and no part of the adapter, so that the"):
        make(tmp_path, policy)


def test_what_is_frozen_of_an_adapter_stays_so_once_the_reference_was_asked() -> None:
    policy = get_peft_model(model(), LoraConfig(target_modules=TARGETS))
    for name, parameter in policy.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    before = [parameter.requires_grad for parameter in policy.parameters()]
    AdapterOff(policy)(input_ids=torch.tensor([[3, 4]]))
    assert [parameter.requires_grad for parameter in policy.parameters()] == before


def experts(**settings: Any) -> Any:
    ids = {"vocab_size": len(tokenizer()), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return MixtralConfig(**EXPERTS, **ids, **settings)


@pytest.mark.parametrize("kind", ["experts", "adapter"])
def test_no_noise_of_any_kind_lies_between_the_policy_that_samples_and_the_one_that_is_updated(
    tmp_path: Path, kind: str
) -> None:
    """At lr 0, whose ratios are thus 1."""
    policy = AutoModelForCausalLM.from_config(experts(router_jitter_noise=0.1)) if kind == "experts" else None
    parts: dict[str, Any] = {}
    if kind == "adapter":
        parts["peft_config"] = LoHaConfig(r=8, alpha=64, target_modules=TARGETS, rank_dropout=0.5, init_weights=False)
    trainer = make(tmp_path, policy, parts=parts, max_steps=2, learning_rate=0.0, value_learning_rate=0.0)
    trainer.train()
    assert logged(trainer, "val/ratio") == pytest.approx([1.0, 1.0], abs=1e-5)


def test_experts_that_are_chosen_at_random_are_refused(tmp_path: Path) -> None:
    ids = {"vocab_size": len(tokenizer()), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    with pytest.raises(ValueError, match="chooses its experts at random in training: PPO cannot train that"):
        make(tmp_path, AutoModelForCausalLM.from_config(PhimoeConfig(**EXPERTS, **ids)))


def test_a_critic_whose_layers_share_weights_is_saved_and_resumed(tmp_path: Path) -> None:
    """As the blocks of Zamba2, of which safetensors refuses the second."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64, "adapter_rank": 4}
    sizes |= {"num_attention_heads": 4, "n_mamba_heads": 8, "mamba_d_state": 8, "num_hidden_layers": 4}
    config = Zamba2Config(vocab_size=len(tokenizer()), layers_block_type=["mamba", "hybrid"] * 2, **sizes)

    def run(**extra: Any) -> Any:
        torch.manual_seed(0)
        return make(tmp_path, AutoModelForCausalLM.from_config(config), **extra)

    whole = run(save_strategy="steps", save_steps=1)
    names = whole.model.critic.state_dict()
    assert len(names) > len(list(whole.model.critic.parameters()))
    whole.train()
    again = run()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert same(weights(again), weights(whole))


def test_the_critic_s_own_warmup_keeps_the_rest_of_a_warmup_stable_decay(tmp_path: Path) -> None:
    shape = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 4}}
    rates = {"learning_rate": 1e-3, "value_learning_rate": 1e-3, "warmup_steps": 4, "value_warmup_steps": 1}
    trainer = make(tmp_path, max_steps=10, **shape, **rates)
    trainer.train()
    policy, critic = logged(trainer, "learning_rate"), logged(trainer, "value_lr")
    assert critic[:4] == [1e-3] * 4
    assert critic[4:] == policy[4:]
    assert 0.0 < policy[-1] < policy[-4]


def test_a_critic_of_its_own_is_no_copy_of_a_policy_with_an_adapter() -> None:
    policy: Any = get_peft_model(model(), LoraConfig(target_modules=TARGETS))
    with pytest.raises(ValueError, match=r"the policy has an adapter.*give a ValueHead"):
        ValueModel.copy_of(policy)


def test_a_stop_that_is_the_end_of_the_text_asks_the_environment() -> None:
    """As an end of turn is, which is what the tokenizer of a chat model ends with."""

    class Chat:
        stops = (tokenizer().eos_token,)
        max_turns = 1

        def reply(self, problem: Problem, response: str) -> str | None:
            return "b"

    dialogue, episode = Dialogue(tokenizer(), Chat(), [tokenizer().eos_token_id]), Episode(Problem("a", ""))
    dialogue.advance(episode, tokenizer().convert_tokens_to_ids("a"))
    dialogue.advance(episode, tokenizer().eos_token_id)
    assert not episode.done
    assert episode.replies == 1
    assert dialogue.advance(episode, 0) == tokenizer().convert_tokens_to_ids("b")


def test_a_conversation_that_has_begun_the_answer_goes_on_with_it() -> None:
    chat = tokenizer()
    chat.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}.{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    asked, begun = [{"role": "user", "content": "q"}], {"role": "assistant", "content": "x"}
    assert problem({"prompt": asked}, chat).prompt == "<user>q.<a>"
    assert problem({"prompt": [*asked, begun]}, chat).prompt == "<user>q.<assistant>x"


def test_rows_without_an_answer_are_told_of_where_an_environment_scores(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "a", "answers": "b"}]
    check_dataset(rows, "train_dataset")
    assert not caplog.text
    check_dataset(rows, "train_dataset", scored=True)
    assert "train_dataset has the columns 'prompt', 'answers', and no 'answer'" in caplog.text


def test_what_is_no_reward_function_is_told(tmp_path: Path) -> None:
    def graded(completions: list[str], **columns: Any) -> list[str]:
        return ["good"] * len(completions)

    for bad, words in (("accuracy", "reward_funcs has 'accuracy'"), (model(), "reward_funcs has a Qwen2ForCausalLM")):
        with pytest.raises(TypeError, match=words):
            make(tmp_path, parts={"reward_funcs": bad})

    def by_number(completions: list[str], **columns: Any) -> dict[int, float]:
        return dict.fromkeys(range(len(completions)), 1.0)

    for function, told in ((graded, r"graded returned \['good', "), (by_number, r"by_number returned \{0: 1\.0, ")):
        trainer = make(tmp_path, parts={"reward_funcs": function}, max_steps=1)
        with pytest.raises(TypeError, match=rf"the reward function {told}.*: return a list of numbers"):
            trainer.train()


def test_completions_that_no_function_gives_a_reward_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def first_only(completions: list[str], **columns: Any) -> list[float | None]:
        return [1.0, *[None] * (len(completions) - 1)]

    def second_only(completions: list[str], **columns: Any) -> list[float | None]:
        return [None, 1.0, *[None] * (len(completions) - 2)]

    trainer = make(tmp_path, parts={"reward_funcs": [first_only, second_only]}, max_steps=1)
    trainer.train()
    count = trainer.args.local_episodes
    assert logged(trainer, "objective/scores") == [pytest.approx(2 / count)]
    assert f"{count - 2} of {count} completions have no reward but None, which counts as 0" in caplog.text


def test_noise_in_the_embeddings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neftune_noise_alpha=5\.0: the policy that is updated would not be the one"):
        make(tmp_path, neftune_noise_alpha=5.0)


def test_an_empty_prompt_is_found_before_its_turn_comes() -> None:
    with pytest.raises(ValueError, match="the prompt of row 1 is empty: leave it out"):
        check_prompts([{"prompt": "a"}, {"prompt": ""}], tokenizer(), None, 8)


def test_an_rl_step_that_the_end_of_the_run_cuts_short_is_reported_and_a_longer_run_goes_on_with_it(
    tmp_path: Path,
) -> None:
    """Six updates, of which an RL step has four."""
    parts: dict[str, Any] = {"num_mini_batches": 2, "num_ppo_epochs": 2, "gradient_accumulation_steps": 2}
    cut = make(tmp_path, max_steps=6, **parts, save_strategy="steps", save_steps=6)
    whole, again = make(tmp_path, max_steps=8, **parts), make(tmp_path, max_steps=8, **parts)
    cut.train()
    whole.train()
    assert logged(cut, "objective/scores") == logged(whole, "objective/scores")
    assert logged(cut, "episode") == logged(whole, "episode")
    assert logged(cut, "policy/grad_norm")[1] == pytest.approx(sum(logged(whole, "grad_norm")[4:6]) / 2)
    assert 0 < logged(cut, "policy/kl")[1] != logged(whole, "policy/kl")[1]
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert logged(again, "policy/kl")[1:] == [*logged(cut, "policy/kl")[1:], logged(whole, "policy/kl")[1]]
    assert same(weights(again), weights(whole))


def test_no_forward_without_gradients_has_more_rows_than_are_asked_for_and_the_run_resumes(tmp_path: Path) -> None:
    seen: set[tuple[bool, int]] = set()

    def run(**extra: Any) -> Any:
        trainer = make(tmp_path, max_steps=4, num_mini_batches=2, local_rollout_forward_batch_size=3, **extra)
        for part in (trainer.model.policy.model, trainer.model.critic.backbone, trainer.reference.model):
            part.register_forward_hook(
                lambda module, inputs, output: seen.add((torch.is_grad_enabled(), len(output.last_hidden_state)))
            )
        return trainer

    whole, again = run(save_strategy="steps", save_steps=2), run()
    whole.train()
    assert seen == {(True, 8), (False, 3), (False, 1)}  # 16 episodes, in mini-batches of 8
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(weights(again), weights(whole))


def test_where_an_rl_step_is_not_resumed_the_next_ones_end_as_ever(tmp_path: Path) -> None:
    """A callback that decides at the end of each would otherwise never see what one did."""
    sizes = {"num_mini_batches": 2, "num_ppo_epochs": 2, "per_device_train_batch_size": 4}
    make(tmp_path, max_steps=5, **sizes, save_strategy="steps", save_steps=5, save_only_model=True).train()
    warmup = AdaptiveWarmupCallback(4, log=tmp_path / "decisions.jsonl", target_kl=0.01)
    again = make(tmp_path, parts={"callbacks": [warmup]}, max_steps=12, **sizes)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert [logs["step"] for logs in again.state.log_history if "policy/kl" in logs and logs["step"] > 5] == [8, 12]
    decided = [step["signals"]["kl"] for step in read(tmp_path / "decisions.jsonl").steps]
    assert decided == logged(again, "policy/kl")[-2:]


def test_what_is_no_prompt_is_quoted(tmp_path: Path) -> None:
    for bad in ({"prompt": None}, {"prompt": []}, {"prompt": [3]}, {"text": "a"}):
        with pytest.raises(ValueError, match=r"a row has prompt=.*: give text, or a conversation"):
            problem(bad, tokenizer())
    with pytest.raises(ValueError, match="a row has prompt=None"):
        make(tmp_path, parts={"train_dataset": [{"prompt": "a"}, {"text": "a"}]})
    with pytest.raises(ValueError, match="a row has prompt=None"):
        make(tmp_path).evaluate(Dataset.from_dict({"text": ["a"]}))


def test_an_adapter_and_a_tokenizer_that_do_not_fit_and_settings_that_it_cannot_follow(tmp_path: Path) -> None:
    virtual = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="the adapter is of the kind PROMPT_TUNING"):
        make(tmp_path, parts={"peft_config": virtual})
    with pytest.raises(TypeError, match=r"processing_class is a str: give a tokenizer"):
        make(tmp_path, parts={"processing_class": "a name"})
    padded = copy.deepcopy(tokenizer())
    padded.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(ValueError, match=r"token '\[PAD\]' has the number 264, and the policy knows 264 tokens: call"):
        make(tmp_path, parts={"processing_class": padded})
    nameless = AutoModelForCausalLM.from_config(experts())
    with pytest.raises(ValueError, match="processing_class=None, and the model has no name or path"):
        make(tmp_path, nameless, parts={"processing_class": None})
    with pytest.raises(
        ValueError, match="auto_find_batch_size=True: a rollout is made for per_device_train_batch_size"
    ):
        make(tmp_path, auto_find_batch_size=True)
    with pytest.raises(ValueError, match=r"reward_weights=\[nan\]: give finite numbers"):
        make(tmp_path, reward_weights=[float("nan")])
