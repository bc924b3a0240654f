#!/usr/bin/env bash
#SBATCH --job-name=cot-res-train
#SBATCH --partition=ecsstudents_l4
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --gres=gpu:2
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
# CoTFormer with reserved layers, 2 -> 21x5 -> 1: Table 2. 40k steps on 2 x L4; several jobs of 24 hours, each of
# which resumes from the last checkpoint.

# CONFIGURATION (each can be set in the environment)
EXPERIMENT=${EXPERIMENT:-table2/cotformer-reserved} # in config/experiments.py
N_GPUS=${N_GPUS:-2} # must agree with --gres above
N_LAYER=${N_LAYER:-}       # empty: the experiment's
N_REPEAT=${N_REPEAT:-}
ITERATIONS=${ITERATIONS:-}
BATCH_SIZE=${BATCH_SIZE:-8}  # micro-batch size; at most 8 for 24 layers x 5 on an L4
ACC_STEPS=${ACC_STEPS:-16}   # micro-batches per step, split across GPUs: BATCH_SIZE x ACC_STEPS = 128
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
