#!/usr/bin/env bash
#SBATCH --job-name=base-train
#SBATCH --partition=ecsstudents_l4
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --gres=gpu:2
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
# An experiment of Table 1: bash iridis/base-train/job.sh --row cotformer-12x5, or any other experiment of
# config/experiments.py: --row table6/pause-24

# CONFIGURATION (each can be set in the environment)
EXPERIMENT=${EXPERIMENT:-table1/standard-12} # in config/experiments.py; --row names another
N_GPUS=${N_GPUS:-2} # must agree with --gres above
N_LAYER=${N_LAYER:-}       # empty: the experiment's
N_REPEAT=${N_REPEAT:-}
ITERATIONS=${ITERATIONS:-}
BATCH_SIZE=${BATCH_SIZE:-16}  # micro-batch size; on an L4 at most 16 for 12 layers, 8 for 24 x 5
ACC_STEPS=${ACC_STEPS:-8}   # micro-batches per step, split across GPUs: BATCH_SIZE x ACC_STEPS = 128
CKPT_FREQ=${CKPT_FREQ:-2000}
WANDB_PROJECT=${WANDB_PROJECT-rcotformer} # offline; empty: no W&B

LIB=$(dirname -- "$0")/../lib.sh # Slurm runs a copy of this file from another folder
[[ -f $LIB ]] || LIB=${SLURM_SUBMIT_DIR:-.}/iridis/lib.sh
[[ -f $LIB ]] || LIB=${COTFORMER_REPO:-.}/iridis/lib.sh
# shellcheck source=iridis/lib.sh
. "$LIB"

checks() { check_training; }
work() { train; }
run_package "$@"
