package dev.tidemill.bench;

import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.LongAdder;
import org.apache.avro.Schema;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KGroupedStream;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.SessionWindows;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.SessionStore;
import org.apache.kafka.streams.state.WindowStore;

/**
 * What the stream worker does, as a Kafka Streams program: copies dropped, sessions, counts per type and minute, hour and
 * day; exactly once. It prints {@code warm} and {@code drained} when so many events have been counted, in sessions and in
 * windows of each size; a line on standard input then has it print what its stores hold, and end.
 *
 * <p>It does less than the worker: nothing leaves Kafka Streams (no processed topic, no database), sessions have no device,
 * source or country, and there are no users, no unique counts and no metrics but those of types.
 */
public final class Streams {
  /** Stores of counts by the size of their windows, which are those of the worker's rollups. */
  private static final Map<String, Duration> COUNTS =
      Map.of("minutes", Duration.ofMinutes(1), "hours", Duration.ofHours(1), "days", Duration.ofDays(1));

  private static final String SESSIONS = "sessions";
  /** No event may be dropped for being late, as the worker drops none. */
  private static final Duration GRACE = Duration.ofHours(2);

  private static final byte[] ONE = {1};

  private final LongAdder counted = new LongAdder();
  private final LongAdder inSessions = new LongAdder();

  public static void main(String[] args) throws Exception {
    String brokers = args[0];
    String topic = args[1];
    String application = args[2];
    Schema schema = new Schema.Parser().parse(Path.of(args[4]).toFile());
    Streams program = new Streams();
    try (KafkaStreams streams =
        new KafkaStreams(program.topology(topic, schema), settings(brokers, application, args[3]))) {
      streams.setUncaughtExceptionHandler(
          error -> {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
          });
      streams.start();
      program.await("warm", Long.parseLong(args[5]));
      program.await("drained", Long.parseLong(args[6]));
      System.in.read();
      System.out.println(answers(streams));
    }
  }

  private static Properties settings(String brokers, String application, String state) {
    Properties settings = new Properties();
    settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, brokers);
    settings.put(StreamsConfig.APPLICATION_ID_CONFIG, application);
    settings.put(StreamsConfig.STATE_DIR_CONFIG, state);
    settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
    settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2);
    settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
    return settings;
  }

  private Topology topology(String topic, Schema schema) {
    Serde<Event> events = Serdes.serdeFrom((name, event) -> null, new Event.AvroDeserializer(schema));
    StreamsBuilder builder = new StreamsBuilder();
    builder.addStateStore(FirstSight.store());
    KStream<String, Event> firsts =
        builder.stream(
                topic,
                Consumed.with(Serdes.String(), events)
                    .withTimestampExtractor((record, before) -> ((Event) record.value()).timestampMillis()))
            .processValues(FirstSight::new, FirstSight.STORE);
    count(firsts);
    sessionise(firsts);
    return builder.build();
  }

  private void count(KStream<String, Event> firsts) {
    KGroupedStream<String, byte[]> types =
        firsts
            .map((id, event) -> KeyValue.pair(event.eventType(), ONE))
            .groupByKey(Grouped.with("types", Serdes.String(), Serdes.ByteArray()));
    COUNTS.forEach(
        (store, size) ->
            types
                .windowedBy(TimeWindows.ofSizeAndGrace(size, GRACE))
                .aggregate(
                    () -> 0L,
                    (type, one, count) -> {
                      counted.increment();
                      return count + 1;
                    },
                    Materialized.<String, Long, WindowStore<Bytes, byte[]>>as(store)
                        .withKeySerde(Serdes.String())
                        .withValueSerde(Serdes.Long())
                        .withRetention(Duration.ofDays(2))));
  }

  private void sessionise(KStream<String, Event> firsts) {
    firsts
        .map((id, event) -> KeyValue.pair(event.sessionId(), Visit.of(event)))
        .groupByKey(Grouped.with("visits", Serdes.String(), Visit.serde()))
        .windowedBy(SessionWindows.ofInactivityGapAndGrace(Duration.ofMinutes(30), GRACE))
        .aggregate(
            () -> Visit.NONE,
            (id, event, visit) -> {
              inSessions.increment();
              return visit.plus(event);
            },
            (id, one, other) -> one.plus(other),
            Materialized.<String, Visit, SessionStore<Bytes, byte[]>>as(SESSIONS)
                .withKeySerde(Serdes.String())
                .withValueSerde(Visit.serde()));
  }

  private void await(String word, long events) throws InterruptedException {
    while (counted.sum() < events * COUNTS.size() || inSessions.sum() < events) {
      Thread.sleep(20);
    }
    System.out.println(word);
  }

  private static String answers(KafkaStreams streams) {
    List<Long> counted = new ArrayList<>();
    for (String store : COUNTS.keySet()) {
      long events = 0;
      try (var windows =
          streams
              .store(StoreQueryParameters.fromNameAndType(store, QueryableStoreTypes.<String, Long>windowStore()))
              .all()) {
        while (windows.hasNext()) {
          events += windows.next().value;
        }
      }
      counted.add(events);
    }
    long events = 0;
    long sessions = 0;
    try (var visits =
        streams
            .store(StoreQueryParameters.fromNameAndType(SESSIONS, QueryableStoreTypes.<String, Visit>sessionStore()))
            .fetch(null, null)) {
      while (visits.hasNext()) {
        events += visits.next().value.events();
        sessions++;
      }
    }
    return "{\"counted\":" + counted + ",\"in_sessions\":" + events + ",\"sessions\":" + sessions + "}";
  }
}
