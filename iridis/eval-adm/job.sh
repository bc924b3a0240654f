#!/usr/bin/env bash
#SBATCH --job-name=eval-adm
#SBATCH --partition=ecsstudents_l4
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@120
# The adaptive model of Section 5: perplexity and router scores (Figure 5) at 40k steps and at the end, perplexity
# over compute (Figure 4). If lncot-train has a checkpoint, also its perplexity.

# CONFIGURATION (each can be set in the environment)
CHECKPOINT=${CHECKPOINT:-}               # a file or a run folder; empty: adm-train's run
NAME=${NAME:-adm_v1}                     # folder in run_N for Figures 4 and 5
EARLIER=${EARLIER:-40000}                # the step of the earlier checkpoint of Figure 5
LNCOT_CHECKPOINT=${LNCOT_CHECKPOINT:-}   # empty: lncot-train's run, if there is one
N_GPUS=${N_GPUS:-1}                      # must agree with --gres above
EVAL_BATCH=${EVAL_BATCH:-8}

LIB=$(dirname -- "$0")/../lib.sh # Slurm runs a copy of this file from another folder
[[ -f $LIB ]] || LIB=${SLURM_SUBMIT_DIR:-.}/iridis/lib.sh
[[ -f $LIB ]] || LIB=${COTFORMER_REPO:-.}/iridis/lib.sh
# shellcheck source=iridis/lib.sh
. "$LIB"

checks() {
    CHECKPOINT=${CHECKPOINT:-$(folder_of adm-train)}
    require_checkpoint "$CHECKPOINT" adm-train
    LNCOT_CHECKPOINT=${LNCOT_CHECKPOINT:-$(folder_of lncot-train)}
    check_flags
}

work() {
    local steps=(end) checkpoint=$CHECKPOINT number
    evaluate "$CHECKPOINT" "$RUN_DIR"
    if [[ -f $CHECKPOINT/ckpt_$EARLIER.pt ]]; then
        steps+=("$EARLIER")
        evaluate "$CHECKPOINT/ckpt_$EARLIER.pt" "$RUN_DIR"
    else
        say "note: $CHECKPOINT has no ckpt_$EARLIER.pt: Figure 5 shows one checkpoint"
    fi
    if [[ -f $LNCOT_CHECKPOINT ]] || compgen -G "$LNCOT_CHECKPOINT/ckpt*" >/dev/null; then evaluate "$LNCOT_CHECKPOINT" "$RUN_DIR/ln-cotformer"; fi
    figure_4 "$CHECKPOINT" "$RUN_DIR/$NAME/exp4"
    for number in "${steps[@]}"; do
        [[ $number == end ]] || checkpoint=$CHECKPOINT/ckpt_$number.pt
        figure_5 "$checkpoint" "$RUN_DIR/$NAME/exp5-$number"
    done
}
run_package "$@"
