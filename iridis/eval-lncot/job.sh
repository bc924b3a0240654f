#!/usr/bin/env bash
#SBATCH --job-name=eval-lncot
#SBATCH --partition=ecsstudents_l4
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
# Perplexity of LN-CoTFormer (Table 2) on the full validation set, with its 95 % interval:
# run_N/eval_<checkpoint>.txt and eval_summary_<checkpoint>.json.

# CONFIGURATION (each can be set in the environment)
CHECKPOINT=${CHECKPOINT:-} # a file or a run folder; empty: lncot-train's run
N_GPUS=${N_GPUS:-1}         # must agree with --gres above
EVAL_BATCH=${EVAL_BATCH:-8}

LIB=$(dirname -- "$0")/../lib.sh # Slurm runs a copy of this file from another folder
[[ -f $LIB ]] || LIB=${SLURM_SUBMIT_DIR:-.}/iridis/lib.sh
[[ -f $LIB ]] || LIB=${COTFORMER_REPO:-.}/iridis/lib.sh
# shellcheck source=iridis/lib.sh
. "$LIB"

checks() {
    CHECKPOINT=${CHECKPOINT:-$(folder_of lncot-train)}
    require_checkpoint "$CHECKPOINT" lncot-train
    check_flags
}

work() { evaluate "$CHECKPOINT" "$RUN_DIR"; }
run_package "$@"
