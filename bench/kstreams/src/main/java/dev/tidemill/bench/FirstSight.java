package dev.tidemill.bench;

import java.time.Duration;
import java.time.Instant;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.processor.api.ContextualFixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;

/**
 * Drops copies within 24 hours, and forgets ids after that. A window store of ids is what Kafka's tutorials do this with:
 * <a href="https://developer.confluent.io/confluent-tutorials/deduplication-windowed/kstreams">Find distinct events</a>.
 */
final class FirstSight extends ContextualFixedKeyProcessor<String, Event, Event> {
  static final String STORE = "seen";
  private static final Duration WINDOW = Duration.ofHours(24);

  private WindowStore<String, Long> seen;

  static StoreBuilder<WindowStore<String, Long>> store() {
    return Stores.windowStoreBuilder(
        Stores.persistentWindowStore(STORE, WINDOW, WINDOW, false), Serdes.String(), Serdes.Long());
  }

  @Override
  public void init(FixedKeyProcessorContext<String, Event> context) {
    super.init(context);
    seen = context.getStateStore(STORE);
  }

  @Override
  public void process(FixedKeyRecord<String, Event> record) {
    String id = record.value().eventId();
    long now = context().currentSystemTimeMs();
    if (!isSeen(id, now)) {
      seen.put(id, now, now);
      context().forward(record);
    }
  }

  private boolean isSeen(String id, long now) {
    try (var sights = seen.fetch(id, Instant.ofEpochMilli(now).minus(WINDOW), Instant.ofEpochMilli(now))) {
      return sights.hasNext();
    }
  }
}
