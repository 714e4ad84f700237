#!/usr/bin/env bash
# A study on the machines that Slurm gives, from a folder that they share:
#   sbatch --nodes 4 --gpus-per-node 8 --cpus-per-task 64 cluster/slurm.sh \
#     --model sasrec --data /shared/ratings.csv --name shop --storage /shared/seqtune-results
# A job that is requeued goes on with its study. symmetric-run ends every Ray on its machines when it
# is done, whosever it is: hence --exclusive.
#SBATCH --job-name=seqtune
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

export RAY_AUTH_MODE=token # in ~/.ray/auth_token, which the machines share
export RAY_USAGE_STATS_ENABLED=0
(umask 077 && ray get-auth-token --generate >/dev/null)

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on one machine do not meet
cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}

# Every machine runs this: the first becomes the head and runs the study, the others join it.
srun --kill-on-bad-exit=0 ray symmetric-run --address "$head:$port" \
  --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$cpus" -- \
  env RAY_ADDRESS="$head:$port" cluster/again.sh python tune.py "$@" &
trap 'kill -TERM $!; wait $!' TERM # two minutes before the end: the study saves itself
wait $!
