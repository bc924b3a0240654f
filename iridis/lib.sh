# shellcheck shell=bash
# What all job packages share: their flags, checks, submission, and what happens inside a job.
#
# A package sets its CONFIGURATION, sources this file, defines `work` (what it does in the job) and, where
# something has to be there first, `checks`, and ends with `run_package "$@"`. iridis/job-*.example are to copy.

set -euo pipefail

# shellcheck source=iridis/env.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
# shellcheck source=iridis/attend.sh
. "$COTFORMER_REPO/iridis/attend.sh"

N_GPUS=${N_GPUS:-0}
DEVICE=${DEVICE:-} # cpu: without GPUs
FLAGS=()        # for the Python script of the package
SBATCH_FLAGS=() # for sbatch, over the #SBATCH lines of the package
PASSED=()       # what the job itself is to know of our own flags
PLAN=()         # lines that say what is about to be done
RUN_DIR=''      # iridis/<package>/run_N
RUN_FOLDER=''   # of a training run: where its checkpoints are
ITERATIONS_ASKED=''
RUN_DIRS=()     # those of a chain
CHAIN=1 DRY_RUN='' LOCAL='' FOLLOW='' REQUEUE='' FOLDER_ONLY=''

# Slurm runs a copy of a package's script, which lies elsewhere.
if [[ -f $(dirname -- "$0")/../lib.sh ]]; then
    IN_JOB=''
    PACKAGE=$(basename -- "$(cd -- "$(dirname -- "$0")" && pwd)")
else
    IN_JOB=1
    PACKAGE=${COTFORMER_PACKAGE:-${SLURM_JOB_NAME:-}}
fi
PACKAGE_DIR=$COTFORMER_REPO/iridis/$PACKAGE

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2 && exit 1; }
refuse() { printf 'error: %s\n' "$*" >&2 && exit 2; }

usage() {
    cat <<END
bash iridis/$PACKAGE/job.sh [options] [flags of the Python script]

  --dry-run          say what would be submitted, and stop
  --local            run it here, without Slurm
  --follow           show the job's log until it ends
  --chain N          submit N jobs, each of which goes on when the one before has ended
  --requeue          the job queues itself again until its run is complete
  --n_gpus N         so many GPUs, instead of N_GPUS=$N_GPUS
  --device cpu       without GPUs
  --row NAME         the row of config/experiments.py to train; table1/ where NAME has no slash
  --folder           print the folder of the training run, and stop
  --partition, --account, --time, --mem, --cpus-per-task, --qos, --nodelist, --exclude, --constraint,
  --reservation, --dependency, --signal, --gres, --job-name
                     as for sbatch; they replace the #SBATCH lines of the package

All other flags go to the Python script. The CONFIGURATION at the top of $PACKAGE/job.sh can be set in the
environment: BATCH_SIZE=4 bash iridis/$PACKAGE/job.sh. So can TRAINING_FLAGS, flags for all training runs,
which evaluations then find.
END
}

