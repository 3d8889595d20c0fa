# Ports: the environment first, then the port a component was last started with, then a default.

declare -A PORT_VARIABLE=(
  [kafka]=TIDEMILL_KAFKA_PORT [kafka_controller]=TIDEMILL_KAFKA_CONTROLLER_PORT
  [redis]=TIDEMILL_REDIS_PORT [postgres]=TIDEMILL_POSTGRES_PORT [registry]=TIDEMILL_REGISTRY_PORT
  [s3]=TIDEMILL_S3_PORT
  [ingest]=TIDEMILL_INGEST__PORT [query]=TIDEMILL_QUERY__PORT
  [stream]=TIDEMILL_STREAM__PORT [archiver]=TIDEMILL_ARCHIVER__PORT
)
declare -A DEFAULT_PORT=(
  [kafka]=19092 [kafka_controller]=19093 [redis]=16379 [postgres]=15432 [registry]=18081
  [s3]=19000
  [ingest]=4001 [query]=4002 [stream]=4004 [archiver]=4005
)

port_file() {
  case $1 in
    kafka_controller) printf '%s/kafka/port.controller' "$DEV" ;;
    *) printf '%s/%s/port' "$DEV" "$1" ;;
  esac
}

# The port of a component. While it runs that is the one it was started with.
port_of() {
  local variable=${PORT_VARIABLE[$1]} wanted last
  wanted=${!variable:-}
  last=$(cat "$(port_file "$1")" 2>/dev/null || true)
  if [[ -n $last ]] && { [[ ${wanted:-0} == 0 ]] || running "${1%_controller}"; }; then
    printf '%s' "$last"
  else
    printf '%s' "${wanted:-${DEFAULT_PORT[$1]}}"
  fi
}

port_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
port_untaken() { ! port_taken "$1"; }

# Any port that is free now (0 in the environment asks for one).
free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 12000)) # below the range that outgoing connections use
    port_taken "$port" || break
  done
  printf '%s' "$port"
}

# Decides on the port a component is about to be started with, checks that it is free, remembers it.
claim_port() {
  local name=$1 port owner
  port=$(port_of "$name")
  [[ $port =~ ^[0-9]+$ ]] || die "${PORT_VARIABLE[$name]}=$port is not a port number"
  [[ $port == 0 ]] && port=$(free_port)
  # A moment's patience: a process that was just killed gives its port back a little later.
  if ! wait_until 3 port_untaken "$port"; then
    owner=$(ss -Hltnp "sport = :$port" 2>/dev/null | grep -o 'users:.*' || true)
    die "$name: port $port is taken by another process${owner:+ ($owner)}; stop it or set ${PORT_VARIABLE[$name]} to a free port (0 = any)"
  fi
  printf '%s\n' "$port" >"$(port_file "$name")"
}
