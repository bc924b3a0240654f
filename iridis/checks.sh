# shellcheck shell=bash disable=SC2034  # lib.sh sources this file, and owns the variables
# Checks before a package is submitted, and again when its job starts.

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
        # Missing folders cannot be bound.
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
        fail "there is no $there on $(hostname): make the environment (iridis/README.md), or set another one in iridis/env.local.sh"
    "${PYTHON[@]}" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' ||
        fail "$there has no torch: install requirements.txt into it (iridis/README.md)"
}

make_folders() {
    require_writable "$SCRATCH_DIR"
    mkdir -p -- "$EXPS_DIR" "$CACHE_DIR" "$JOB_OUTPUTS_DIR"
}

run_checks() {
    if [[ $(type -t checks) == function ]]; then checks; fi
}

# Requires that a folder can be written or created; folders are created only when the job runs.
require_writable() {
    local there=$1
    while [[ ! -e $there ]]; do there=$(dirname -- "$there"); done
    [[ -d $there && -w $there ]] ||
        fail "cannot write $1; set another folder in iridis/env.local.sh (SCRATCH_DIR, DATA_DIR, EXPS_DIR, ...)"
}

# Requires the checkpoint of an evaluation, a file or a run folder.
require_checkpoint() {
    [[ -f $1 ]] || compgen -G "$1/ckpt*" >/dev/null ||
        fail "there is no checkpoint in $1: train it first (bash iridis/$2/job.sh), or set CHECKPOINT"
    PLAN+=("checkpoint: $1")
}

# The folder of the run that another package trains, under the same environment.
folder_of() { env -u EXPERIMENT bash "$COTFORMER_REPO/iridis/$1/job.sh" --folder; }

# Refuses wrong flags of evaluation scripts here instead of in the job.
check_flags() { "${PYTHON[@]}" -m iridis.plan --flags-only "${FLAGS[@]}" || exit; }
