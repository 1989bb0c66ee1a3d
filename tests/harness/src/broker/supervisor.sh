# Owns one RabbitMQ node and its epmd, so that neither outlives whoever wanted them.
#
# Usage: supervisor.sh DIRECTORY SERVER [PREFIX...]    PREFIX runs a command inside another root directory
# Commands come on standard input; its end says that the owner is gone, however it died:
#   start    starts the node; DIRECTORY/node.pid appears
#   detach   the owner leaves on purpose: stay until SIGTERM or the node's end, and leave DIRECTORY behind
set -u
dir=$1
server=$2
shift 2

node=''
epmd=''
keep=''

# Runs a command in a process group of its own; not in a session of its own, as `setsid` would: Linux may schedule each session as one
# (`sched_autogroup`), and then broker and workers on the same cores can keep one another waiting for 100 ms.
apart() {
    exec perl -e 'setpgrp; exec { $ARGV[0] } @ARGV; die "cannot run $ARGV[0]: $!\n"' "$@"
}

finish() {
    trap '' HUP INT TERM
    # The pid as well as the group: a node that was only just forked has no group of its own yet.
    [ -z "$node" ] || kill -KILL "$node" "-$node"
    [ -z "$epmd" ] || kill -KILL "$epmd"
    wait
    [ -n "$keep" ] || rm -rf "$dir"
    exit 0
} 2>/dev/null
trap finish HUP INT TERM

command -v perl >/dev/null || {
    echo 'perl is missing (package perl-base)'
    finish
}

# In the foreground, so that its pid is known: a node that finds none starts one that outlives it. In a cluster the first node's answers,
# and this one ends at once.
apart "$@" epmd </dev/null &
epmd=$!
tries=250
until "$@" epmd -names >/dev/null 2>&1; do
    tries=$((tries - 1))
    if [ "$tries" -eq 0 ]; then
        echo "epmd does not answer on port $ERL_EPMD_PORT"
        finish
    fi
    sleep 0.02
done

while read -r command; do
    case $command in
    start)
        [ -z "$node" ] || wait "$node"
        apart "$@" "$server" </dev/null >>"$dir/node.log" 2>&1 &
        node=$!
        echo "$node" >"$dir/node.pid.new"
        mv "$dir/node.pid.new" "$dir/node.pid"
        ;;
    detach)
        keep=yes
        # While the node lives; the signals' trap ends the wait.
        wait "$node"
        finish
        ;;
    esac
done
finish
