# shellcheck shell=bash
# Shared by all job packages. This file reads flags and decides what to do; checks.sh, queue.sh (submission),
# work.sh (inside a job) and signals.sh have the rest.
#
# A package sets its CONFIGURATION, sources this file, defines `work` (run in the job) and, if it needs something
# beforehand, `checks`, and ends with `run_package "$@"`. iridis/job-*.example are templates.

set -euo pipefail

# shellcheck source=iridis/env.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
# shellcheck source=iridis/checks.sh
. "$COTFORMER_REPO/iridis/checks.sh"
# shellcheck source=iridis/queue.sh
. "$COTFORMER_REPO/iridis/queue.sh"
# shellcheck source=iridis/work.sh
. "$COTFORMER_REPO/iridis/work.sh"
# shellcheck source=iridis/signals.sh
. "$COTFORMER_REPO/iridis/signals.sh"

N_GPUS=${N_GPUS:-0}
DEVICE=${DEVICE:-} # cpu: without GPUs
FLAGS=()        # for the Python script of the package
SBATCH_FLAGS=() # for sbatch; override the #SBATCH lines of the package
PASSED=()       # our own flags that the job needs too
PLAN=()         # lines that describe the job
RUN_DIR=''      # iridis/<package>/run_N
RUN_FOLDER=''   # of a training run, with its checkpoints
ITERATIONS_ASKED=''
RUN_DIRS=()     # of all jobs of a chain
CHAIN=1 DRY_RUN='' LOCAL='' FOLLOW='' REQUEUE='' FOLDER_ONLY=''

# Slurm runs a copy of a package's script from another folder.
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

  --dry-run          print what would be submitted, and stop
  --local            run it here, without Slurm
  --follow           show the job's log until it ends
  --chain N          submit N jobs, each of which starts when the one before has ended
  --requeue          the job requeues itself until its run is complete
  --n_gpus N         number of GPUs, instead of N_GPUS=$N_GPUS
  --device cpu       without GPUs
  --row NAME         the experiment of config/experiments.py to train; table1/ if NAME has no slash
  --folder           print the folder of the training run, and stop
  --partition, --account, --time, --mem, --cpus-per-task, --qos, --nodelist, --exclude, --constraint,
  --reservation, --dependency, --signal, --gres, --job-name
                     as for sbatch; they replace the #SBATCH lines of the package

All other flags go to the Python script. The CONFIGURATION at the top of $PACKAGE/job.sh can be set in the
environment: BATCH_SIZE=4 bash iridis/$PACKAGE/job.sh. So can TRAINING_FLAGS, flags for all training runs, by
which evaluations then find these runs.
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
    [[ $CHAIN =~ ^[1-9][0-9]*$ ]] || refuse "--chain $CHAIN: give the number of jobs, at least 1"
    [[ -z $REQUEUE || $CHAIN == 1 ]] || refuse "--chain and --requeue exclude each other: give one"
}

# The last line of a package.
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
            # A requeued job has its run_N already.
            RUN_DIR=$(grep -ls "\"job\": \"$SLURM_JOB_ID\"" "$PACKAGE_DIR"/run_*/run.json | tail -n 1) || true
            RUN_DIR=${RUN_DIR%/run.json}
            [[ -n $RUN_DIR ]] || new_run_dir
        fi
        run_job
    elif [[ -n $LOCAL ]]; then
        [[ $CHAIN == 1 && -z $REQUEUE ]] || refuse "--chain and --requeue need a queue; --local has none"
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
