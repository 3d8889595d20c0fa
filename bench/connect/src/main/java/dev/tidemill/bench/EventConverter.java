package dev.tidemill.bench;

import java.io.IOException;
import java.util.Date;
import java.util.Map;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.kafka.connect.data.Field;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.data.SchemaAndValue;
import org.apache.kafka.connect.data.SchemaBuilder;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.data.Timestamp;
import org.apache.kafka.connect.errors.DataException;
import org.apache.kafka.connect.storage.Converter;

/**
 * Events as Connect has them, from Avro in the Confluent framing. It knows its one schema ({@code event.schema}), so no
 * registry is asked: Confluent's own converter, which is not in Maven Central, does more.
 */
public final class EventConverter implements Converter {
  private static final int FRAME = 5;
  private static final Schema SCHEMA =
      SchemaBuilder.struct()
          .name("Event")
          .field("eventId", Schema.STRING_SCHEMA)
          .field("eventType", Schema.STRING_SCHEMA)
          .field("timestamp", Timestamp.SCHEMA)
          .field("receivedAt", Timestamp.builder().optional().build())
          .field("userId", Schema.OPTIONAL_STRING_SCHEMA)
          .field("sessionId", Schema.OPTIONAL_STRING_SCHEMA)
          .field("eventAction", Schema.OPTIONAL_STRING_SCHEMA)
          .field("properties", Schema.OPTIONAL_STRING_SCHEMA)
          .field("clientAddress", Schema.OPTIONAL_STRING_SCHEMA)
          .field("userAgent", Schema.OPTIONAL_STRING_SCHEMA)
          .build();

  private GenericDatumReader<GenericRecord> reader;
  private GenericRecord record;
  private BinaryDecoder decoder;

  @Override
  public void configure(Map<String, ?> configs, boolean isKey) {
    String schema = (String) configs.get("event.schema");
    reader = new GenericDatumReader<>(new org.apache.avro.Schema.Parser().parse(schema));
  }

  @Override
  public SchemaAndValue toConnectData(String topic, byte[] value) {
    decoder = DecoderFactory.get().binaryDecoder(value, FRAME, value.length - FRAME, decoder);
    try {
      record = reader.read(record, decoder);
    } catch (IOException error) {
      throw new DataException("no event", error);
    }
    Struct event = new Struct(SCHEMA);
    for (Field field : SCHEMA.fields()) {
      Object found = record.get(field.name());
      if (found instanceof Long micros) {
        event.put(field, new Date(micros / 1000));
      } else if (found != null) {
        event.put(field, found.toString());
      }
    }
    return new SchemaAndValue(SCHEMA, event);
  }

  @Override
  public byte[] fromConnectData(String topic, Schema schema, Object value) {
    throw new DataException("events are only read");
  }
}
