#!/usr/bin/env bash
# Several machines, joined by torchrun: put this before the command, on each of them alike.
#
# For whom:  models that one machine's GPUs do not hold, and shorter runs, where no scheduler starts
#            the launchers. With Slurm, see slurm.sh.
# Hardware:  NODES machines, all alike, with the same packages, recipe and data. HEAD is one of them
#            and lets the others reach its PORT.
# Command:   NODES=2 HEAD=10.0.0.1 recipes/multi_node/torchrun.sh \
#              neft sft --config recipes/trl/llama-3.1-8b-full-zero3.yaml \
#              --deepspeed recipes/deepspeed/zero3.json
#            NODES=2 HEAD=10.0.0.1 recipes/multi_node/torchrun.sh \
#              axolotl train recipes/axolotl/llama-3.1-8b-full-zero3-cosine.yaml
# Settings:  NODES  how many machines
#            HEAD   name or address of one of them, the same on all
#            PORT   of HEAD; unset: 29400
#            GPUS   ranks of each machine; unset: one for each of its GPUs
#            JOB    a name, the same on all; two runs at a time on one PORT need two
#            Machines need no number: torchrun deals the ranks out. Where NCCL takes the wrong
#            network, set NCCL_SOCKET_IFNAME. Ranks multiply the batch: divide the recipe's gradient
#            accumulation by NODES to keep it.

set -euo pipefail

: "${NODES:?is not set: how many machines?}"
: "${HEAD:?is not set: the name or address of one machine, the same on all}"
machines=(
  --nnodes "$NODES"
  --nproc_per_node "${GPUS:-gpu}"
  --rdzv_backend c10d
  --rdzv_endpoint "$HEAD:${PORT:-29400}"
  --rdzv_id "${JOB:-neft}"
)

case "${1:-} ${2:-}" in
  "neft sft") exec torchrun "${machines[@]}" -m neft_plugins.trl.sft "${@:3}" ;;
  "axolotl train") exec "$@" --launcher torchrun -- "${machines[@]}" ;;
  *)
    : "${1:?what to run? neft sft ..., axolotl train ..., or what torchrun takes}"
    exec torchrun "${machines[@]}" "$@"
    ;;
esac
