# Paths, messages and small helpers shared by the scripts in dev/. Source it, don't run it.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
CACHE=${TIDEMILL_CACHE:-$HOME/.cache/tidemill}
DEV=$(realpath -m "${TIDEMILL_DEV:-$REPO/.tidemill}")

KAFKA_VERSION=4.1.0
REGISTRY_VERSION=2.6.13.Final
KAFKA_HOME=$CACHE/kafka-$KAFKA_VERSION
REGISTRY_HOME=$CACHE/apicurio-$REGISTRY_VERSION
S3_VERSION=5.2.0
S3_JAR=$CACHE/s3mock-$S3_VERSION.jar
PG_BIN=${TIDEMILL_PG_BIN:-/usr/lib/postgresql/15/bin}
PYTHON=$CACHE/venv/bin/python

# Messages go to stderr: stdout belongs to what a caller may want to read (`env`, the JSON of `up`).
say() { printf '%s\n' "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}

# Seconds with one decimal since the time in microseconds given.
now_us() { printf '%s' "${EPOCHREALTIME//[.,]/}"; }
seconds_since() {
  local tenths=$((($(now_us) - $1) / 100000))
  printf '%d.%d' $((tenths / 10)) $((tenths % 10))
}

# Runs a command up to three times, for steps that need the network.
retry() {
  local attempt
  for attempt in 1 2 3; do
    "$@" && return 0
    ((attempt == 3)) || {
      say "  attempt $attempt failed, trying again in $((attempt * 5)) s"
      sleep $((attempt * 5))
    }
  done
  return 1
}

# Polls a condition (a command) until it holds or the deadline in seconds has passed.
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}

# Holds a lock until this script ends, so that two runs at once don't step on each other.
lock() {
  mkdir -p "$(dirname "$1")"
  exec {LOCK_FD}>"$1"
  flock -n "$LOCK_FD" && return
  say "waiting for another run that holds $1"
  flock "$LOCK_FD"
}

# The Java that Kafka and Apicurio run with: 17 where several are installed, else any newer one.
java_bin() {
  local candidate
  for candidate in "${TIDEMILL_JAVA:-}" /usr/lib/jvm/java-17-openjdk-*/bin/java \
    "${JAVA_HOME:-}/bin/java" "$(command -v java || true)"; do
    if [[ -x $candidate ]] && (($(java_major "$candidate") >= 17)); then
      printf '%s' "$candidate"
      return
    fi
  done
}

# The major version of a Java, from the `release` file beside it (starting it would take 0.1 s).
java_major() {
  local release
  release=$(dirname "$(dirname "$(readlink -f "$1")")")/release
  sed -n 's/^JAVA_VERSION="\([0-9]*\).*/\1/p' "$release" 2>/dev/null | grep . || echo 0
}
