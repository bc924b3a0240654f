# shellcheck shell=bash disable=SC2034  # lib.sh sources this file, and owns the variables
# Submission: options of sbatch, the run_N of each job, following a log.

# The value of an #SBATCH line of the package.
directive() { sed -n "s/^#SBATCH --$1=//p" "$PACKAGE_DIR/job.sh" | head -n 1; }

# The value that sbatch will use for an option: from SBATCH_FLAGS, its environment, or the #SBATCH lines.
option() {
    local flag value=''
    for flag in "${SBATCH_FLAGS[@]}"; do [[ $flag != "--$1="* ]] || value=${flag#*=}; done
    case $1 in
    partition) value=${value:-${SBATCH_PARTITION:-}} ;;
    time) value=${value:-${SBATCH_TIMELIMIT:-}} ;;
    gres) value=${value:-${SBATCH_GRES:-}} ;;
    esac
    printf '%s\n' "${value:-$(directive "$1")}"
}

show_plan() {
    say "$1"
    printf '  %s\n' "${PLAN[@]}"
}

# The first free run_N; mkdir is atomic, so simultaneous submissions get different ones.
new_run_dir() {
    local number=1
    require_writable "$PACKAGE_DIR"
    until mkdir -- "$PACKAGE_DIR/run_$number" 2>/dev/null; do
        [[ -d $PACKAGE_DIR/run_$number ]] || fail "cannot make $PACKAGE_DIR/run_$number"
        ((number += 1))
    done
    RUN_DIR=$PACKAGE_DIR/run_$number
}

# If the #SBATCH lines ask for more time than the partition allows, ask for its limit.
keep_to_limit() {
    local limit partition
    partition=$(option partition)
    limit=$(sinfo --noheader --partition="$partition" --format=%l 2>/dev/null | head -n 1) || true
    if [[ " ${SBATCH_FLAGS[*]}" == *" --time="* || -n ${SBATCH_TIMELIMIT:-} || ! $limit =~ [0-9] ]]; then return; fi
    if (($(seconds "$(directive time)") > $(seconds "$limit"))); then SBATCH_FLAGS+=("--time=$limit"); fi
}

# Seconds of Slurm's minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes[:seconds].
seconds() {
    local days=0 parts
    IFS=: read -ra parts <<<"${1#*-}"
    if [[ $1 == *-* ]]; then
        days=${1%%-*}
    elif ((${#parts[@]} < 3)); then
        parts=(0 "${parts[@]}")
    fi
    printf '%s\n' "$(((days * 24 + 10#${parts[0]}) * 3600 + 10#${parts[1]:-0} * 60 + 10#${parts[2]:-0}))"
}

submit() {
    local gres partition
    command -v sbatch >/dev/null ||
        refuse "there is no Slurm on $(hostname) (no sbatch); --local runs the package here"
    gres=$(option gres)
    [[ $gres =~ ^(gpu:[0-9]+)?$ ]] || refuse "--gres=$gres: ask for gpu:N, without a type, which Slurm may not know"
    [[ ${gres#gpu:} == "$N_GPUS" || -z $gres && $N_GPUS == 0 ]] ||
        refuse "N_GPUS=$N_GPUS, but the job asks for ${gres:-no GPU}: give equal numbers, or --n_gpus"
    if [[ " ${SBATCH_FLAGS[*]}" != *" --partition="* && -z ${SBATCH_PARTITION:-} ]]; then
        partition=$(cluster_partition "$(directive partition)")
        [[ -z $partition ]] || SBATCH_FLAGS+=("--partition=$partition")
    fi
    keep_to_limit
    if [[ -n ${NOTIFY_EMAIL:-} ]]; then SBATCH_FLAGS+=("--mail-type=END,FAIL" "--mail-user=$NOTIFY_EMAIL"); fi
    PLAN+=("$(option partition), ${gres:-no GPU}, $(option time), mail to ${NOTIFY_EMAIL:-nobody}")
    require_writable "$PACKAGE_DIR"
    run_checks
    # Ask Slurm before anything is written.
    local answer
    answer=$(sbatch --test-only "${SBATCH_FLAGS[@]}" "$PACKAGE_DIR/job.sh" 2>&1) ||
        refuse "Slurm refuses this job: $(paste -sd' ' <<<"${answer//sbatch: error: /}")"
    if [[ -n $DRY_RUN ]]; then
        show_plan "would submit $CHAIN job(s) of $PACKAGE:"
        say "  sbatch ${SBATCH_FLAGS[*]} iridis/$PACKAGE/job.sh ${PASSED[*]} ${FLAGS[*]}"
        return
    fi
    show_plan "submitting $PACKAGE:"
    local jobs=() job='' number
    for ((number = 1; number <= CHAIN; number++)); do
        submit_one ${job:+"--dependency=afterany:$job"}
        jobs+=("$job")
    done
    say "squeue --me shows the queue, bash iridis/status.sh the runs; scancel ${jobs[*]} ends them"
    if [[ -n $FOLLOW ]]; then follow "${jobs[0]}" "${RUN_DIRS[0]}"; fi
}

# Submits one job in a run_N of its own; sets `job`.
submit_one() {
    new_run_dir
    RUN_DIRS+=("$RUN_DIR")
    export COTFORMER_RUN_DIR=$RUN_DIR COTFORMER_PACKAGE=$PACKAGE
    job=$(sbatch --parsable --export=ALL --open-mode=append --job-name="$PACKAGE" \
        --output="$RUN_DIR/slurm_%j.out" --error="$RUN_DIR/slurm_%j.err" \
        ${REQUEUE:+--requeue} "${SBATCH_FLAGS[@]}" "$@" "$PACKAGE_DIR/job.sh" "${PASSED[@]}" "${FLAGS[@]}") || {
        rmdir -- "$RUN_DIR"
        fail "sbatch refused the job"
    }
    job=${job%%;*}
    "${PYTHON[@]}" -m iridis.record submit "$RUN_DIR" --job "$job" --folder "$RUN_FOLDER" --iterations "$ITERATIONS_ASKED" \
        -- bash "iridis/$PACKAGE/job.sh" "${PASSED[@]}" "${FLAGS[@]}" || true # the job runs without it too
    say "job $job: ${RUN_DIR#"$COTFORMER_REPO"/}/slurm_$job.out"
}

# Show the log of a job until it ends; fail if it fails.
follow() {
    local state=PENDING unknown=0
    say "following job $1; Ctrl-C stops following; the job keeps running"
    tail --lines=+1 --quiet -F "$2/slurm_$1.out" "$2/slurm_$1.err" 2>/dev/null &
    # shellcheck disable=SC2064  # as it is now
    trap "kill $!" EXIT
    while [[ $state =~ ^(PENDING|RUNNING|COMPLETING|CONFIGURING|SUSPENDED|REQUEUED|)$ ]] && ((unknown < 30)); do
        sleep 2
        state=$(SLURM_JOB_ID=$1 job_state)
        if [[ -n $state ]]; then unknown=0; else ((unknown += 1)); fi
    done
    sleep 1
    [[ -n $state ]] || fail "Slurm does not know job $1 any more"
    [[ $state == COMPLETED ]] || fail "job $1 is $state"
}
