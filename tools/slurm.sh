#!/bin/bash
# Run a script of this folder on several nodes, with one process per GPU:
#   sbatch --nodes 2 --gpus-per-node 8 tools/slurm.sh train_net.py --config-file F --resume KEY VALUE
# SLURM requeues a preempted job, which then resumes; so give --resume from the first start on.
#SBATCH --job-name ssql-det
#SBATCH --ntasks-per-node 1
#SBATCH --requeue
#SBATCH --open-mode append
set -euo pipefail
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" --rdzv-backend c10d \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "${nodes[0]}:${PORT:-29500}" tools/"$1" "${@:2}"
