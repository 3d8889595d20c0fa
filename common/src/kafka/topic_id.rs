//! Kafka's topic ids. A topic that is deleted and made again has another id: another *incarnation*, whose
//! offsets mean something else. The safe client does not show them, so this asks librdkafka itself.
#![allow(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, CString, c_char};
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaResult;

use super::History;
use super::native::{self, check};

impl History {
    /// The ids, in base64 as Kafka prints them, of those of `topics` that exist. Blocks for up to `timeout`.
    pub fn incarnations(
        &self,
        topics: impl IntoIterator<Item = impl AsRef<str>>,
        timeout: Duration,
    ) -> KafkaResult<HashMap<String, String>> {
        // Kafka refuses to be asked for a topic twice.
        let names: BTreeSet<CString> =
            topics.into_iter().filter_map(|topic| CString::new(topic.as_ref()).ok()).collect();
        let mut pointers: Vec<*const c_char> = names.iter().map(|n| n.as_ptr()).collect();
        self.ask(|consumer| {
            // SAFETY: `consumer` and `names` outlive all of it; the collection is destroyed once, after its answer was read.
            unsafe {
                let collection = sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
                let found = native::ask(
                    consumer.client().native_ptr(),
                    sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
                    timeout,
                    |options, queue| {
                        sys::rd_kafka_DescribeTopics(consumer.client().native_ptr(), collection, options, queue)
                    },
                    |event| Ok(names_and_ids(event)),
                );
                sys::rd_kafka_TopicCollection_destroy(collection);
                found
            }
        })
    }
}

/// Copies names and ids out of the answer.
///
/// # Safety
/// `event` is the answer to `DescribeTopics`, alive for the call.
unsafe fn names_and_ids(event: *mut sys::rd_kafka_event_t) -> HashMap<String, String> {
    // SAFETY: see above; the result, its topics and their strings live as long as the event. Every pointer is checked
    // before use and comes from the librdkafka call that documents it.
    unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        let mut count = 0;
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        let mut found = HashMap::with_capacity(count);
        for i in 0..count {
            let topic = *topics.add(i);
            let error = sys::rd_kafka_TopicDescription_error(topic);
            if !error.is_null() && check(sys::rd_kafka_error_code(error)).is_err() {
                continue;
            }
            let name = CStr::from_ptr(sys::rd_kafka_TopicDescription_name(topic));
            let id = CStr::from_ptr(sys::rd_kafka_Uuid_base64str(sys::rd_kafka_TopicDescription_topic_id(topic)));
            found.insert(name.to_string_lossy().into_owned(), id.to_string_lossy().into_owned());
        }
        found
    }
}
