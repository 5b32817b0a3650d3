"""NEFTCallback: the noise through a training run of any ``Trainer``."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from neft_plugins.config import NEFTConfig
from neft_plugins.keys import ALPHA_KEY, number_in_text
from neft_plugins.model.handle import NEFTHandle, attach_neft, attached_handle
from neft_plugins.model.hooks import NoNoiseError
from neft_plugins.trainer.old_log_probabilities import check_old_log_probabilities
from neft_plugins.trainer.paired_rows import pair_rows
from neft_plugins.trainer.parallelism import find_place
from neft_plugins.trainer.record import (
    CONFIG_FILE,
    changes,
    make_record,
    read_record,
    write_record,
)
from neft_plugins.trainer.run_callback import (
    NeverRestored,
    RunCallback,
    logger,
    resumed_from,
    saved_with,
)

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD = "neft_config"
"""The name of the record's copy in ``TrainerState.stateful_callbacks``."""


class NEFTCallback(RunCallback):
    """Add noise to the model's input embeddings while a ``Trainer`` trains it.

    It attaches when training begins, sets the step for every micro-batch, adds ``neft/*`` metrics
    to the logs, writes ``neft_config.json`` into checkpoints, and detaches when training ends. A
    Trainer does not call its callbacks when an exception ends it: use ``with NEFTCallback(...) as
    callback:`` around ``train()``, or call ``remove()``, where the model is used afterwards (a new
    ``train()`` with a ``NEFTCallback`` cleans up by itself).

    Args:
        config: What noise.
        embedding: As in ``attach_neft``.
        decoder: As in ``attach_neft``.
        logger: Where it logs what will happen, at level INFO, and what changed on resuming. Unset,
            ``transformers.neft_plugins``, which is shown on stderr.
        contiguous_shards: Whether rows that context-parallel ranks share are cut by the host, into
            contiguous parts, and not by torch's ``context_parallel``.

    Raises:
        RuntimeError: When training begins, if noise is on the model already: ours, or the built-in
            because ``neftune_noise_alpha`` is set in the Trainer's arguments too. If the callback
            was given to the Trainer twice.
        NoNoiseError: In the first optimizer step, if the noise did not reach the model.
    """

    given_twice = "The Trainer was given this NEFTCallback twice. Give it once."

    def __init__(
        self,
        config: NEFTConfig,
        *,
        embedding: str | nn.Module | None = None,
        decoder: bool = False,
        logger: logging.Logger | logging.LoggerAdapter = logger,
        contiguous_shards: bool = False,
    ) -> None:
        if not isinstance(config, NEFTConfig):
            raise TypeError(f"NEFTCallback takes a NEFTConfig; got {type(config).__name__}.")
        self.config = config
        self.handle: NEFTHandle | None = None
        self._options = {"embedding": embedding, "decoder": decoder}
        self._logger = logger
        self._contiguous_shards = contiguous_shards
        self._micro_step = 0
        self._unpair: Callable[[], None] | None = None
        self._record = make_record(config, None, config.seed)

    def remove(self) -> None:
        """Take the noise off the model, whatever state training is in."""
        if self.handle is not None:
            self.handle.remove()
            self.handle = None
        if self._unpair is not None:
            self._unpair()
            self._unpair = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Attach the noise, in place of what an interrupted run may have left."""
        if self.handle is not None and self.handle.run is state:
            raise RuntimeError(self.given_twice)
        self.remove()
        left = attached_handle(model)
        if left is not None and left.run is state:
            raise RuntimeError(
                "The Trainer has another NEFTCallback already, and noise would be added twice. "
                "Give it one; NEFTSFTTrainer has its own."
            )
        if left is not None and left.run is not None:
            left.remove()
        if self.config.alpha > 0:
            check_old_log_probabilities(args)
            if args.n_gpu > 1:
                raise ValueError(
                    f"Noise cannot follow nn.DataParallel, which the Trainer uses for {args.n_gpu} "
                    "GPUs in one process. Launch with `accelerate launch` or `torchrun`, or set "
                    "CUDA_VISIBLE_DEVICES=0."
                )
        given = number_in_text(args.neftune_noise_alpha)
        if given is not None and given != self.config.alpha:
            raise ValueError(
                f"The Trainer's arguments have `{ALPHA_KEY}: {given:g}`, and NEFTCallback has "
                f"alpha {self.config.alpha:g}. Leave it out of the arguments: the callback's is "
                "the one that counts."
            )
        place = find_place(args, self._contiguous_shards)
        self.handle = attach_neft(
            model,
            self.config,
            max(state.max_steps, 1),
            data_rank=place.data_rank,
            data_world_size=place.data_world_size,
            shards=place.shards,
            seed=args.seed,
            tokenizer=processing_class,
            run=state,
            **self._options,
        )
        if self.config.pairs is not None and self.config.alpha > 0:
            self._unpair = pair_rows(args, train_dataloader, self.config.pairs)
        self._run = args, state
        self._record = make_record(self.config, self.handle.total_steps, self.handle.seed)
        if state.is_world_process_zero:
            self._logger.info("NEFT: %s", self.config.describe(state.max_steps))
            self._log_what_changed(args, state)
        saved_with(state)[type(self).__name__] = NeverRestored()
        if args.should_save:
            self.save_config(args.output_dir or ".")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """First micro-batch of an optimizer step."""
        self._set_micro_step(state, 0)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Next micro-batch of the same optimizer step."""
        self._check_fired()
        self._set_micro_step(state, self._micro_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note what noise the step had in the Trainer's state, which each checkpoint holds."""
        if self.handle is not None:
            saved_with(state)[RECORD] = {**self._record, "step": state.global_step}

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop before the first update, if there was no noise."""
        self._check_fired()

    def metrics(self) -> dict[str, float] | None:
        """Those of ``NEFTHandle.metrics``; None when not training."""
        return None if self.handle is None else self.handle.metrics()

    def save_state(self, directory: str | Path) -> None:
        """As ``save_config``, on the process that saves."""
        if self.handle is not None and self._run is not None and self._run[0].should_save:
            self.save_config(directory)

    def save_config(self, directory: str | Path) -> None:
        """Write ``neft_config.json``: every option, and what else the noise depends on.

        Args:
            directory: Where to; made if it is not there.
        """
        write_record(self._record, directory)

    def _log_what_changed(self, args: TrainingArguments, state: TrainerState) -> None:
        """Where the run goes on from a checkpoint: how the noise is not what it was there."""
        if state.global_step == 0:
            return
        checkpoint = resumed_from(args, state)
        copy = saved_with(state).get(RECORD)
        if not isinstance(copy, dict) or copy.get("step") != state.global_step:
            copy = None  # that of an older checkpoint; this one was saved without noise
        try:
            before = read_record(checkpoint, copy)
        except (OSError, ValueError, TypeError) as error:
            self._logger.warning(
                "NEFT: resumed at step %d, but %s cannot be read (%s), so it is not known "
                "whether the noise is what it was. Compare the keys with those of the run before.",
                state.global_step,
                checkpoint / CONFIG_FILE,
                error,
            )
            return
        changed = ", ".join(changes(before, self._record, self.config, state.global_step))
        if changed:
            self._logger.warning(
                "NEFT: resumed at step %d with other noise than before: %s",
                state.global_step,
                changed,
            )

    def _set_micro_step(self, state: TrainerState, micro_step: int) -> None:
        self._micro_step = micro_step
        if self.handle is not None:
            self.handle.set_step(state.global_step, micro_step)

    def _check_fired(self) -> None:
        if self.handle is None or self.handle.has_fired or self.config.alpha == 0:
            return
        self.remove()
        raise NoNoiseError(
            "The first training step ended and no noise was added: the Trainer did not call the "
            "model that the noise is attached to in training mode with gradients. Pass the "
            f"Trainer that same model, or drop NEFTCallback (and `{ALPHA_KEY}`) to train without "
            "noise."
        )
