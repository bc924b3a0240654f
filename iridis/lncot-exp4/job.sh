#!/usr/bin/env bash
#SBATCH --job-name=lncot-exp4
#SBATCH --partition=ecsstudents_l4
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
# Figure 4: perplexity over compute of the adaptive LN-CoTFormer, router against fixed depth. Resumes after an
# interrupted job. Writes run_N/exp4/figure4_pareto.png and its numbers.

# CONFIGURATION (each can be set in the environment)
CHECKPOINT=${CHECKPOINT:-} # a file or a run folder; empty: adm-train's run
N_GPUS=${N_GPUS:-1}         # must agree with --gres above
EVAL_BATCH=${EVAL_BATCH:-8}

LIB=$(dirname -- "$0")/../lib.sh # Slurm runs a copy of this file from another folder
[[ -f $LIB ]] || LIB=${SLURM_SUBMIT_DIR:-.}/iridis/lib.sh
[[ -f $LIB ]] || LIB=${COTFORMER_REPO:-.}/iridis/lib.sh
# shellcheck source=iridis/lib.sh
. "$LIB"

checks() {
    CHECKPOINT=${CHECKPOINT:-$(folder_of adm-train)}
    require_checkpoint "$CHECKPOINT" adm-train
    check_flags
}

work() { figure_4 "$CHECKPOINT" "$RUN_DIR/exp4"; }
run_package "$@"
