"""A tiny BERT and its tokenizer, in which each word is a token, for sentence-transformers."""

import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerFast

PAD = 0
HIDDEN = 32
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{number}" for number in range(60)]
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
}


def save_encoder(folder: Path, kind: type[PreTrainedModel] = BertModel, **config: Any) -> str:
    """Save a BERT of random weights, with its tokenizer.

    Args:
        folder: Where to.
        kind: With which head.
        **config: Of ``BertConfig``, beside the sizes.

    Returns:
        The folder, as a name of a model.
    """
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{word[1:-1].lower()}_token": word for word in SPECIAL}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names)
    fast.save_pretrained(folder)
    kind(BertConfig(vocab_size=len(vocabulary), **SIZES, **config)).save_pretrained(folder)
    return str(folder)


def texts(count: int, seed: int) -> list[str]:
    """Texts of 1 to 8 words, drawn at random."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(count)]