read_flags() {
    local flag value
    while (($#)); do
        flag=${1%%=*} value=''
        case $flag in
        --chain | --n_gpus | --row | --device | --partition | --account | --time | --mem | --cpus-per-task | --qos | --nodelist | \
            --exclude | --constraint | --reservation | --dependency | --signal | --gres | --job-name)
            if [[ $1 == *=* ]]; then value=${1#*=}; elif (($# > 1)); then value=$2 && shift; fi
            [[ -n $value ]] || refuse "$flag needs a value"
            ;;
        esac
        case $flag in
        --dry-run) DRY_RUN=1 ;;
        --local) LOCAL=1 ;;
        --follow) FOLLOW=1 ;;
        --folder) FOLDER_ONLY=1 ;;
        --requeue) REQUEUE=1 && PASSED+=(--requeue) ;;
        --chain) CHAIN=$value ;;
        --row)
            [[ $value == */* ]] || value=table1/$value
            EXPERIMENT=$value && PASSED+=(--row "$value")
            ;;
        --device) DEVICE=$value && PASSED+=(--device "$value") ;;
        --n_gpus) N_GPUS=$value && PASSED+=(--n_gpus "$value") && SBATCH_FLAGS+=("--gres=gpu:$value") ;;
        -h | --help) usage && exit 0 ;;
        --partition | --account | --time | --mem | --cpus-per-task | --qos | --nodelist | --exclude | --constraint | \
            --reservation | --dependency | --signal | --gres | --job-name) SBATCH_FLAGS+=("$flag=$value") ;;
        *) FLAGS+=("$1") ;;
        esac
        shift
    done
    [[ $N_GPUS =~ ^[0-9]+$ ]] || refuse "N_GPUS=$N_GPUS is not a number of GPUs"
    [[ $CHAIN =~ ^[1-9][0-9]*$ ]] || refuse "--chain $CHAIN: how many jobs, at least 1"
    [[ -z $REQUEUE || $CHAIN == 1 ]] || refuse "--chain and --requeue are two ways to the same end: give one"
}

# What a package ends with.
run_package() {
    read_flags "$@"
    cd -- "$COTFORMER_REPO"
    if [[ -n $IN_JOB ]]; then make_folders; fi
    find_python
    if [[ -n $FOLDER_ONLY ]]; then
        plan_training --folder
    elif [[ -n $IN_JOB ]]; then
        RUN_DIR=${COTFORMER_RUN_DIR:-}
        unset COTFORMER_RUN_DIR COTFORMER_PACKAGE
        if [[ -z $RUN_DIR ]]; then
            say "note: submit with \`bash iridis/$PACKAGE/job.sh\`: it checks first, and puts the log into run_N"
            # One that was requeued has its run_N already.
            RUN_DIR=$(grep -ls "\"job\": \"$SLURM_JOB_ID\"" "$PACKAGE_DIR"/run_*/run.json | tail -n 1) || true
            RUN_DIR=${RUN_DIR%/run.json}
            [[ -n $RUN_DIR ]] || new_run_dir
        fi
        run_job
    elif [[ -n $LOCAL ]]; then
        [[ $CHAIN == 1 && -z $REQUEUE ]] || refuse "--chain and --requeue are of a queue; --local has none"
        run_checks
        if [[ -n $DRY_RUN ]]; then show_plan "would run here:" && return; fi
        new_run_dir
        make_folders
        find_python
        show_plan "running here, with its log in $RUN_DIR/local.log:"
        exec > >(tee -ai "$RUN_DIR/local.log") 2>&1
        run_job
    else
        submit
    fi
}

# ---- checks -------------------------------------------------------------------------------------------------

# Sets PYTHON, the command of the environment that env.sh names.
find_python() {
    local there folder
    # shellcheck disable=SC2086  # words
    if [[ -n ${CLUSTER_MODULES:-} ]]; then module load $CLUSTER_MODULES; fi
    case $COTFORMER_ENV in
    conda) there=$CONDA_ENV_PREFIX/bin/python && PYTHON=("$there") ;;
    venv) there=$VENV_DIR/bin/python && PYTHON=("$there") ;;
    apptainer)
        there=$APPTAINER_IMAGE
        PYTHON=(apptainer exec --nv)
        # What is not there cannot be bound.
        for folder in "$COTFORMER_REPO" "$SCRATCH_DIR" "$DATA_DIR" "$EXPS_DIR" "$JOB_OUTPUTS_DIR" "$CACHE_DIR" \
            "${CHECKPOINT:-}" "${SLURM_TMPDIR:-}"; do
            if [[ -e $folder ]]; then PYTHON+=(--bind "$folder"); fi
        done
        PYTHON+=("$APPTAINER_IMAGE" python3)
        command -v apptainer >/dev/null || fail "there is no apptainer on $(hostname); choose another COTFORMER_ENV"
        ;;
    *) refuse "COTFORMER_ENV=$COTFORMER_ENV; choose from conda, venv, apptainer" ;;
    esac
    [[ -e $there ]] ||
        fail "there is no $there on $(hostname): make the environment (README, Cluster), or name another one in iridis/env.local.sh"
    "${PYTHON[@]}" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' ||
        fail "$there has no torch: install requirements.txt into it (README, Cluster)"
}

make_folders() {
    require_writable "$SCRATCH_DIR"
    mkdir -p -- "$EXPS_DIR" "$CACHE_DIR" "$JOB_OUTPUTS_DIR"
}

