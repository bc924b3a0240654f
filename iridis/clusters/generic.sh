# shellcheck shell=bash disable=SC2034  # read where this file is sourced
# Any other cluster, or none. To add yours: copy this file, put the names of its login nodes into CLUSTER_HOSTS
# (patterns, separated by spaces), and its paths and partitions below.

CLUSTER_HOSTS=''
: "${SCRATCH_DIR:=${SCRATCH:-$HOME}/cotformer}"
: "${COTFORMER_ENV:=venv}" # the one that `make` makes
: "${CLUSTER_MODULES:=}" # what `module load` has to load first, e.g. apptainer
: "${MAIL_DOMAIN:=}"

: "${REMOTE_HOST:=}"
: "${REMOTE_REPO:=CoTFormer}"

# The partition for one that the head of a package names: itself where there is such a one, else the default.
cluster_partition() {
    if [[ -n $(sinfo --noheader --partition="$1" 2>/dev/null) ]]; then
        printf '%s\n' "$1"
    else
        sinfo --noheader --format=%P 2>/dev/null | sed -n 's/\*$//p' | head -n 1 || true
    fi
}
