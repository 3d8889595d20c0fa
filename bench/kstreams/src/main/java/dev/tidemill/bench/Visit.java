package dev.tidemill.bench;

import java.math.BigDecimal;
import java.math.BigInteger;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;

/**
 * A session, or one event of it. Its first and last event are the window's bounds; texts without an event have the time
 * {@code NEVER} or {@code -NEVER}, whichever loses.
 */
record Visit(
    long events,
    long pageViews,
    long conversions,
    BigDecimal revenue,
    long userAt,
    String user,
    long entryAt,
    String entry,
    long pageAt,
    String page) {
  private static final long NEVER = Long.MAX_VALUE;

  static final Visit NONE = new Visit(0, 0, 0, BigDecimal.ZERO, NEVER, "", NEVER, "", -NEVER, "");

  static Visit of(Event event) {
    boolean bought = event.eventType().equals("purchase");
    boolean named = !event.page().isEmpty();
    boolean shown = named || event.eventType().equals("page_view");
    long at = event.timestampMillis();
    return new Visit(
        1,
        shown ? 1 : 0,
        bought ? 1 : 0,
        bought ? event.revenue() : BigDecimal.ZERO,
        at,
        event.userId(),
        named ? at : NEVER,
        event.page(),
        named ? at : -NEVER,
        event.page());
  }

  Visit plus(Visit other) {
    Visit named = userAt <= other.userAt ? this : other;
    Visit entered = entryAt <= other.entryAt ? this : other;
    Visit left = pageAt > other.pageAt ? this : other;
    return new Visit(
        events + other.events,
        pageViews + other.pageViews,
        conversions + other.conversions,
        revenue.add(other.revenue),
        named.userAt,
        named.user,
        entered.entryAt,
        entered.entry,
        left.pageAt,
        left.page);
  }

  static Serde<Visit> serde() {
    return Serdes.serdeFrom((topic, visit) -> visit == null ? null : visit.bytes(), new Reader());
  }

  private byte[] bytes() {
    byte[] sum = revenue.unscaledValue().toByteArray();
    byte[] first = user.getBytes(StandardCharsets.UTF_8);
    byte[] second = entry.getBytes(StandardCharsets.UTF_8);
    byte[] third = page.getBytes(StandardCharsets.UTF_8);
    int texts = sum.length + first.length + second.length + third.length;
    ByteBuffer out = ByteBuffer.allocate(6 * Long.BYTES + 5 * Integer.BYTES + texts);
    out.putLong(events).putLong(pageViews).putLong(conversions);
    out.putLong(userAt).putLong(entryAt).putLong(pageAt).putInt(revenue.scale());
    for (byte[] text : new byte[][] {sum, first, second, third}) {
      out.putInt(text.length).put(text);
    }
    return out.array();
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
      long entryAt = in.getLong();
      long pageAt = in.getLong();
      int scale = in.getInt();
      byte[] sum = new byte[in.getInt()];
      in.get(sum);
      BigDecimal revenue = new BigDecimal(new BigInteger(sum), scale);
      String user = text(in);
      String entry = text(in);
      return new Visit(
          events, pageViews, conversions, revenue, userAt, user, entryAt, entry, pageAt, text(in));
    }

    private static String text(ByteBuffer in) {
      int length = in.getInt();
      int at = in.position();
      in.position(at + length);
      return new String(in.array(), at, length, StandardCharsets.UTF_8);
    }
  }
}
