//! Kafka's topic ids. A topic that is deleted and made again has another id: another *incarnation*, whose
//! offsets mean something else. The safe client does not show them, so this asks librdkafka itself.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::time::Duration;

use rdkafka::admin::AdminClient;
use rdkafka::bindings as sys;
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, KafkaResult};

use super::KafkaConfig;

/// The ids, in base64 as Kafka prints them, of those of `topics` that exist. Blocks for up to `timeout`.
pub fn topic_incarnations(
    kafka: &KafkaConfig,
    topics: &[&str],
    timeout: Duration,
) -> KafkaResult<HashMap<String, String>> {
    let admin: AdminClient<DefaultClientContext> = kafka.client().create()?;
    let names: Vec<CString> = topics.iter().filter_map(|t| CString::new(*t).ok()).collect();
    let mut pointers: Vec<*const c_char> = names.iter().map(|n| n.as_ptr()).collect();
    let client = admin.inner().native_ptr();
    // SAFETY: every pointer below is checked before use and comes from the librdkafka call that documents
    // it; what we own (collection, options, queue, event) is destroyed once, the event last, after the
    // strings it lends have been copied. `admin` and `names` outlive all of it.
    unsafe {
        let collection = sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let options =
            sys::rd_kafka_AdminOptions_new(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let millis = timeout.as_millis() as i32;
        sys::rd_kafka_AdminOptions_set_request_timeout(options, millis, std::ptr::null_mut(), 0);
        let queue = sys::rd_kafka_queue_new(client);
        sys::rd_kafka_DescribeTopics(client, collection, options, queue);
        let event = sys::rd_kafka_queue_poll(queue, millis + 1_000);
        let found = read_answer(event);
        if !event.is_null() {
            sys::rd_kafka_event_destroy(event);
        }
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_AdminOptions_destroy(options);
        sys::rd_kafka_TopicCollection_destroy(collection);
        found
    }
}

/// Copies names and ids out of the answer.
///
/// # Safety
/// `event` is null or the answer to `DescribeTopics`, alive for the call.
unsafe fn read_answer(event: *mut sys::rd_kafka_event_t) -> KafkaResult<HashMap<String, String>> {
    use sys::rd_kafka_resp_err_t::{RD_KAFKA_RESP_ERR__TIMED_OUT, RD_KAFKA_RESP_ERR_NO_ERROR};
    if event.is_null() {
        return Err(KafkaError::AdminOp(RD_KAFKA_RESP_ERR__TIMED_OUT.into()));
    }
    // SAFETY: see above; the result, its topics and their strings live as long as the event.
    unsafe {
        let error = sys::rd_kafka_event_error(event);
        if error != RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(KafkaError::AdminOp(error.into()));
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        let mut count = 0;
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        let mut found = HashMap::with_capacity(count);
        for i in 0..count {
            let topic = *topics.add(i);
            if !sys::rd_kafka_TopicDescription_error(topic).is_null()
                && sys::rd_kafka_error_code(sys::rd_kafka_TopicDescription_error(topic)) != RD_KAFKA_RESP_ERR_NO_ERROR
            {
                continue;
            }
            let name = CStr::from_ptr(sys::rd_kafka_TopicDescription_name(topic));
            let id = CStr::from_ptr(sys::rd_kafka_Uuid_base64str(sys::rd_kafka_TopicDescription_topic_id(topic)));
            found.insert(name.to_string_lossy().into_owned(), id.to_string_lossy().into_owned());
        }
        Ok(found)
    }
}
