//! What the gateway takes on at once. Beyond it, a request is told at once to come back.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room for requests and for the bytes of their bodies.
#[derive(Clone)]
pub struct Overload {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// A request's share. It is given back on drop.
pub struct Share {
    _request: OwnedSemaphorePermit,
    bytes: OwnedSemaphorePermit,
    room: Arc<Semaphore>,
}

impl Overload {
    /// Room for so many.
    pub fn new(requests: usize, bytes: usize) -> Self {
        Self { requests: Arc::new(Semaphore::new(requests)), bytes: Arc::new(Semaphore::new(bytes)) }
    }

    /// Room for one request, whose body is yet to come; none if there are too many.
    pub fn enter(&self) -> Option<Share> {
        let request = Arc::clone(&self.requests).try_acquire_owned().ok()?;
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(0).ok()?;
        Some(Share { _request: request, bytes, room: Arc::clone(&self.bytes) })
    }
}

impl Share {
    /// Makes room for more bytes of the body; says whether there was room.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        let Ok(bytes) = u32::try_from(bytes) else { return false };
        match Arc::clone(&self.room).try_acquire_many_owned(bytes) {
            Ok(more) => {
                self.bytes.merge(more);
                true
            }
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_and_given_back() {
        let overload = Overload::new(2, 10);
        let (mut one, mut two) = (overload.enter().expect("room"), overload.enter().expect("room"));
        assert!(overload.enter().is_none());
        assert!(one.grow(6));
        assert!(!two.grow(5));
        drop(one);
        assert!(two.grow(10));
        assert!(overload.enter().is_some());
    }
}
