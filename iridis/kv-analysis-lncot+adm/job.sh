#!/usr/bin/env bash
#SBATCH --job-name=kv-analysis-lncot+adm
#SBATCH --partition=ecsstudents_l4
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@120
# KV compression of LN-CoTFormer and ADM (analysis.kv_compression): spectra, effective ranks, attention entropy. Figures and numbers in run_N/ln-cotformer and run_N/adm.

# CONFIGURATION (each can be set in the environment)
LNCOT_CHECKPOINT=${LNCOT_CHECKPOINT:-} # empty: lncot-train's run
ADM_CHECKPOINT=${ADM_CHECKPOINT:-}     # empty: adm-train's run
N_GPUS=${N_GPUS:-1}                    # must agree with --gres above
EVAL_BATCH=${EVAL_BATCH:-8}

LIB=$(dirname -- "$0")/../lib.sh # Slurm runs a copy of this file from another folder
[[ -f $LIB ]] || LIB=${SLURM_SUBMIT_DIR:-.}/iridis/lib.sh
[[ -f $LIB ]] || LIB=${COTFORMER_REPO:-.}/iridis/lib.sh
# shellcheck source=iridis/lib.sh
. "$LIB"

checks() {
    LNCOT_CHECKPOINT=${LNCOT_CHECKPOINT:-$(folder_of lncot-train)}
    ADM_CHECKPOINT=${ADM_CHECKPOINT:-$(folder_of adm-train)}
    require_checkpoint "$LNCOT_CHECKPOINT" lncot-train
    require_checkpoint "$ADM_CHECKPOINT" adm-train
    check_flags
}

work() {
    evaluation_flags
    step "${PYTHON[@]}" -m analysis.kv_compression --checkpoint "$LNCOT_CHECKPOINT" \
        --output_dir "$RUN_DIR/ln-cotformer" "${EVALUATION[@]}"
    step "${PYTHON[@]}" -m analysis.kv_compression --checkpoint "$ADM_CHECKPOINT" \
        --output_dir "$RUN_DIR/adm" "${EVALUATION[@]}"
}
run_package "$@"
