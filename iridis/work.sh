# shellcheck shell=bash disable=SC2034  # lib.sh sources this file, and owns the variables
# Inside a job: diagnostics, the record of what ran, training, evaluation.

run_job() {
    local code=0 state verdict
    remember_signals
    diagnostics
    export WANDB_MODE=${WANDB_MODE:-offline}
    if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((SLURM_CPUS_PER_TASK / (N_GPUS > 1 ? N_GPUS : 1)))}
    fi
    run_checks
    "${PYTHON[@]}" -m iridis.record begin "$RUN_DIR" --package "$PACKAGE" --folder "$RUN_FOLDER" \
        --iterations "$ITERATIONS_ASKED" -- bash "iridis/$PACKAGE/job.sh" "${PASSED[@]}" "${FLAGS[@]}"
    work || code=$?
    ((FAILED == 0)) || code=$FAILED
    # Slurm itself requeues a pre-empted job; a cancelled job is not requeued.
    if [[ $STOPPED_BY == TERM && -n ${SLURM_JOB_ID:-} ]]; then
        state=$(job_state)
        say "Slurm has sent TERM to this job; its state is $state"
        [[ $state == RUNNING ]] || REQUEUE=''
    fi
    verdict=$("${PYTHON[@]}" -m iridis.record end "$RUN_DIR" --exit_code "$code" --signal "$STOPPED_BY" \
        ${REQUEUE:+--requeue})
    if [[ $verdict == requeue && -n ${SLURM_JOB_ID:-} ]]; then
        scontrol requeue "$SLURM_JOB_ID" || fail "job $SLURM_JOB_ID could not be requeued: submit it again"
    fi
    return "$code"
}

job_state() {
    scontrol show job --oneliner "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p' || true
}

diagnostics() {
    local gpus=0
    say "$(date '+%F %T') $PACKAGE, job ${SLURM_JOB_ID:-none} on $(hostname) (${SLURM_JOB_PARTITION:-no partition})${SLURM_RESTART_COUNT:+, started again: $SLURM_RESTART_COUNT}"
    say "python: ${PYTHON[*]}"
    df -h "$SCRATCH_DIR" 2>/dev/null || true
    if [[ $N_GPUS == 0 || $DEVICE == cpu ]]; then return; fi
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
        gpus=$(nvidia-smi --list-gpus | wc -l)
    fi
    ((gpus >= N_GPUS)) ||
        fail "$gpus GPUs are visible on $(hostname), but N_GPUS=$N_GPUS; --device cpu needs none"
}

# A folder on scratch for results too large for run_N.
workspace() {
    local folder
    folder=$JOB_OUTPUTS_DIR/$(id -un)-${SLURM_JOB_ID:-local}-$PACKAGE
    mkdir -p -- "$folder"
    printf '%s\n' "$folder"
}

# ---- training ----

# The flags of main.py: the experiment, CONFIGURATION, and the flags of the command line.
training_flags() {
    TRAINING=(--experiment "$EXPERIMENT" --data_dir "$DATA_DIR" --results_base_folder "$EXPS_DIR")
    TRAINING+=(${DEVICE:+--device "$DEVICE"} ${N_LAYER:+--n_layer "$N_LAYER"} ${N_REPEAT:+--n_repeat "$N_REPEAT"})
    TRAINING+=(${ITERATIONS:+--iterations "$ITERATIONS"} ${CKPT_FREQ:+--save_checkpoint_freq "$CKPT_FREQ"})
    TRAINING+=(${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} ${ACC_STEPS:+--acc_steps "$ACC_STEPS"})
    # shellcheck disable=SC2206  # TRAINING_FLAGS, from the environment, are words
    TRAINING+=(--data_in_ram ${WANDB_PROJECT:+--wandb --wandb_project "$WANDB_PROJECT"} ${TRAINING_FLAGS:-} "${FLAGS[@]}")
}

