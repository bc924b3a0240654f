#!/usr/bin/env bash
#SBATCH --job-name=extract-tokenize-dataset
#SBATCH --partition=amd_student
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=40G
#SBATCH --time=03:00:00
#SBATCH --signal=B:USR1@120
# Step 2 of OpenWebText2, on a compute node: tokenise the archive of step 1 into train.bin and val.bin, then verify
# them. The archive is read without extracting it; an interrupted job resumes after the last finished file.

# CONFIGURATION (each can be set in the environment)
TOKENIZER=${TOKENIZER:-gpt2}
WORKERS=${WORKERS:-} # tokenising processes; empty: one per CPU of the job

LIB=$(dirname -- "$0")/../lib.sh # Slurm runs a copy of this file from another folder
[[ -f $LIB ]] || LIB=${SLURM_SUBMIT_DIR:-.}/iridis/lib.sh
[[ -f $LIB ]] || LIB=${COTFORMER_REPO:-.}/iridis/lib.sh
# shellcheck source=iridis/lib.sh
. "$LIB"

checks() {
    local folder=$DATA_DIR/openwebtext2
    require_writable "$folder"
    [[ -f $folder/meta.json || -f $folder/openwebtext2.jsonl.zst.tar || " ${FLAGS[*]} " == *" --archive"* ]] ||
        fail "there is no archive in $folder: bash iridis/download-dataset/job.sh fetches it (on a login node)"
    PLAN+=("tokenise into $folder")
}
work() {
    step "${PYTHON[@]}" prepare_data.py openwebtext2 tokenize --data_dir "$DATA_DIR" \
        --tokenizer "$TOKENIZER" --workers "${WORKERS:-${SLURM_CPUS_PER_TASK:-2}}" "${FLAGS[@]}"
    step "${PYTHON[@]}" prepare_data.py openwebtext2 verify --data_dir "$DATA_DIR" --tokenizer "$TOKENIZER"
}
run_package "$@"
