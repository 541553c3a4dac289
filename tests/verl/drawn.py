"""A rollout without an inference engine: responses are drawn from the policy, by the weights that verl hands over.

`actor_rollout_ref.rollout.name=drawn`. Where vLLM would have them in its own processes, the workers' part writes the
weights to a file and the driver's reads it. Rows come in the order of the prompts, as an engine's do not, so that a run
can be repeated to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
import transfer_queue
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica

TOOL = 4  # words of the tool's in a response


class Rollout(BaseRollout):
    """In each worker: takes the policy's weights, which all workers gather, and the first one passes them on."""

    async def resume(self, tags: list[str]) -> None: ...
    async def release(self) -> None: ...

    async def update_weights(self, weights: Any, wire_format: str = "named_tensors", **kwargs: Any) -> None:
        gathered = {name: tensor.clone() for name, tensor in weights}
        if torch.distributed.get_rank() == 0:
            torch.save(gathered, self.config.custom["weights"])


class Replica(RolloutReplica):
    """The driver's handle of a server that is not there: nothing is to be woken or put to sleep."""

    async def launch_servers(self) -> None:
        self._server_address = f"none-{self.replica_rank}"


class Manager:
    """An agent-loop manager, which verl lets its users choose: draws the responses, by the step's number.

    After each come four words that the policy did not write, as a tool's would: masked, unless `rollout.custom.leak`.
    The score is the share of even tokens among the policy's own.
    """

    def __init__(self, config: Any) -> None:
        rollout, path = config.actor_rollout_ref.rollout, config.actor_rollout_ref.model.path
        self._length, self._custom = int(rollout.response_length) - TOOL, rollout.custom
        self._model, self._tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)

    @classmethod
    def create(cls, config: Any, **kwargs: Any) -> Manager:
        transfer_queue.init()
        return cls(config)

    def generate_sequences(self, prompts: Any) -> None:
        step = int(prompts["global_steps"])
        self._model.load_state_dict(torch.load(self._custom["weights"]))
        texts = [self._tokenizer.apply_chat_template(messages, tokenize=False) for messages in prompts["raw_prompt"]]
        asked = self._tokenizer(texts, return_tensors="pt")["input_ids"]
        with torch.random.fork_rng():
            torch.manual_seed(step)
            drawn = self._model.generate(
                asked, do_sample=True, max_new_tokens=self._length, return_dict_in_generate=True, output_scores=True
            )
            words = torch.randint(3, self._model.config.vocab_size, (len(asked), TOOL))
        logprobs = self._model.compute_transition_scores(drawn.sequences, drawn.scores, normalize_logits=True)
        rows = drawn.sequences[:, asked.shape[1] :]
        for uid, prompt, row, tool, logprob in zip(prompts["uid"], asked, rows, words, logprobs, strict=True):
            own = row[: int((row != self._model.config.eos_token_id).cumprod(0).sum()) + 1]  # an EOS is its own
            output = AgentLoopOutput(
                prompt_ids=prompt.tolist(),
                response_ids=torch.cat([own, tool]).tolist(),
                response_mask=[1] * len(own) + [int(self._custom.get("leak", False))] * TOOL,
                response_logprobs=[*logprob[: len(own)].tolist(), *[0.0] * TOOL],
                reward_score=float((own % 2 == 0).float().mean()),
                num_turns=2,
                metrics=AgentLoopMetrics(),
            )
            _put(uid, step, output)


def _put(uid: str, step: int, output: AgentLoopOutput) -> None:
    row = output.as_dict()
    row["input_ids"] = torch.cat([row["prompts"], row["responses"]])
    row |= {"loss_mask": row["response_mask"], "uid": uid, "multi_modal_inputs": {}}
    row["position_ids"] = torch.arange(len(row["input_ids"]))
    lengths = {"prompt_len": len(row["prompts"]), "response_len": len(row["responses"])}
    tag = {"status": "success", **lengths, "seq_len": len(row["input_ids"])}
    tag |= {"global_steps": step, "min_global_steps": step, "max_global_steps": step}
    rows = list_of_dict_to_tensordict([row])
    transfer_queue.kv_batch_put(keys=[f"{uid}_0_0"], fields=rows, tags=[tag], partition_id="train")
    transfer_queue.kv_batch_put(keys=[uid], partition_id="train", tags=[{"is_prompt": True, "status": "finished"}])