run_checks() {
    if [[ $(type -t checks) == function ]]; then checks; fi
}

# That a folder can be written, or made: nothing is made before a job runs.
require_writable() {
    local there=$1
    while [[ ! -e $there ]]; do there=$(dirname -- "$there"); done
    [[ -d $there && -w $there ]] ||
        fail "cannot write $1; name another folder in iridis/env.local.sh (SCRATCH_DIR, DATA_DIR, EXPS_DIR, ...)"
}

# The checkpoint that an evaluation reads, a file or a run's folder.
require_checkpoint() {
    [[ -f $1 ]] || compgen -G "$1/ckpt*" >/dev/null ||
        fail "there is no checkpoint in $1: train it first (bash iridis/$2/job.sh), or set CHECKPOINT"
    PLAN+=("checkpoint: $1")
}

# The folder of the run that another package trains, under the same environment.
folder_of() { env -u EXPERIMENT bash "$COTFORMER_REPO/iridis/$1/job.sh" --folder; }

# Flags that are meant for a script that works on a run, refused here instead of in the job.
check_flags() { "${PYTHON[@]}" -m iridis.plan --flags-only "${FLAGS[@]}" || exit; }

# ---- submission ---------------------------------------------------------------------------------------------

# The value of an #SBATCH line of the package.
directive() { sed -n "s/^#SBATCH --$1=//p" "$PACKAGE_DIR/job.sh" | head -n 1; }

# The option as sbatch will take it: from SBATCH_FLAGS, its environment, the head.
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

# The first run_N that nobody else has: mkdir decides between submissions at the same moment.
new_run_dir() {
    local number=1
    require_writable "$PACKAGE_DIR"
    until mkdir -- "$PACKAGE_DIR/run_$number" 2>/dev/null; do
        [[ -d $PACKAGE_DIR/run_$number ]] || fail "cannot make $PACKAGE_DIR/run_$number"
        ((number += 1))
    done
    RUN_DIR=$PACKAGE_DIR/run_$number
}

# Where the partition allows less time than the head asks for, all that it allows.
keep_to_limit() {
    local limit partition
    partition=$(option partition)
    limit=$(sinfo --noheader --partition="$partition" --format=%l 2>/dev/null | head -n 1) || true
    if [[ " ${SBATCH_FLAGS[*]}" == *" --time="* || -n ${SBATCH_TIMELIMIT:-} || ! $limit =~ [0-9] ]]; then return; fi
    if (($(seconds "$(directive time)") > $(seconds "$limit"))); then SBATCH_FLAGS+=("--time=$limit"); fi
}

# Of Slurm's minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes[:seconds].
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
        refuse "N_GPUS=$N_GPUS, but the job asks for ${gres:-no GPU}: make them agree, or give --n_gpus"
    if [[ " ${SBATCH_FLAGS[*]}" != *" --partition="* && -z ${SBATCH_PARTITION:-} ]]; then
        partition=$(cluster_partition "$(directive partition)")
        [[ -z $partition ]] || SBATCH_FLAGS+=("--partition=$partition")
    fi
    keep_to_limit
    if [[ -n ${NOTIFY_EMAIL:-} ]]; then SBATCH_FLAGS+=("--mail-type=END,FAIL" "--mail-user=$NOTIFY_EMAIL"); fi
    PLAN+=("$(option partition), ${gres:-no GPU}, $(option time), mail to ${NOTIFY_EMAIL:-nobody}")
    require_writable "$PACKAGE_DIR"
    run_checks
    # Slurm's own answer, before anything is left behind.
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
        -- bash "iridis/$PACKAGE/job.sh" "${PASSED[@]}" "${FLAGS[@]}" || true # the job is there without it too
    say "job $job: ${RUN_DIR#"$COTFORMER_REPO"/}/slurm_$job.out"
}

