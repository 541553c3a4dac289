"""A rollout without an inference engine: responses are drawn from the policy, by the weights that verl hands over.

`actor_rollout_ref.rollout.name=drawn`. Where vLLM would have them in its own processes, the workers' part writes them
to a file for each step, in the folder `rollout.custom.weights`, and the driver's part reads it. Rows come in the order
of the prompts, as an engine's do not, so that a run can be repeated to the bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transfer_queue
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica


class Rollout(BaseRollout):
    """In each worker: takes the policy's weights, which all workers gather, and the first one passes them on."""

    async def resume(self, tags: list[str]) -> None: ...
    async def release(self) -> None: ...

    async def update_weights(self, weights: Any, global_steps: int = 0, **kwargs: Any) -> None:
        gathered = {name: tensor.clone() for name, tensor in weights}
        if torch.distributed.get_rank() == 0:
            folder = Path(self.config.custom["weights"])
            folder.mkdir(exist_ok=True)
            torch.save(gathered, folder / f"{global_steps}.pt")


class Replica(RolloutReplica):
    """The driver's handle of a server that is not there: nothing is to be woken or put to sleep."""

    async def launch_servers(self) -> None:
        self._server_address = f"none-{self.replica_rank}"


class Manager:
    """An agent-loop manager, which verl lets its users choose: draws the responses, by the step's number.

    After each come `rollout.custom.tool` words (4) that the policy did not write, as a tool's would: masked, unless
    `custom.leak`. The score is the share of even tokens among the policy's own. What was drawn is kept beside the
    weights: of each prompt its tokens and the policy's own after them.
    """

    def __init__(self, config: Any) -> None:
        self._rollout, path = config.actor_rollout_ref.rollout, config.actor_rollout_ref.model.path
        self._tool = int(self._rollout.custom.get("tool", 4))
        self._model, self._tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)

    @classmethod
    def create(cls, config: Any, **kwargs: Any) -> Manager:
        transfer_queue.init()
        return cls(config)

    def generate_sequences(self, prompts: Any) -> None:
        step, folder = int(prompts["global_steps"]), Path(self._rollout.custom["weights"])
        partition = "val" if "validate" in prompts else "train"
        self._model.load_state_dict(torch.load(folder / f"{step - (partition == 'train')}.pt"))
        asked, drawn, words = self._draw(prompts["raw_prompt"], step)
        logprobs = self._model.compute_transition_scores(drawn.sequences, drawn.scores, normalize_logits=True)
        kept = []
        for uid, row, tool, logprob in zip(prompts["uid"], drawn.sequences, words, logprobs, strict=True):
            prompt, response = row[:asked], row[asked:]
            own = int((response != self._model.config.eos_token_id).cumprod(0).sum()) + 1  # an EOS is its own
            response = response[:own]
            output = AgentLoopOutput(
                prompt_ids=prompt.tolist(),
                response_ids=torch.cat([response, tool]).tolist(),
                response_mask=[1] * len(response) + [int(self._rollout.custom.get("leak", False))] * len(tool),
                response_logprobs=[*logprob[:own].tolist(), *[0.0] * len(tool)],
                reward_score=float((response % 2 == 0).float().mean()),
                num_turns=2,
                metrics=AgentLoopMetrics(),
            )
            _put(partition, uid, step, output)
            kept.append((prompt, response))
        torch.save(kept, folder / f"{partition}-{step}.pt")

    def _draw(self, prompts: Any, seed: int) -> tuple[int, Any, torch.Tensor]:
        """How many tokens a prompt has, what the policy made of each, and what the tool said."""
        texts = [self._tokenizer.apply_chat_template(messages, tokenize=False) for messages in prompts]
        asked = self._tokenizer(texts, return_tensors="pt")["input_ids"]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            drawn = self._model.generate(
                asked, do_sample=True, temperature=self._rollout.temperature, top_k=0,
                max_new_tokens=self._rollout.response_length - self._tool,
                return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
            return asked.shape[1], drawn, torch.randint(3, self._model.config.vocab_size, (len(asked), self._tool))


def _put(partition: str, uid: str, step: int, output: AgentLoopOutput) -> None:
    row = output.as_dict()
    row["input_ids"] = torch.cat([row["prompts"], row["responses"]])
    row |= {"loss_mask": row["response_mask"], "uid": uid, "multi_modal_inputs": {}}
    row |= {"position_ids": torch.arange(len(row["input_ids"])), "data_source": "none", "reward_model": {}}
    lengths = {"prompt_len": len(row["prompts"]), "response_len": len(row["responses"])}
    tag = {"status": "success", **lengths, "seq_len": len(row["input_ids"])}
    tag |= {"global_steps": step, "min_global_steps": step, "max_global_steps": step}
    rows = list_of_dict_to_tensordict([row])
    transfer_queue.kv_batch_put(keys=[f"{uid}_0_0"], fields=rows, tags=[tag], partition_id=partition)
    transfer_queue.kv_batch_put(keys=[uid], partition_id=partition, tags=[{"is_prompt": True, "status": "finished"}])
