# The tidemill services of `dev/up`, beside the components that they run on.

APPS=(ingest query stream archiver)
PROJECT=${PROJECT:-demo}
TARGET=${CARGO_TARGET_DIR:-$CACHE/target}
PROFILE=${TIDEMILL_PROFILE:-dev} # `release` for benchmarks

ingest_ready() { app_ready ingest; }
query_ready() { app_ready query; }
stream_ready() { app_ready stream; }
archiver_ready() { app_ready archiver; }

app_url() { printf 'http://127.0.0.1:%s' "$(port_of "$1")"; }
app_ready() { curl -fs -m 5 -o "$(folder "$1")/log/readyz" "$(app_url "$1")/readyz"; }

# TIDEMILL_BIN names a binary that is built already.
binary() {
  local dir=$PROFILE
  [[ $dir != dev ]] || dir=debug
  printf '%s' "${TIDEMILL_BIN:-$TARGET/$dir/tidemill}"
}

# Cargo's output goes where ours goes, with its progress bar when that is a terminal.
build() {
  [[ -z ${TIDEMILL_BIN:-} ]] || return 0
  say "cargo: building tidemill (profile $PROFILE) into $TARGET"
  [[ -x $(binary) ]] || say "  the first time this takes about 10 minutes on 2 cores"
  (cd "$REPO" && CARGO_TARGET_DIR=$TARGET cargo build --profile "$PROFILE" -p tidemill) >&2
}

# tidemill on our components. PORT is taken away: it would move all services to one port.
tidemill() { (cd "$REPO" && env -u PORT "$(binary)" "$@"); }

app_settings() {
  export LOG_LEVEL=${LOG_LEVEL:-info}
  export TIDEMILL_STREAM__SEEN_DIR=${TIDEMILL_STREAM__SEEN_DIR:-$DEV/seen/stream}
  export TIDEMILL_ARCHIVER__SEEN_DIR=${TIDEMILL_ARCHIVER__SEEN_DIR:-$DEV/seen/archiver}
  export TIDEMILL_STREAM__CHECKPOINT_URL=${TIDEMILL_STREAM__CHECKPOINT_URL:-file://$DEV/checkpoints/stream}
  export TIDEMILL_ARCHIVER__CHECKPOINT_URL=${TIDEMILL_ARCHIVER__CHECKPOINT_URL:-file://$DEV/checkpoints/archiver}
  export TIDEMILL_STREAM__RAW_EVENTS=${TIDEMILL_STREAM__RAW_EVENTS:-true}
  export TIDEMILL_ARCHIVER__COMMIT_INTERVAL_MS=${TIDEMILL_ARCHIVER__COMMIT_INTERVAL_MS:-5000}
  eval "$("$REPO/dev/services" env)"
}

# What a running service was started from: the binary's file and its settings.
app_stamp() {
  stat -L -c '%n %i %s %y' "$(binary)"
  env | grep -E '^(KAFKA_BROKERS|DATABASE_URL|REDIS_URL|SCHEMA_REGISTRY_URL|WAREHOUSE_URL|LOG_LEVEL|CORS_ORIGINS|CONCURRENCY|BATCH_SIZE|TIDEMILL_[A-Z]+__.*)=' | sort
}

app_start() {
  local name=$1 began stamp
  began=$(now_us)
  stamp=$(folder "$name")/stamp
  mkdir -p "$(folder "$name")/log"
  if running "$name" && cmp -s "$stamp" <(app_stamp) && wait_until 60 app_ready "$name"; then
    line "$name" "runs on port $(port_of "$name") already"
    return
  fi
  app_stop "$name"
  claim_port "$name"
  app_stamp >"$stamp"
  launch "$name" env -u PORT -C "$REPO" TIDEMILL_LISTEN__HOST=127.0.0.1 \
    "${PORT_VARIABLE[$name]}=$(port_of "$name")" "$(binary)" "$name"
  await "$name" 60 || {
    app_stop "$name"
    return 1
  }
  line "$name" "ready on port $(port_of "$name") after $(seconds_since "$began") s"
}

app_stop() { halt "$1" TERM 30; }

app_stop_and_tell() {
  running "$1" || return 0
  app_stop "$1" && line "$1" "stopped"
}

# key SCOPE: the project's development key for a scope, kept in the data folder. It is made anew when
# the database does not know it (any more).
key() {
  local file=$DEV/keys/$PROJECT.$1
  if ! key_valid "$(cat "$file" 2>/dev/null)"; then
    mkdir -p "$DEV/keys"
    (umask 077 && tidemill keys create "$PROJECT" --scope "$1" --yes --output json |
      sed -n 's/.*"key": *"\([^"]*\)".*/\1/p' >"$file")
    [[ -s $file ]] || die "tidemill keys create $PROJECT --scope $1 printed no key"
  fi
  cat "$file"
}

key_valid() {
  local hash
  [[ -n $1 ]] || return 1
  hash=$(printf '%s' "$1" | sha256sum | cut -d' ' -f1)
  [[ $(postgres_sql "SELECT project FROM api_keys WHERE hash = '\\x$hash' AND revoked_at IS NULL") == "$PROJECT" ]]
}