# Show the log of a job until it ends; its failure is ours.
follow() {
    local state=PENDING unknown=0
    say "following job $1; Ctrl-C ends the following, not the job"
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

# ---- in the job ---------------------------------------------------------------------------------------------

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
    # Slurm itself requeues what it has pre-empted, and nobody what a person has cancelled.
    if [[ $STOPPED_BY == TERM && -n ${SLURM_JOB_ID:-} ]]; then
        state=$(job_state)
        say "Slurm has told this job to end; its state is $state"
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
        fail "$gpus GPUs are visible on $(hostname), and N_GPUS=$N_GPUS are needed; --device cpu does without"
}

# A folder on scratch for what is too large for run_N.
workspace() {
    local folder
    folder=$JOB_OUTPUTS_DIR/$(id -un)-${SLURM_JOB_ID:-local}-$PACKAGE
    mkdir -p -- "$folder"
    printf '%s\n' "$folder"
}

# ---- training -----------------------------------------------------------------------------------------------

# The flags of main.py: the row of the experiment table, what CONFIGURATION sets, and what was given behind.
training_flags() {
    TRAINING=(--experiment "$EXPERIMENT" --data_dir "$DATA_DIR" --results_base_folder "$EXPS_DIR")
    TRAINING+=(${DEVICE:+--device "$DEVICE"} ${N_LAYER:+--n_layer "$N_LAYER"} ${N_REPEAT:+--n_repeat "$N_REPEAT"})
    TRAINING+=(${ITERATIONS:+--iterations "$ITERATIONS"} ${CKPT_FREQ:+--save_checkpoint_freq "$CKPT_FREQ"})
    TRAINING+=(${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} ${ACC_STEPS:+--acc_steps "$ACC_STEPS"})
    # shellcheck disable=SC2206  # TRAINING_FLAGS, from the environment, are words
    TRAINING+=(--data_in_ram ${WANDB_PROJECT:+--wandb --wandb_project "$WANDB_PROJECT"} ${TRAINING_FLAGS:-} "${FLAGS[@]}")
}

plan_training() {
    training_flags
    "${PYTHON[@]}" -m iridis.plan "$@" "${TRAINING[@]}"
}

check_training() {
    local lines
    require_writable "$CACHE_DIR"
    if [[ -n ${WANDB_PROJECT:-} ]]; then require_writable "$WANDB_DIR/wandb"; fi
    lines=$(plan_training) || exit
    mapfile -t lines <<<"$lines"
    RUN_FOLDER=${lines[0]} ITERATIONS_ASKED=${lines[1]}
    require_writable "$RUN_FOLDER"
    PLAN+=("${lines[@]:2}")
    [[ ${lines[2]} != finished* || -n $IN_JOB ]] || { say "${lines[2]}; nothing to do" && exit 0; }
}

# Trains, or goes on, over N_GPUS processes; leaves curves and summary in run_N.
train() {
    local command code=0
    training_flags
    command=(main.py "${TRAINING[@]}")
    # A rendezvous of its own on a free port: jobs that share a node do not meet.
    if ((N_GPUS > 1)); then
        command=(-m torch.distributed.run --standalone --nproc-per-node "$N_GPUS"
            --signals-to-handle "SIGINT,SIGHUP,SIGQUIT" "${command[@]}")
    fi
    attend_training "${PYTHON[@]}" "${command[@]}" || code=$?
    if ((code == 0)) && [[ -f $RUN_FOLDER/summary.json ]]; then
        cp -- "$RUN_FOLDER/summary.json" "$RUN_FOLDER/metrics.jsonl" "$RUN_DIR"
        "${PYTHON[@]}" plot_curves.py "$RUN_FOLDER" --output "$RUN_DIR/curves.png"
    fi
    return "$code"
}

# ---- evaluation: checkpoint and folder for the results as arguments -------------------------------------------

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

# Router scores: as they are, cascaded by position as the released script did, and by token.
figure_5() {
    evaluation_flags
    step "${PYTHON[@]}" get_router_weights.py --checkpoint "$1" --output-dir "$2" "${EVALUATION[@]}"
    step "${PYTHON[@]}" plot_fig5.py "$2" --kind raw --output "$2/figure5_raw.png"
    step "${PYTHON[@]}" plot_fig5.py "$2" --kind position_cascade --output "$2/figure5_picascade.png"
    step "${PYTHON[@]}" plot_fig5.py "$2" --kind cascade --output "$2/figure5_ptcascade.png"
}
