//! Admin requests that the safe client cannot make: librdkafka itself is asked.
#![allow(unsafe_code)]

use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

/// Makes a request and reads its answer. Blocks for up to `timeout`.
///
/// # Safety
/// `client` is alive for the call. `make` starts a request of this kind with the options it is given, to be answered on
/// the queue it is given; what it refers to is alive for the call. `read` gets the answer, which has no error, and takes
/// nothing of it along that is not copied.
pub unsafe fn ask<T>(
    client: *mut sys::rd_kafka_t,
    kind: sys::rd_kafka_admin_op_t,
    timeout: Duration,
    make: impl FnOnce(*mut sys::rd_kafka_AdminOptions_t, *mut sys::rd_kafka_queue_t),
    read: impl FnOnce(*mut sys::rd_kafka_event_t) -> KafkaResult<T>,
) -> KafkaResult<T> {
    let millis = timeout.as_millis() as i32;
    // SAFETY: see above; what is made here (options, queue, event) is destroyed once, the event after it was read.
    unsafe {
        let options = sys::rd_kafka_AdminOptions_new(client, kind);
        sys::rd_kafka_AdminOptions_set_request_timeout(options, millis, std::ptr::null_mut(), 0);
        let queue = sys::rd_kafka_queue_new(client);
        make(options, queue);
        let event = sys::rd_kafka_queue_poll(queue, millis + 1_000);
        let answer = if event.is_null() {
            Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut))
        } else {
            let answer = check(sys::rd_kafka_event_error(event)).and_then(|()| read(event));
            sys::rd_kafka_event_destroy(event);
            answer
        };
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_AdminOptions_destroy(options);
        answer
    }
}

/// An error of librdkafka's as ours.
pub fn check(error: sys::rd_kafka_resp_err_t) -> KafkaResult<()> {
    match error {
        sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        error => Err(KafkaError::AdminOp(RDKafkaErrorCode::from(error))),
    }
}
