#!/usr/bin/env bash
#SBATCH --job-name=gpu_test
#SBATCH --partition=ecsstudents_l4
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:1
#SBATCH --mem=16G
#SBATCH --time=00:10:00
# Check a node: driver, memory, bf16 matrix product, all-reduce over its GPUs, speed of scratch and of the local
# disk. Writes run_N/gpu_test.json. --n_gpus 2 asks for two GPUs.

# CONFIGURATION (each can be set in the environment)
N_GPUS=${N_GPUS:-1} # must agree with --gres above

LIB=$(dirname -- "$0")/../lib.sh # Slurm runs a copy of this file from another folder
[[ -f $LIB ]] || LIB=${SLURM_SUBMIT_DIR:-.}/iridis/lib.sh
[[ -f $LIB ]] || LIB=${COTFORMER_REPO:-.}/iridis/lib.sh
# shellcheck source=iridis/lib.sh
. "$LIB"

checks() { PLAN+=("smoke test of a node"); }
work() {
    local command=(-m torch.distributed.run --standalone --nproc-per-node "$N_GPUS" iridis/gpu_test/test_gpu.py)
    step "${PYTHON[@]}" "${command[@]}" ${DEVICE:+--device "$DEVICE"} --output "$RUN_DIR/gpu_test.json" \
        --disk "$SCRATCH_DIR" --disk "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}" "${FLAGS[@]}"
}
run_package "$@"
