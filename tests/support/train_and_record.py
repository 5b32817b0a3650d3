"""What a launcher starts on each rank: ``training.train``, with its record in a file.

torchrun train_and_record.py FOLDER '{"keys": {}, "how": {}}'
"""

import json
import os
import sys
from pathlib import Path

import torch
import training

if __name__ == "__main__":
    folder, given = Path(sys.argv[1]), json.loads(sys.argv[2])
    record = training.train(str(folder / "out"), given["keys"], given["how"])
    torch.save(record, folder / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()
