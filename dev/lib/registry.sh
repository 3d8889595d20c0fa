# Apicurio registry, with a file for its data: ids given anew after a restart would make old records
# decode wrongly.

registry_url() { printf 'http://127.0.0.1:%s/apis/ccompat/v7' "$(port_of registry)"; }

registry_start() {
  local dir jar
  dir=$(folder registry)
  jar=$(compgen -G "$REGISTRY_HOME/*-runner.jar") || die "registry: no *-runner.jar in $REGISTRY_HOME; remove that folder and run dev/install"
  claim_port registry
  mkdir -p "$dir/data" "$dir/tmp"
  launch registry env \
    QUARKUS_HTTP_HOST=127.0.0.1 QUARKUS_HTTP_PORT="$(port_of registry)" \
    REGISTRY_DATASOURCE_URL="jdbc:h2:file:$dir/data/registry" \
    "$(java_bin)" -Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData \
    "-Djava.io.tmpdir=$dir/tmp" -jar "$jar"
}

registry_ready() { curl -fsS -m 5 -o "$(folder registry)/log/ready.json" "$(registry_url)/subjects"; }

registry_stop() { halt registry TERM 20; }

registry_wipe() { rm -rf "$(folder registry)"; }

registry_env() { echo "export SCHEMA_REGISTRY_URL=$(registry_url)"; }
