"""An embedding model from MPNet and NLI triplets, through sentence-transformers and NEFTCallback.

For whom:  retrieval, clustering and similarity of texts: a SentenceTransformer, whose loss sees
           each text with noise of its own. For a CrossEncoder or SparseEncoder, take its trainer.
Hardware:  one GPU of 8 GB or more (an estimate: 0.11B parameters x 16 bytes of weights, gradients
           and Adam's state = 1.8 GB; the rest is activations, of 48 texts of up to 128 tokens), or
           a CPU.
Command:   python recipes/sentence_transformers/mpnet_nli.py
           python recipes/sentence_transformers/mpnet_nli.py --model_name_or_path MODEL \
               --dataset_name DATASET --dataset_config CONFIG
           (options: those of SentenceTransformerTrainingArguments, the data's and the noise's)
Settings:  model, data, batches of 16 without duplicates, learning rate and warm-up as in the
           training overview of the sentence-transformers documentation. Ours, chosen and not tuned:
           the noise. It is relative because sentences are short: the NEFTune paper (arXiv
           2310.05914) has texts of up to 512 tokens, and its alpha 5 would be 5 times as strong on
           20 tokens.
"""

from dataclasses import asdict, dataclass, field

from datasets import load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import HfArgumentParser

from neft_plugins import NEFTCallback, NEFTConfig

DEFAULTS = {
    # The noise: 10 % of each token's embedding, and less and less of it
    "neftune_noise_alpha": 0.1,
    "neft_scale": "relative",
    "neft_schedule": "linear",
    # The training
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "batch_sampler": "no_duplicates",
    "learning_rate": 2e-5,
    "warmup_steps": 0.1,
    "bf16": True,
    "seed": 0,
    # What to see and keep
    "output_dir": "runs/mpnet-nli",
    "logging_steps": 100,
    "save_strategy": "epoch",
    "report_to": "none",
}


@dataclass
class ModelAndData:
    """What is trained on what."""

    model_name_or_path: str = field(
        default="microsoft/mpnet-base", metadata={"help": "Hub id or folder."}
    )
    dataset_name: str = field(
        default="sentence-transformers/all-nli", metadata={"help": "Hub id or folder."}
    )
    dataset_config: str | None = field(
        default="triplet", metadata={"help": "Name of the dataset's part; its columns are texts."}
    )
    max_length: int = field(default=128, metadata={"help": "Tokens of a text, at most."})


@dataclass
class NoiseArguments:
    """The noise's keys beside ``neftune_noise_alpha``; docs/keys.md has more to add here."""

    neft_distribution: str = field(
        default="uniform", metadata={"help": "Distribution of the noise."}
    )
    neft_scale: str = field(default="absolute", metadata={"help": "What alpha is relative to."})
    neft_schedule: str = field(
        default="constant", metadata={"help": "How alpha changes over training."}
    )


def main(
    what: ModelAndData, noise: NoiseArguments, training: SentenceTransformerTrainingArguments
) -> None:
    """Train and save."""
    config = NEFTConfig.from_keys(
        {"neftune_noise_alpha": training.neftune_noise_alpha, **asdict(noise)}
    )
    training.neftune_noise_alpha = None  # the built-in's, which this trainer cannot use
    model = SentenceTransformer(what.model_name_or_path)
    model.max_seq_length = what.max_length
    trainer = SentenceTransformerTrainer(
        model=model,
        args=training,
        train_dataset=load_dataset(what.dataset_name, what.dataset_config, split="train"),
        loss=MultipleNegativesRankingLoss(model),
    )
    if config is not None:
        NEFTCallback(config).add_to(trainer)  # first, so that trackers log the neft/* metrics
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)


if __name__ == "__main__":
    parser = HfArgumentParser((ModelAndData, NoiseArguments, SentenceTransformerTrainingArguments))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_into_dataclasses())
