#!/bin/bash
# Train on the GPUs of several SLURM nodes; requeued and resumed when the time limit is near.
#
#   sbatch configs/accelerate/slurm.sh configs/decoder.yaml data.manifest=manifest.json
#
# Submit from the checkout, in an environment where `accelerate` is found. The checkout, the data and the run folder are
# on a file system that all nodes share. Adapt the header to your cluster.
#SBATCH --job-name=sammed3d
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -u
config=$1
shift
main=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
processes=$((SLURM_JOB_NUM_NODES * SLURM_GPUS_ON_NODE))

# Five minutes before the time limit. The job starts again from its last checkpoint (checkpoint.every_steps).
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1

# One launcher per node (srun's task); it starts one process per GPU. If one launcher fails, srun ends the others.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file configs/accelerate/several_nodes.yaml \
    --num_machines "$SLURM_JOB_NUM_NODES" --machine_rank "$SLURM_NODEID" --num_processes "$0" \
    --main_process_ip "$1" --main_process_port "$2" finetune.py --config "${@:3}"' \
    "$processes" "$main" "$port" "$config" "$@" &
step=$!
wait "$step" # returns early when USR1 arrives
code=$?
while kill -0 "$step" 2>/dev/null; do
    wait "$step"
    code=$?
done
exit "$code"
