# Redis, without persistence: design.md calls it never the truth of anything.

redis_start() {
  local dir
  dir=$(folder redis)
  claim_port redis
  mkdir -p "$dir/data"
  launch redis redis-server --port "$(port_of redis)" --bind 127.0.0.1 --dir "$dir/data" \
    --save "" --appendonly no --daemonize no
}

redis_ready() { [[ $(redis-cli -h 127.0.0.1 -p "$(port_of redis)" PING) == PONG ]]; }

redis_stop() { halt redis TERM 10; }

redis_wipe() { rm -rf "$(folder redis)"; }

redis_env() { echo "export REDIS_URL=redis://127.0.0.1:$(port_of redis)/0"; }
