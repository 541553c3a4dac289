from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, BartConfig, BartForCausalLM, BloomConfig, Lfm2Config

from adaptive_warmup.ppo import ActorCritic, ValueHead, ValueModel, response_logprobs
from adaptive_warmup.ppo.model import check_padding

IDS = torch.tensor([[0, 0, 5, 6, 7, 8, 9], [3, 4, 5, 6, 7, 8, 9]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])


def with_head(critic, seed=0):
    """The critic with a head that is not zero."""
    head = critic if isinstance(critic, ValueHead) else critic.head
    with torch.no_grad():
        head.weight_D.normal_(generator=torch.Generator().manual_seed(seed))
        head.bias.fill_(0.5)
    return critic


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logprobs_are_of_the_tokens_that_stand_there(make_policy, temperature):
    policy = make_policy().eval()
    logprobs = response_logprobs(policy, IDS[1:], MASK[1:], 3, temperature)
    expected = (policy(IDS[1:]).logits / temperature).log_softmax(-1)[0]
    assert logprobs[0].tolist() == pytest.approx([expected[3, 7].item(), expected[4, 8].item(), expected[5, 9].item()])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("shared", [True, False])
def test_prediction(make_policy, kind, shared):
    policy = make_policy(kind).eval()
    critic = with_head(ValueHead(32) if shared else ValueModel.copy_of(policy))
    prediction = ActorCritic(policy, critic, 0.7)(IDS, MASK, 3)
    torch.testing.assert_close(prediction.logprobs_BT, response_logprobs(policy, IDS, MASK, 3, 0.7))
    logits = policy(IDS[1:], output_hidden_states=True)
    distribution = torch.distributions.Categorical(logits=logits.logits[0, 3:6] / 0.7)
    torch.testing.assert_close(prediction.entropy_BT[1], distribution.entropy())
    head = critic if shared else critic.head
    torch.testing.assert_close(prediction.values_BT[1], logits.hidden_states[-1][0, 3:6] @ head.weight_D + 0.5)


def test_a_copied_critic_shares_nothing_and_starts_at_zero(make_policy):
    policy = make_policy().eval()
    critic = ValueModel.copy_of(policy).eval()
    assert not {id(p) for p in critic.parameters()} & {id(p) for p in policy.parameters()}
    assert (critic(IDS, MASK, 3) == 0).all()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_trunk_gradient_scales_what_reaches_the_trunk(share):
    hidden = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    head = with_head(ValueHead(4, trunk_gradient=share))
    head(hidden).sum().backward()
    torch.testing.assert_close(hidden.grad, share * head.weight_D.detach().expand(2, 3, 4))
    torch.testing.assert_close(head.weight_D.grad, hidden.detach().sum((0, 1)))


def test_logprobs_are_fp32_whatever_the_policys_type(make_policy):
    policy = make_policy().eval().bfloat16()
    assert response_logprobs(policy, IDS, MASK, 3).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_that_counts_the_padding_is_refused(make_policy, dtype):
    """BART's decoder does. Bloom takes no position_ids, and LFM2 has convolutions, and both heed the mask."""
    sizes = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48}
    bart = BartForCausalLM(BartConfig(vocab_size=40, max_position_embeddings=32, **sizes)).to(dtype).train()
    with pytest.raises(
        ValueError, match=r"BartForCausalLM reads a text otherwise where padding stands before it.*give"
    ):
        check_padding(bart)
    assert bart.training
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
    others = (
        BloomConfig(vocab_size=40, hidden_size=32, n_layer=1, n_head=2),
        Lfm2Config(vocab_size=40, layer_types=["conv", "full_attention"], num_hidden_layers=2, **sizes),
    )
    for policy in (make_policy(), make_policy("gpt2"), *map(AutoModelForCausalLM.from_config, others)):
        check_padding(policy.to(dtype))
