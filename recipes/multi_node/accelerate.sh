#!/usr/bin/env bash
# Several machines, joined by accelerate: put this before the command, on each with its NODE_RANK.
#
# For whom:  models that one machine's GPUs do not hold, and shorter runs, where no scheduler starts
#            the launchers. With Slurm, see slurm.sh.
# Hardware:  NODES machines of GPUS GPUs, all alike, with the same packages, recipe and data. The
#            others must reach the PORT of HEAD, which is the one whose NODE_RANK is 0.
# Command:   NODES=2 GPUS=8 HEAD=10.0.0.1 NODE_RANK=0 recipes/multi_node/accelerate.sh \
#              neft sft --config recipes/trl/llama-2-7b-full-paper.yaml \
#              --accelerate_config recipes/accelerate/fsdp2.yaml
#            NODES=2 GPUS=8 HEAD=10.0.0.1 NODE_RANK=0 recipes/multi_node/accelerate.sh \
#              axolotl train recipes/axolotl/llama-3.1-8b-full-zero3-cosine.yaml
# Settings:  NODES      how many machines
#            GPUS       of each machine
#            HEAD       name or address of the first machine, the same on all
#            NODE_RANK  0 on the first machine, 1 on the second, and so on
#            PORT       of HEAD; unset: 29500
#            Where NCCL takes the wrong network, set NCCL_SOCKET_IFNAME. Ranks multiply the batch:
#            divide the recipe's gradient accumulation by NODES to keep it.

set -euo pipefail

: "${NODES:?is not set: how many machines?}"
: "${GPUS:?is not set: how many GPUs of each machine?}"
: "${HEAD:?is not set: the name or address of the first machine, the same on all}"
: "${NODE_RANK:?is not set: 0 on the first machine, 1 on the second, and so on}"
machines=(
  --num_machines "$NODES"
  --num_processes "$((NODES * GPUS))"
  --machine_rank "$NODE_RANK"
  --main_process_ip "$HEAD"
  --main_process_port "${PORT:-29500}"
  # Not DeepSpeed's own launcher, which logs in to the other machines by ssh.
  --deepspeed_multinode_launcher standard
)

case "${1:-} ${2:-}" in
  "neft sft") exec "$@" "${machines[@]}" ;;
  # How to shard, the YAML says; without a config accelerate takes one GPU for no distribution.
  "axolotl train") exec "$@" --launcher accelerate -- --multi_gpu "${machines[@]}" ;;
  *)
    : "${1:?what to run? neft sft ..., axolotl train ..., or what accelerate launch takes}"
    exec accelerate launch "${machines[@]}" "$@"
    ;;
esac
