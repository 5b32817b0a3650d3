"""An Axolotl plugin for the tests: what the model was given, and the noise that reached it."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from axolotl.utils.collators import V2BatchSamplerDataCollatorForSeq2Seq
from recorder import count_hooks, recorded, to_save
from torch.distributed.tensor import DTensor

GIVEN = ("attention_mask", "position_ids", "labels")


class RecorderPlugin(BasePlugin):
    """Writes ``passesR.pt`` and ``logR.json`` of rank R into the output folder at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.trainer: Any = None
        self.given: list[dict[str, Any]] = []

    def post_trainer_create(self, cfg, trainer) -> None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        self.trainer, self.model = trainer, model
        self.calls = self.stack.enter_context(recorded(model))
        # PEFT calls its base model's `forward`, and `generate` calls the base model itself.
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        for module in {model, inner}:
            hook = module.register_forward_pre_hook(self.note_arguments, with_kwargs=True)
            self.stack.callback(hook.remove)
        embedding = model.get_input_embeddings()
        self.stack.callback(embedding.register_forward_pre_hook(self.note_pass).remove)

    def note_arguments(self, module, args, kwargs) -> None:
        self.arguments = {key: kwargs[key] for key in GIVEN if kwargs.get(key) is not None}

    def note_pass(self, module, args) -> None:
        self.hooks_in_training = count_hooks(self.model)
        self.held = share_of_weights(self.model.get_decoder().layers)
        self.given.append(self.arguments)

    def post_train(self, cfg, model) -> None:
        if self.trainer is None:  # Axolotl calls this twice
            return
        self.stack.close()
        passes = [
            {**vars(call), "given": given}
            for call, given in zip(to_save(self.calls), self.given, strict=True)
        ]
        rank = os.environ.get("RANK", "0")
        torch.save(passes, Path(cfg.output_dir) / f"passes{rank}.pt")
        log = {
            "history": self.trainer.state.log_history,
            "hooks_in_training": self.hooks_in_training,
            "hooks_left": count_hooks(self.model),
            "held": self.held,
            "trainer": type(self.trainer).__name__,
        }
        (Path(cfg.output_dir) / f"log{rank}.json").write_text(json.dumps(log, default=str))
        self.trainer = None


class SquashingRecorder(RecorderPlugin):
    """With the collator that numbers documents in the mask, and positions over the whole row."""

    def get_collator_cls_and_kwargs(self, cfg, is_eval=False):
        return V2BatchSamplerDataCollatorForSeq2Seq, {"squash_position_ids": True}


def share_of_weights(model) -> float:
    """How much of the model this process holds, by FSDP2's or DeepSpeed's own account."""
    held = whole = 0
    for weight in model.parameters():
        if hasattr(weight, "ds_id"):
            held, whole = held + weight.ds_tensor.numel(), whole + weight.ds_numel
        else:
            local = weight.to_local() if isinstance(weight, DTensor) else weight
            held, whole = held + local.numel(), whole + weight.numel()
    return held / whole


def rows_as_they_are(cfg, **kwargs):
    """A prompt strategy for online RL, as users write one."""

    def transform(example, tokenizer=None):
        return dict(example)

    return transform


def reward_length(prompts, completions, **kwargs):
    """A reward for GRPO, as users write one."""
    return [float(len(text)) for text in completions]
