"""Train a tiny Llama for a few steps on this rank, and save the noise of every micro-batch.

torchrun --nproc_per_node 2 train_and_record.py OUTPUT ACCUMULATION
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from helpers import recorded_passes, tiny_llama
from transformers import Trainer, TrainingArguments

from neft_plugins import NEFTCallback, NEFTConfig

ROWS, TOKENS, HIDDEN = 32, 24, 256


def main(output: Path, accumulation: int) -> None:
    torch.manual_seed(0)
    model = tiny_llama(hidden_size=HIDDEN)
    ids = torch.randint(3, 64, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output),
            max_steps=2,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            seed=7,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
        callbacks=[NEFTCallback(NEFTConfig(alpha=5.0, distribution="gaussian"))],
    )
    with recorded_passes(model) as passes:
        trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    record = {"noise": [p.noise for p in passes], "ids": [p.ids for p in passes], "losses": losses}
    torch.save(record, output / f"rank{os.environ.get('RANK', '0')}.pt")
    trainer.accelerator.wait_for_everyone()  # see the end of neft_plugins.trl.sft.main
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
