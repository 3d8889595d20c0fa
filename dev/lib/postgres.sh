# PostgreSQL 15, reached over TCP on 127.0.0.1 as the superuser `postgres` without a password. The server
# refuses to run as root, so root runs it as the system user `postgres`.

PG_USER=postgres
PG_DATABASE=tidemill

as_postgres() {
  if ((EUID == 0)); then
    setpriv --reuid=postgres --regid=postgres --init-groups -- "$@"
  else
    "$@"
  fi
}

# Where the data really is, behind the link that may stand at <folder>/data.
postgres_data() { realpath -m "$(folder postgres)/data"; }

# A folder below, say, a private home is out of reach for user `postgres`; the data then goes to
# /var/tmp, and <folder>/data links there.
postgres_place() {
  local data elsewhere
  data=$(folder postgres)/data
  [[ -e $data ]] && return
  if as_postgres test -x "$(folder postgres)"; then
    mkdir -p "$data"
  else
    elsewhere=/var/tmp/tidemill-$(printf '%s' "$DEV" | sha256sum | cut -c1-12)
    mkdir -p "$elsewhere"
    ln -sfn "$elsewhere" "$data"
    say "  postgres: user postgres cannot reach $DEV, so its data goes to $elsewhere"
  fi
  chmod 700 "$(postgres_data)"
  ((EUID != 0)) || chown postgres:postgres "$(postgres_data)"
}

postgres_init() {
  local data
  data=$(postgres_data)
  [[ -f $data/tidemill.initialised ]] && return
  find "$data" -mindepth 1 -delete # what an initdb that was cut off has left
  (cd / && as_postgres "$PG_BIN/initdb" --pgdata="$data" --username="$PG_USER" --auth=trust \
    --encoding=UTF8 --locale=C.UTF-8 --no-instructions) >"$(folder postgres)/log/initdb.log" 2>&1 || {
    cat "$(folder postgres)/log/initdb.log" >&2
    die "postgres: initdb failed in $data"
  }
  touch "$data/tidemill.initialised"
}

# Server processes have their data folder as working directory.
postgres_processes() {
  local cwd data
  data=$(postgres_data)
  for cwd in /proc/[0-9]*/cwd; do
    [[ $(readlink "$cwd" 2>/dev/null) == "$data" ]] && cut -d/ -f3 <<<"$cwd"
  done
  return 0
}

postgres_gone() { [[ -z $(postgres_processes) ]]; }

# After a kill -9 of the server its children live on for a moment, and a new server refuses to start
# beside them.
postgres_bury_orphans() {
  local orphans
  wait_until 10 postgres_gone && return
  mapfile -t orphans < <(postgres_processes)
  say "  postgres: killing ${#orphans[@]} processes that an earlier server left in $(postgres_data)"
  kill -KILL "${orphans[@]}" 2>/dev/null || true
  wait_until 10 postgres_gone || die "postgres: processes in $(postgres_data) do not end: $(postgres_processes | xargs)"
}

postgres_start() {
  claim_port postgres
  postgres_place
  postgres_init
  postgres_bury_orphans
  rm -f "$(postgres_data)/postmaster.pid" # none of its processes is left; a zombie would still count
  cd /
  local runner=()
  ((EUID != 0)) || runner=(setpriv --reuid=postgres --regid=postgres --init-groups --)
  launch postgres "${runner[@]}" "$PG_BIN/postgres" -D "$(postgres_data)" -p "$(port_of postgres)" \
    -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c shared_buffers=256MB -c max_connections=300
}

postgres_sql() {
  PGCONNECT_TIMEOUT=5 psql -X -q -A -t -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$(port_of postgres)" -U "$PG_USER" \
    -d "${2:-$PG_DATABASE}" -c "$1"
}

# Ready means that our database answers, so it is made here, once.
postgres_ready() {
  "$PG_BIN/pg_isready" -q -h 127.0.0.1 -p "$(port_of postgres)" -U "$PG_USER" -d postgres || return 1
  postgres_sql "SELECT 1" 2>/dev/null || postgres_sql "CREATE DATABASE $PG_DATABASE" postgres
}

# SIGINT is a fast shutdown: it does not wait for clients to leave.
postgres_stop() {
  halt postgres INT 30
  [[ ! -e $(folder postgres)/data ]] || postgres_bury_orphans
}

postgres_wipe() {
  [[ ! -e $(folder postgres)/data ]] || rm -rf "$(postgres_data)"
  rm -rf "$(folder postgres)"
}

postgres_env() { echo "export DATABASE_URL=postgres://$PG_USER@127.0.0.1:$(port_of postgres)/$PG_DATABASE"; }
