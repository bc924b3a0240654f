#!/usr/bin/env bash
# Step 1 of OpenWebText2, on a login node, as compute nodes have no network: download the archive (28 GB) and
# GPT-2's vocabulary. Without a flag it asks what to do.
#
#   bash iridis/download-dataset/job.sh --full    the archive, resuming a partial download, and the vocabulary
#   bash iridis/download-dataset/job.sh --bpe     the vocabulary only
#   bash iridis/download-dataset/job.sh --reset   delete archive and token files, after a question, and download again
#
# Flags after these go to `python prepare_data.py openwebtext2`.

# shellcheck source=iridis/lib.sh
. "$(dirname -- "$0")/../lib.sh"

archive() { "${PYTHON[@]}" prepare_data.py openwebtext2 download --data_dir "$DATA_DIR" "$@"; }
vocabulary() { "${PYTHON[@]}" prepare_data.py openwebtext2 bpe; }
reset() { "${PYTHON[@]}" prepare_data.py openwebtext2 reset --source --yes --data_dir "$DATA_DIR"; }

# Returns 1 if the answer is no.
sure() {
    local answer
    [[ -t 0 ]] || refuse "--reset deletes archive and token files; give --yes after it to skip the question"
    read -rp "delete archive and token files in $DATA_DIR/openwebtext2? [y/N] " answer
    [[ $answer == y ]]
}

ask_what() {
    [[ -t 0 ]] || refuse "give --full, --bpe or --reset, as there is no terminal to ask at"
    printf '%s\n' "OpenWebText2, into $DATA_DIR/openwebtext2" "  1  archive (28 GB) and vocabulary" \
        "  2  vocabulary only" "  3  delete everything and download again" "  q  nothing"
    read -rp "> " answer
    case $answer in
    1) WHAT=--full ;;
    2) WHAT=--bpe ;;
    3) WHAT=--reset ;;
    q | "") exit 0 ;;
    *) refuse "$answer is none of 1, 2, 3, q" ;;
    esac
}

main() {
    WHAT=${1:-}
    cd -- "$COTFORMER_REPO"
    case $WHAT in
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit ;;
    --full | --bpe | --reset) shift ;;
    "") ask_what ;;
    *) refuse "$WHAT is unknown; choose from --full, --bpe, --reset" ;;
    esac
    find_python
    require_writable "$DATA_DIR"
    require_writable "$TIKTOKEN_CACHE_DIR"
    case $WHAT in
    --full) archive "$@" && vocabulary ;;
    --bpe) vocabulary ;;
    --reset)
        if [[ ${1:-} == --yes ]]; then shift; else sure || { say "nothing was deleted" && exit; }; fi
        reset && archive "$@" && vocabulary
        ;;
    esac
}

main "$@"
