# shellcheck shell=bash
# Running programs in a job while its shell handles signals: Slurm sends USR1 to the shell shortly before the time
# limit (--signal=B:USR1@120), and TERM to all processes when a job is cancelled or pre-empted.

STOPPED_BY='' # the signal that ended the work, USR1, TERM or INT
FAILED=0      # the exit code of the first step that failed

# Between programs, a signal is remembered instead of ending the job.
remember_signals() {
    local name
    for name in USR1 TERM INT; do
        # shellcheck disable=SC2064  # name as it is now
        trap "STOPPED_BY=\${STOPPED_BY:-$name}" "$name"
    done
}

# Run training, which saves and exits when it is signalled. Returns its exit code.
run_training() {
    # Both signals are ignored unless a program handles them, as main.py does, so that they can be sent to all
    # processes. (torchrun, if it handles one, kills its processes half a minute later, saved or not.)
    # In a session of its own, so that Ctrl-C at a terminal reaches only the shell, which forwards it once.
    run_with_signals USR1 setsid bash -c 'trap "" USR1 TERM; exec "$@"' bash "$@"
}

# Run one command of several; after a failed or signalled command the others are skipped. A signal ends the
# command. (`set -e` has no effect in functions whose exit code is tested.)
step() {
    ((FAILED == 0)) || return "$FAILED"
    run_with_signals TERM "$@" || FAILED=$?
    return "$FAILED"
}

# run_with_signals <signal to forward> <command ...>
run_with_signals() {
    local signal=$1 code=0 status name
    shift
    [[ -z $STOPPED_BY ]] || return 1 # the previous step was signalled
    "$@" &
    local child=$! sender=''
    for name in USR1 TERM INT; do
        # shellcheck disable=SC2064  # name, signal and child as they are now
        trap "STOPPED_BY=\${STOPPED_BY:-$name}; [[ -n \$sender ]] || { keep_sending $signal $child & sender=\$!; }" "$name"
    done
    # `wait` also returns when a signal arrives; for a child that has ended before, it returns its code or 127.
    while kill -0 "$child" 2>/dev/null; do
        status=0
        wait "$child" || status=$?
        code=$status
    done
    status=0
    wait "$child" 2>/dev/null || status=$?
    ((status == 127)) || code=$status
    remember_signals
    if [[ -n $sender ]]; then kill "$sender" 2>/dev/null || true; fi
    return "$code"
}

# Send a signal to a process and its descendants every 3 s, as a process that is starting does not handle it yet.
keep_sending() {
    trap - USR1 TERM INT
    while kill -0 "$2" 2>/dev/null; do
        # shellcheck disable=SC2046  # one word each
        kill "-$1" $(descendants "$2") 2>/dev/null || true
        sleep 3
    done
}

# A process and its descendants.
descendants() {
    local child
    printf '%s\n' "$1"
    for child in $(pgrep -P "$1"); do descendants "$child"; done
}
