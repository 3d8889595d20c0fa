//! Takes committed offsets of a group back. The safe client cannot, so this asks librdkafka itself.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::native::{self, check};

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
    // SAFETY: the client, the name and the list outlive the call, which copies them; the request is destroyed once, after
    // its answer was read.
    unsafe {
        let mut request = sys::rd_kafka_DeleteConsumerGroupOffsets_new(group.as_ptr(), partitions.ptr());
        let done = native::ask(
            client,
            sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DELETECONSUMERGROUPOFFSETS,
            timeout,
            |options, queue| sys::rd_kafka_DeleteConsumerGroupOffsets(client, &mut request, 1, options, queue),
            |event| first_error(event),
        );
        sys::rd_kafka_DeleteConsumerGroupOffsets_destroy(request);
        done
    }
}

/// The first thing that went wrong.
///
/// # Safety
/// `event` is the answer to `DeleteConsumerGroupOffsets`, alive for the call.
unsafe fn first_error(event: *mut sys::rd_kafka_event_t) -> KafkaResult<()> {
    // SAFETY: see above; the result, its groups and their partitions live as long as the event.
    unsafe {
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
