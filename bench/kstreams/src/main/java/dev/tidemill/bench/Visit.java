package dev.tidemill.bench;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;

/** A session, or one event of it. Its first and last event are the window's bounds. */
record Visit(long events, long pageViews, long conversions, long userAt, String user) {
  static final Visit NONE = new Visit(0, 0, 0, Long.MAX_VALUE, "");

  static Visit of(Event event) {
    boolean page = event.eventType().equals("page_view");
    boolean conversion = event.eventType().equals("purchase");
    return new Visit(1, page ? 1 : 0, conversion ? 1 : 0, event.timestampMillis(), event.userId());
  }

  Visit plus(Visit other) {
    Visit earlier = userAt <= other.userAt ? this : other;
    return new Visit(
        events + other.events,
        pageViews + other.pageViews,
        conversions + other.conversions,
        earlier.userAt,
        earlier.user);
  }

  static Serde<Visit> serde() {
    return Serdes.serdeFrom((topic, visit) -> visit == null ? null : visit.bytes(), new Reader());
  }

  private byte[] bytes() {
    byte[] name = user.getBytes(StandardCharsets.UTF_8);
    ByteBuffer out = ByteBuffer.allocate(4 * Long.BYTES + name.length);
    return out.putLong(events).putLong(pageViews).putLong(conversions).putLong(userAt).put(name).array();
  }

  private static final class Reader implements Deserializer<Visit> {
    @Override
    public Visit deserialize(String topic, byte[] bytes) {
      if (bytes == null) {
        return null;
      }
      ByteBuffer in = ByteBuffer.wrap(bytes);
      long events = in.getLong();
      long pageViews = in.getLong();
      long conversions = in.getLong();
      long userAt = in.getLong();
      int at = in.position();
      return new Visit(
          events, pageViews, conversions, userAt, new String(bytes, at, bytes.length - at, StandardCharsets.UTF_8));
    }
  }
}
