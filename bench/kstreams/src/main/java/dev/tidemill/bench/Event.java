package dev.tidemill.bench;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.math.BigDecimal;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.avro.util.Utf8;
import org.apache.kafka.common.serialization.Deserializer;

/** What the topology needs of an event; a page of none is empty. The whole record is decoded, as the worker does. */
record Event(
    String eventId,
    String eventType,
    long timestampMillis,
    String userId,
    String sessionId,
    String page,
    BigDecimal revenue) {

  /** Avro in the Confluent framing, by the Avro library, which reuses what it can. */
  static final class AvroDeserializer implements Deserializer<Event> {
    /** The stream threads share the deserializer. */
    private final ThreadLocal<Reader> reader;

    AvroDeserializer(Schema schema) {
      reader = ThreadLocal.withInitial(() -> new Reader(schema));
    }

    @Override
    public Event deserialize(String topic, byte[] value) {
      return reader.get().read(value);
    }
  }

  private static final class Reader {
    private static final int FRAME = 5;

    private final GenericDatumReader<GenericRecord> reader;
    private final int eventId;
    private final int eventType;
    private final int timestamp;
    private final int userId;
    private final int sessionId;
    private final int properties;
    private final JsonFactory json = new JsonFactory();
    private BinaryDecoder decoder;
    private GenericRecord record;

    Reader(Schema schema) {
      reader = new GenericDatumReader<>(schema);
      eventId = schema.getField("eventId").pos();
      eventType = schema.getField("eventType").pos();
      timestamp = schema.getField("timestamp").pos();
      userId = schema.getField("userId").pos();
      sessionId = schema.getField("sessionId").pos();
      properties = schema.getField("properties").pos();
    }

    Event read(byte[] value) {
      decoder = DecoderFactory.get().binaryDecoder(value, FRAME, value.length - FRAME, decoder);
      try {
        record = reader.read(record, decoder);
        return event((Utf8) record.get(properties));
      } catch (IOException error) {
        throw new UncheckedIOException(error);
      }
    }

    /** The record as an event, with what is wanted of its properties. */
    private Event event(Utf8 text) throws IOException {
      String page = "";
      BigDecimal revenue = BigDecimal.ZERO;
      try (JsonParser fields = json.createParser(text.getBytes(), 0, text.getByteLength())) {
        fields.nextToken();
        while (fields.nextToken() == JsonToken.FIELD_NAME) {
          String name = fields.currentName();
          fields.nextToken();
          switch (name) {
            case "page" -> page = fields.getText();
            case "revenue" -> revenue = fields.getDecimalValue();
            default -> fields.skipChildren();
          }
        }
      }
      return new Event(
          record.get(eventId).toString(),
          record.get(eventType).toString(),
          (Long) record.get(timestamp) / 1000,
          record.get(userId).toString(),
          record.get(sessionId).toString(),
          page,
          revenue);
    }
  }
}
