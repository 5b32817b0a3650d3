#!/usr/bin/env bash
# Several nodes of a Slurm cluster: one launcher on each, which starts a rank for each GPU.
#
# For whom:  users of a cluster: from the top of the repository, on a file system all nodes see.
# Hardware:  the nodes and GPUs asked for below; options of sbatch before the script change them.
# Command:   sbatch recipes/multi_node/slurm.sh \
#              neft sft --config recipes/trl/llama-3.1-8b-full-zero3.yaml \
#              --deepspeed recipes/deepspeed/zero3.json
#            LAUNCHER=accelerate sbatch --nodes 4 recipes/multi_node/slurm.sh \
#              neft sft --config recipes/trl/llama-2-7b-full-paper.yaml \
#              --accelerate_config recipes/accelerate/fsdp2.yaml
#            sbatch recipes/multi_node/slurm.sh \
#              axolotl train recipes/axolotl/llama-3.1-8b-full-zero3-cosine.yaml
# Settings:  LAUNCHER  torchrun (unset) or accelerate, by the script of that name in this folder
#            GPUS      of each node; unset: what Slurm gave
#            PORT      of the first node; unset: made from the job's number, so that two jobs that
#                      share a node do not meet
#            Add your cluster's account and partition, and before `srun` what its nodes need to find
#            Python: a module, or an environment to activate.

#SBATCH --job-name=neft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log

set -euo pipefail

: "${SLURM_JOB_ID:?is not set: give this script to sbatch}"
: "${1:?what to run? neft sft ... or axolotl train ...}"
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")

export JOB=$SLURM_JOB_ID
export NODES=$SLURM_JOB_NUM_NODES
export HEAD=${hosts%%$'\n'*}
export PORT=${PORT:-$((20000 + SLURM_JOB_ID % 10000))}
export GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:?is not set: ask for --gpus-per-node, or set GPUS}}

# Each node has its own SLURM_NODEID: it is read there, not here.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec bash "$@"' launcher \
  "recipes/multi_node/${LAUNCHER:-torchrun}.sh" "$@"