# shellcheck disable=SC2120  # lib.sh gives it --folder
plan_training() {
    training_flags
    "${PYTHON[@]}" -m iridis.plan "$@" "${TRAINING[@]}"
}

check_training() {
    local lines
    require_writable "$CACHE_DIR"
    if [[ -n ${WANDB_PROJECT:-} ]]; then require_writable "$WANDB_DIR/wandb"; fi
    # shellcheck disable=SC2119
    lines=$(plan_training) || exit
    mapfile -t lines <<<"$lines"
    RUN_FOLDER=${lines[0]} ITERATIONS_ASKED=${lines[1]}
    require_writable "$RUN_FOLDER"
    PLAN+=("${lines[@]:2}")
    [[ ${lines[2]} != finished* || -n $IN_JOB ]] || { say "${lines[2]}; nothing to do" && exit 0; }
}

# Trains, or resumes, with N_GPUS processes; copies curves and summary to run_N.
train() {
    local command code=0
    training_flags
    command=(main.py "${TRAINING[@]}")
    # --standalone: a rendezvous on a free port, so that jobs on one node do not interfere.
    if ((N_GPUS > 1)); then
        command=(-m torch.distributed.run --standalone --nproc-per-node "$N_GPUS"
            --signals-to-handle "SIGINT,SIGHUP,SIGQUIT" "${command[@]}")
    fi
    run_training "${PYTHON[@]}" "${command[@]}" || code=$?
    if ((code == 0)) && [[ -f $RUN_FOLDER/summary.json ]]; then
        cp -- "$RUN_FOLDER/summary.json" "$RUN_FOLDER/metrics.jsonl" "$RUN_DIR"
        "${PYTHON[@]}" plot_curves.py "$RUN_FOLDER" --output "$RUN_DIR/curves.png"
    fi
    return "$code"
}

# ---- evaluation: checkpoint and folder for the results as arguments ----

evaluation_flags() {
    EVALUATION=(--data_dir "$DATA_DIR" ${DEVICE:+--device "$DEVICE"} ${EVAL_BATCH:+--batch_size "$EVAL_BATCH"})
    EVALUATION+=("${FLAGS[@]}")
}

# Perplexity: eval_<step>k.txt and eval_summary_<checkpoint>.json.
evaluate() {
    local text=$2/eval.txt number
    mkdir -p -- "$2"
    evaluation_flags
    step "${PYTHON[@]}" eval.py --checkpoint "$1" --output_dir "$2" "${EVALUATION[@]}" >"$text"
    cat -- "$text"
    ((FAILED == 0)) || return "$FAILED"
    number=$(sed -n 's/.*(step \([0-9,]*\)).*/\1/p' "$text" | head -n 1)
    number=${number//,/}
    mv -- "$text" "$2/eval_${number/%000/k}.txt"
}

# Perplexity over compute.
figure_4() {
    local published=()
    evaluation_flags
    step "${PYTHON[@]}" get_ppl_per_mac.py --checkpoint "$1" --output-dir "$2" "${EVALUATION[@]}"
    if [[ $1 == */owt2/* ]]; then published=(--published); fi
    step "${PYTHON[@]}" plot_fig4.py "$2" --output "$2/figure4_pareto.png" "${published[@]}"
}

# Router scores: raw, cascaded by position as in the released script, and cascaded by token.
figure_5() {
    evaluation_flags
    step "${PYTHON[@]}" get_router_weights.py --checkpoint "$1" --output-dir "$2" "${EVALUATION[@]}"
    step "${PYTHON[@]}" plot_fig5.py "$2" --kind raw --output "$2/figure5_raw.png"
    step "${PYTHON[@]}" plot_fig5.py "$2" --kind position_cascade --output "$2/figure5_picascade.png"
    step "${PYTHON[@]}" plot_fig5.py "$2" --kind cascade --output "$2/figure5_ptcascade.png"
}
