"""Fine-tuning in a plain PyTorch loop, without a Trainer, with ``attach_neft``.

For whom:  those who write their own loop: where each call of neft-plugins goes, with gradient
           accumulation, a learning-rate schedule and saving.
Hardware:  one GPU of 16 GB or more for Qwen3-0.6B (an estimate: 0.6B parameters x 16 bytes of
           weights, gradients and Adam's state = 9.5 GB; the rest is activations), or a CPU.
Command:   python recipes/trl/plain_loop.py
           python recipes/trl/plain_loop.py --model_name_or_path MODEL --dataset_name DATASET
Settings:  batches of 16 and the dataset as in the QLoRA paper (arXiv 2305.14314); alpha 5 as the
           smallest of the NEFTune paper's (arXiv 2310.05914); learning rate 2e-5 as TRL's default
           for fine-tuning all weights. Ours, chosen and not tuned: the model and the schedules.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import islice

import torch
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from neft_plugins import NEFTConfig, attach_neft


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--alpha", type=float, default=5.0, help="alpha of the noise")
    add("--schedule", default="linear", help="how alpha changes over training")
    add("--model_name_or_path", default="Qwen/Qwen3-0.6B", help="Hub id or folder")
    add("--dataset_name", default="timdettmers/openassistant-guanaco", help="Hub id or folder")
    add("--text_column", default="text", help="the dataset's column to train on")
    add("--max_length", type=int, default=1024, help="tokens of an example, at most")
    add("--max_steps", type=int, default=500, help="optimizer steps")
    add("--batch_size", type=int, default=2, help="rows of a micro-batch")
    add("--accumulation", type=int, default=8, help="micro-batches of an optimizer step")
    add("--learning_rate", type=float, default=2e-5, help="after the warm-up")
    add("--warmup_steps", type=int, default=15, help="steps over which the learning rate rises")
    add("--seed", type=int, default=0, help="of the shuffling and the noise")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    add("--output_dir", default="runs/plain-loop", help="where the model is saved")
    return parser.parse_args()


def batches(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace
) -> Iterator[dict[str, torch.Tensor]]:
    """Padded (B, T) batches, shuffled, epoch after epoch; labels are -100 on padding."""

    def collate(rows: list[str]) -> dict[str, torch.Tensor]:
        batch = tokenizer(
            [row + tokenizer.eos_token for row in rows],
            padding=True,
            truncation=True,
            max_length=args.max_length,
            return_tensors="pt",
        )
        ids, mask = batch["input_ids"], batch["attention_mask"]
        labels = ids.masked_fill(mask == 0, -100)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    order = torch.Generator().manual_seed(args.seed)
    loader = DataLoader(
        texts,
        args.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=collate,
        generator=order,
    )
    if not len(loader):
        raise ValueError(f"{len(texts)} rows do not fill a batch of {args.batch_size}.")
    while True:
        yield from loader


def main() -> None:
    """Train, print a JSON line for each step, and save."""
    args = parse_arguments()
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=torch.float32)
    model.to(args.device).train()  # from_pretrained returns a model in eval mode: no noise
    texts = load_dataset(args.dataset_name, split="train")[args.text_column]
    micro_batches = batches(list(texts), tokenizer, args)

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    rate = get_linear_schedule_with_warmup(optimizer, args.warmup_steps, args.max_steps)
    noise = NEFTConfig(alpha=args.alpha, schedule=args.schedule, seed=args.seed)
    with attach_neft(model, noise, total_steps=args.max_steps) as neft:
        for step in range(args.max_steps):
            # The batches of one step, with their trained tokens counted: each token weighs the
            # same, in whichever micro-batch it is.
            step_batches = list(islice(micro_batches, args.accumulation))
            tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in step_batches)
            total = 0.0
            for micro_step, batch in enumerate(step_batches):
                neft.set_step(step, micro_step)
                batch = {key: value.to(args.device) for key, value in batch.items()}
                with torch.autocast(args.device, dtype=torch.bfloat16):
                    loss = model(**batch, num_items_in_batch=tokens).loss
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            record = {"step": step, "loss": total, "learning_rate": rate.get_last_lr()[0]}
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            print(json.dumps(record | neft.metrics()), flush=True)
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
