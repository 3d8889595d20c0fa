//! How often partitions have changed their leader: the epoch of a leader, which brokers give along with offsets. The
//! safe client does not show it, so this asks librdkafka itself.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::Arc;

use rdkafka::bindings as sys;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::TopicPartition;

/// The numbers in an answer with offsets, where it has them.
pub fn leader_changes(answer: &TopicPartitionList) -> HashMap<TopicPartition, i32> {
    let list = answer.ptr();
    let read = |index: isize| {
        // SAFETY: `answer` owns a valid list of `cnt` elements, and outlives this; `index` is below `cnt`, and the name
        // is copied. The getter only reads.
        unsafe {
            let element = (*list).elems.offset(index);
            let topic: Arc<str> = CStr::from_ptr((*element).topic).to_string_lossy().into();
            let epoch = sys::rd_kafka_topic_partition_get_leader_epoch(element);
            (TopicPartition { topic, partition: (*element).partition }, epoch)
        }
    };
    (0..answer.count() as isize).map(read).filter(|(_, epoch)| *epoch >= 0).collect()
}
