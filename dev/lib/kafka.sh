# Apache Kafka: one node, broker and controller in one process (KRaft). TIDEMILL_KAFKA_PROPERTIES: more lines for its
# settings; the last of a name counts.

kafka_configure() {
  cat >"$(folder kafka)/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$(port_of kafka_controller)
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$(port_of kafka),CONTROLLER://127.0.0.1:$(port_of kafka_controller)
advertised.listeners=PLAINTEXT://127.0.0.1:$(port_of kafka)
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$(folder kafka)/data
auto.create.topics.enable=false
unclean.leader.election.enable=false
log.message.timestamp.type=LogAppendTime
log.segment.bytes=134217728
log.segment.delete.delay.ms=5000
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
${TIDEMILL_KAFKA_PROPERTIES:-}
PROPERTIES
}

kafka_java() {
  "$(java_bin)" -Xmx256m -XX:-UsePerfData -cp "$KAFKA_HOME/libs/*" "$@"
}

# The cluster id is fixed: the folder is what tells one development cluster from another.
kafka_format() {
  local dir
  dir=$(folder kafka)
  [[ -f $dir/data/meta.properties ]] && return
  kafka_java kafka.tools.StorageTool format --cluster-id dGlkZW1pbGwtZGV2ZWxvcA \
    --config "$dir/server.properties" >"$dir/log/format.log" 2>&1 || {
    cat "$dir/log/format.log" >&2
    die "kafka: $dir/data could not be formatted"
  }
}

kafka_start() {
  claim_port kafka
  claim_port kafka_controller
  mkdir -p "$(folder kafka)/tmp"
  kafka_configure
  kafka_format
  launch kafka "$(java_bin)" -Xms256m "-Xmx${TIDEMILL_KAFKA_HEAP:-1g}" \
    -XX:-UsePerfData "-Djava.io.tmpdir=$(folder kafka)/tmp" \
    -Dorg.slf4j.simpleLogger.showDateTime=true \
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS" \
    -cp "$KAFKA_HOME/libs/*" kafka.Kafka "$(folder kafka)/server.properties"
}

# A port that answers is not enough: the broker has to name itself and a controller. The client comes
# last, for it takes a quarter of a second to load.
kafka_ready() {
  port_taken "$(port_of kafka)" && "$PYTHON" "$REPO/dev/lib/kafka_ready.py" "127.0.0.1:$(port_of kafka)"
}

kafka_stop() { halt kafka TERM 30; }

kafka_wipe() { rm -rf "$(folder kafka)"; }

kafka_env() { echo "export KAFKA_BROKERS=127.0.0.1:$(port_of kafka)"; }
