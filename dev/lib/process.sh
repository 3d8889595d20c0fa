# Background processes: start, recognise, stop. Each has a folder $DEV/<name> with log/, data/, `pid`,
# `pid.started` (the kernel's start time of that PID, so that a PID used again by another program is
# never taken for ours) and `port`.

folder() { printf '%s/%s' "$DEV" "$1"; }
log_file() { printf '%s/%s/log/%s.log' "$DEV" "$1" "$1"; }

# The start time of a process in clock ticks; nothing when there is none or it is a zombie.
started_at() {
  local stat fields
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  read -ra fields <<<"${stat##*) }" # the name in brackets may hold blanks
  [[ ${fields[0]} != Z ]] && printf '%s' "${fields[19]}"
}

# Prints the PID of a named process that we started and that still runs.
running_pid() {
  local dir pid started
  dir=$(folder "$1")
  pid=$(cat "$dir/pid" 2>/dev/null) && started=$(cat "$dir/pid.started" 2>/dev/null) || return 1
  [[ -n $pid && -n $started && $(started_at "$pid") == "$started" ]] && printf '%s' "$pid"
}

running() { running_pid "$1" >/dev/null; }

# launch NAME COMMAND…: runs it in a session of its own, output to its log. No descriptor of ours is
# passed on: an inherited lock or pipe would keep our callers waiting for as long as it runs.
launch() {
  local name=$1 dir fd
  dir=$(folder "$name")
  shift
  mkdir -p "$dir/log"
  (
    for fd in /proc/self/fd/*; do
      fd=${fd##*/}
      ((fd <= 2)) || eval "exec $fd>&-"
    done
    exec setsid "$@" </dev/null >>"$(log_file "$name")" 2>&1
  ) &
  printf '%s\n' $! >"$dir/pid"
  started_at $! >"$dir/pid.started" || true
}

# halt NAME SIGNAL SECONDS: signal, wait, then SIGKILL. A stopped (SIGSTOP) process is woken for it.
halt() {
  local name=$1 signal=$2 patience=$3 pid dir
  dir=$(folder "$name")
  if pid=$(running_pid "$name"); then
    kill "-$signal" "$pid" 2>/dev/null || true
    kill -CONT "$pid" 2>/dev/null || true
    if ! wait_until "$patience" not_running "$name"; then
      say "  $name did not stop within $patience s: SIGKILL"
      kill -KILL "$pid" 2>/dev/null || true
      wait_until 10 not_running "$name" || return 1
    fi
  fi
  rm -f "$dir/pid" "$dir/pid.started"
}

not_running() { ! running "$1"; }

ready_or_gone() { ! running "$1" || "${1}_ready" >/dev/null 2>&1; }

# await NAME SECONDS: until `<name>_ready` holds; fails at once, with the log's tail, when it ends.
await() {
  await_or_gone "$@" || return 1
  running "$1" || complain "$1" "ended while starting"
}

await_or_gone() {
  wait_until "$2" ready_or_gone "$1" || complain "$1" "was not ready within $2 s"
}

# In one piece: several may complain at once.
complain() {
  local log
  log=$(log_file "$1")
  say "--- last lines of $log
$(tail -n 20 "$log" 2>&1)
---
error: $1 $2; its log is $log"
  return 1
}

line() { printf '%-9s %s\n' "$1" "$2" >&2; }

# each FUNCTION NAME…: for all names at once; fails when one of them failed.
each() {
  local function=$1 name pids=() pid failed=0
  shift
  for name in "$@"; do
    "$function" "$name" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return "$failed"
}
