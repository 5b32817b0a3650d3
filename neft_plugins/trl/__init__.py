"""NEFTSFTConfig and NEFTSFTTrainer: TRL's supervised fine-tuning with noisy embeddings."""

from neft_plugins.trl.config import NEFTSFTConfig
from neft_plugins.trl.trainer import NEFTSFTTrainer

__all__ = ["NEFTSFTConfig", "NEFTSFTTrainer"]
