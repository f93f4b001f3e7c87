#!/usr/bin/env bash
# Several machines, each with GPUs of its own. Give it on every one of them, with what follows after `mitigate`:
#
#   NODES=2 RANK=0 FIRST=10.0.0.1 GPUS=8 bash recipes/accelerate/multi_node.sh run recipes/finetuned.yaml models.target=...
#   NODES=2 RANK=1 FIRST=10.0.0.1 GPUS=8 bash recipes/accelerate/multi_node.sh run recipes/finetuned.yaml models.target=...
#
# NODES machines, this one is number RANK, FIRST is the address of number 0; GPUS of this machine (without any: processes).
# Models, documents and out= lie where all machines see them under the same path. Documents, references and the steps of
# unlearning are shared out among all processes; each holds the whole model. An interrupted run goes on when the same is
# given again, also with another number of processes. Under SLURM: slurm.sbatch.
#
# Tested: two such launches beside each other on one machine's CPUs. Not tested: GPUs, a network.
set -euo pipefail
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes "${NODES:?}" --node_rank "${RANK:?}" --nproc_per_node "${GPUS:?}" \
  --master_addr "${FIRST:?}" --master_port "${PORT:-29500}" -m mitigate "$@"
