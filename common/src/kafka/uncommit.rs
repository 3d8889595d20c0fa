//! Takes committed offsets of a group back. The safe client cannot, so this asks librdkafka itself.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;

/// Has a group, which must have no members, be as if it had never committed anything in these partitions. Blocks for up
/// to `timeout`.
pub fn uncommit<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    partitions: &TopicPartitionList,
    timeout: Duration,
) -> KafkaResult<()> {
    let invalid = |_| KafkaError::AdminOpCreation("a group's name has no zero byte".to_owned());
    let group = CString::new(group).map_err(invalid)?;
    let client = client.native_ptr();
    let millis = timeout.as_millis() as i32;
    // SAFETY: the client, the name and the list outlive the call, which copies them; what we own (request, options,
    // queue, event) is destroyed once, and the event last, after what it lends was read.
    unsafe {
        let mut request = sys::rd_kafka_DeleteConsumerGroupOffsets_new(group.as_ptr(), partitions.ptr());
        let options = sys::rd_kafka_AdminOptions_new(
            client,
            sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DELETECONSUMERGROUPOFFSETS,
        );
        sys::rd_kafka_AdminOptions_set_request_timeout(options, millis, std::ptr::null_mut(), 0);
        let queue = sys::rd_kafka_queue_new(client);
        sys::rd_kafka_DeleteConsumerGroupOffsets(client, &mut request, 1, options, queue);
        let event = sys::rd_kafka_queue_poll(queue, millis + 1_000);
        let done = read_answer(event);
        if !event.is_null() {
            sys::rd_kafka_event_destroy(event);
        }
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_AdminOptions_destroy(options);
        sys::rd_kafka_DeleteConsumerGroupOffsets_destroy(request);
        done
    }
}

/// The first thing that went wrong.
///
/// # Safety
/// `event` is null or the answer to `DeleteConsumerGroupOffsets`, alive for the call.
unsafe fn read_answer(event: *mut sys::rd_kafka_event_t) -> KafkaResult<()> {
    use sys::rd_kafka_resp_err_t::{RD_KAFKA_RESP_ERR__TIMED_OUT, RD_KAFKA_RESP_ERR_NO_ERROR};
    let check = |error: sys::rd_kafka_resp_err_t| match error {
        RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        error => Err(KafkaError::AdminOp(RDKafkaErrorCode::from(error))),
    };
    if event.is_null() {
        return check(RD_KAFKA_RESP_ERR__TIMED_OUT);
    }
    // SAFETY: see above; the result, its groups and their partitions live as long as the event.
    unsafe {
        check(sys::rd_kafka_event_error(event))?;
        let result = sys::rd_kafka_event_DeleteConsumerGroupOffsets_result(event);
        let mut count = 0;
        let groups = sys::rd_kafka_DeleteConsumerGroupOffsets_result_groups(result, &mut count);
        for i in 0..count {
            let group = *groups.add(i);
            let error = sys::rd_kafka_group_result_error(group);
            if !error.is_null() {
                check(sys::rd_kafka_error_code(error))?;
            }
            let list = sys::rd_kafka_group_result_partitions(group);
            if list.is_null() {
                continue;
            }
            for at in 0..(*list).cnt {
                check((*(*list).elems.add(at as usize)).err)?;
            }
        }
        Ok(())
    }
}
