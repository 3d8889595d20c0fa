package dev.tidemill.bench;

import org.apache.kafka.streams.processor.api.ContextualFixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.KeyValueStore;

/**
 * Drops copies within 24 hours. A plain store of ids, which never forgets: a window store, which would, costs more.
 */
final class FirstSight extends ContextualFixedKeyProcessor<String, Event, Event> {
  static final String STORE = "seen";
  private static final long WINDOW_MS = 24 * 3_600_000L;

  private KeyValueStore<String, Long> seen;

  @Override
  public void init(FixedKeyProcessorContext<String, Event> context) {
    super.init(context);
    seen = context.getStateStore(STORE);
  }

  @Override
  public void process(FixedKeyRecord<String, Event> record) {
    String id = record.value().eventId();
    long now = context().currentSystemTimeMs();
    Long before = seen.get(id);
    if (before != null && now - before <= WINDOW_MS) {
      return;
    }
    seen.put(id, now);
    context().forward(record);
  }
}
