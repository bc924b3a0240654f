# shellcheck shell=bash
# Programs that run in a job while its shell listens for signals: Slurm sends USR1 to the shell alone shortly
# before the time is over (--signal=B:USR1@120), and TERM to everything when a job is cancelled or pre-empted.

STOPPED_BY='' # the signal that ended the work, USR1, TERM or INT
FAILED=0      # the exit code of the first step that failed

# From its first to its last line, a job is not ended by a signal that comes while nothing attends to it.
remember_signals() {
    local name
    for name in USR1 TERM INT; do
        # shellcheck disable=SC2064  # name as it is now
        trap "STOPPED_BY=\${STOPPED_BY:-$name}" "$name"
    done
}

# Run training: told to stop, it saves and ends by itself. Returns its exit code.
attend_training() {
    # Both signals are ignored by whoever does not ask for them, as main.py does: all that belongs to the job can
    # get them. (torchrun, where it takes one, ends its processes half a minute later, saved or not.)
    # A session of its own: Ctrl-C at a terminal reaches the shell alone, which passes it on once.
    attend USR1 setsid bash -c 'trap "" USR1 TERM; exec "$@"' bash "$@"
}

# One command of several; those behind one that failed, or was told to end, are left out. What does not save by
# itself is ended by a signal. (`set -e` does not hold in functions whose exit code is looked at.)
step() {
    ((FAILED == 0)) || return "$FAILED"
    attend TERM "$@" || FAILED=$?
    return "$FAILED"
}

# attend <signal to send on> <command ...>
attend() {
    local signal=$1 code=0 status name
    shift
    [[ -z $STOPPED_BY ]] || return 1 # the step before was told to end
    "$@" &
    local child=$! asking=''
    for name in USR1 TERM INT; do
        # shellcheck disable=SC2064  # name, signal and child as they are now
        trap "STOPPED_BY=\${STOPPED_BY:-$name}; [[ -n \$asking ]] || { ask $signal $child & asking=\$!; }" "$name"
    done
    # `wait` also returns when a signal has come; of a child that has ended before, it tells the code or 127.
    while kill -0 "$child" 2>/dev/null; do
        status=0
        wait "$child" || status=$?
        code=$status
    done
    status=0
    wait "$child" 2>/dev/null || status=$?
    ((status == 127)) || code=$status
    remember_signals
    if [[ -n $asking ]]; then kill "$asking" 2>/dev/null || true; fi
    return "$code"
}

# Send a signal to a process and all below it, again and again: one that is only starting does not hear it.
ask() {
    trap - USR1 TERM INT
    while kill -0 "$2" 2>/dev/null; do
        # shellcheck disable=SC2046  # one word each
        kill "-$1" $(family "$2") 2>/dev/null || true
        sleep 3
    done
}

# A process and all below it.
family() {
    local child
    printf '%s\n' "$1"
    for child in $(pgrep -P "$1"); do family "$child"; done
}
