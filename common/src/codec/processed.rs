//! Values of processed topics: an event as it came, what was found out about it, and where it stands in the project's log.
//! Read and written by hand as events are ([`super::datum`]); the tests hold it against `apache_avro`.

use super::datum::{Rest, read_event, write_long, write_optional, write_text};
use super::{DecodeError, Encoder, FRAME, schema_id};
use crate::event::EventRef;
use crate::origin::Origin;

/// The schema of the processed topics, as it is registered: the event's, and fields behind it.
pub const PROCESSED_SCHEMA: &str = include_str!("../../../schemas/processed.avsc");

/// What is found out about an event: kind of device, traffic source, country.
pub type Found<'a> = [Option<&'a str>; 3];

/// Appends the framed value of an event, whose bytes in the envelope's layout are `datum`. The encoder's schema is
/// [`PROCESSED_SCHEMA`].
pub fn write(encoder: &Encoder, datum: &[u8], found: Found<'_>, at: Origin, out: &mut Vec<u8>) {
    encoder.frame_into(datum, out);
    for name in found {
        write_optional(name, out, write_text);
    }
    for number in [i64::from(at.partition), at.offset, at.append_ms] {
        write_long(number, out);
    }
}

/// The event in a value, and where it stands in the project's log. No registry is asked: only the stream writes there, and
/// fields of later versions stand behind these.
pub fn read(value: &[u8]) -> Result<(EventRef<'_>, Origin), DecodeError> {
    let id = schema_id(value)?;
    let mut rest = Rest(&value[FRAME..]);
    let read = read_event(&mut rest).and_then(|event| {
        for _ in 0..Found::default().len() {
            rest.optional(Rest::text)?;
        }
        Ok((event, Origin { partition: rest.int()?, offset: rest.long()?, append_ms: rest.long()? }))
    });
    read.map_err(|error| DecodeError::Datum { id, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use apache_avro::Schema;
    use apache_avro::reader::datum::GenericDatumReader;
    use apache_avro::schema_compatibility::SchemaCompatibility;
    use proptest::prelude::*;

    use super::*;
    use crate::codec::{EVENT_SCHEMA, datum};
    use crate::event::Event;

    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Processed {
        #[serde(flatten)]
        event: Event,
        device_type: Option<String>,
        traffic_source: Option<String>,
        country: Option<String>,
        source_partition: i32,
        source_offset: i64,
        source_append_time: i64,
    }

    fn schema(text: &str) -> Schema {
        Schema::parse_str(text).expect("valid Avro")
    }

    proptest! {
        #[test]
        fn the_avro_library_reads_what_is_written(
            properties in prop::option::of(".{0,9}"),
            names in prop::array::uniform3(prop::option::of("[a-z]{0,80}")),
            (partition, offset, append_ms) in any::<(i32, i64, i64)>(),
        ) {
            let event = Event { properties, user_agent: Some("curl/8".into()), ..Event::new("e-1", "view", 1_700_000_000_000_000) };
            let at = Origin { partition, offset, append_ms };
            let (mut bytes, mut value) = (Vec::new(), Vec::new());
            datum::write(&event.as_ref(), &mut bytes);
            write(&Encoder::new(7), &bytes, names.each_ref().map(Option::as_deref), at, &mut value);

            let schema = schema(PROCESSED_SCHEMA);
            let reader = GenericDatumReader::builder(&schema).build().expect("a reader");
            // Readers that know only events read it as one.
            let plain: Event = reader.read_deser(&mut &value[FRAME..]).expect("readable");
            prop_assert_eq!(&plain, &event);
            let mut rest = &value[FRAME..];
            let by_the_library: Processed = reader.read_deser(&mut rest).expect("readable");
            prop_assert!(rest.is_empty());
            prop_assert_eq!(&by_the_library.event, &event);
            let Processed { device_type, traffic_source, country, .. } = by_the_library;
            prop_assert_eq!([device_type, traffic_source, country], names);
            let Processed { source_partition, source_offset, source_append_time, .. } = by_the_library;
            prop_assert_eq!((source_partition, source_offset, source_append_time), (partition, offset, append_ms));

            value.push(2); // a field of a later version
            let (read, found_at) = read(&value).expect("a processed event");
            prop_assert_eq!((read.to_event(), found_at), (event, at));
        }
    }

    #[test]
    fn half_a_value_is_an_error() {
        let mut value = Vec::new();
        let bytes = Encoder::new(7).encode(&Event::new("e", "t", 1)).split_off(FRAME);
        write(&Encoder::new(7), &bytes, [None, Some("x"), None], Origin::default(), &mut value);
        for end in 0..value.len() {
            assert!(read(&value[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn readers_of_either_schema_read_the_other() {
        let (event, processed) = (schema(EVENT_SCHEMA), schema(PROCESSED_SCHEMA));
        SchemaCompatibility::can_read(&event, &processed).expect("backward compatible");
        SchemaCompatibility::can_read(&processed, &event).expect("forward compatible");
    }
}
