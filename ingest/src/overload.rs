//! What the gateway takes on at once. Beyond it, a request is told at once to come back.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Refused requests whose clients are still being listened to, which costs a buffer each.
const LINGERING: usize = 1_024;

/// Room for requests and for the bytes of their bodies.
#[derive(Clone)]
pub struct Overload {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    lingering: Arc<Semaphore>,
}

/// A request's share. It is given back on drop.
pub struct Share {
    _request: Option<OwnedSemaphorePermit>,
    bytes: OwnedSemaphorePermit,
    room: Arc<Semaphore>,
}

impl Overload {
    /// Room for so many.
    pub fn new(requests: usize, bytes: usize) -> Self {
        let room = |size| Arc::new(Semaphore::new(size));
        Self { requests: room(requests), bytes: room(bytes), lingering: room(LINGERING) }
    }

    /// Room for one request, whose body is yet to come; none if there are too many.
    pub fn enter(&self) -> Option<Share> {
        let request = Arc::clone(&self.requests).try_acquire_owned().ok()?;
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(0).ok()?;
        Some(Share { _request: Some(request), bytes, room: Arc::clone(&self.bytes) })
    }

    /// Room for listening on to one refused request, which has given back its share; none if there are too many.
    pub fn linger(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.lingering).try_acquire_owned().ok()
    }
}

impl Share {
    /// The bytes it has room for.
    pub fn bytes(&self) -> usize {
        self.bytes.num_permits()
    }

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

    /// Gives bytes back.
    pub fn shrink(&mut self, bytes: usize) {
        drop(self.bytes.split(bytes.min(self.bytes())));
    }

    /// Grows or shrinks to so many bytes; says whether there was room.
    #[must_use]
    pub fn resize(&mut self, bytes: usize) -> bool {
        match bytes.checked_sub(self.bytes()) {
            Some(more) => self.grow(more),
            None => {
                self.shrink(self.bytes() - bytes);
                true
            }
        }
    }

    /// Splits off a share of its own for so many of its bytes, which may outlive the request.
    pub fn part(&mut self, bytes: usize) -> Self {
        let all = self.bytes();
        let bytes = self.bytes.split(bytes.min(all)).expect("not more than it has");
        Self { _request: None, bytes, room: Arc::clone(&self.room) }
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
        let part = two.part(4);
        assert_eq!((part.bytes(), two.bytes()), (4, 6));
        assert!(!two.resize(7) && two.resize(2) && two.resize(6));
        drop(part);
        assert!(two.resize(10));
        assert!(overload.enter().is_some());
        let lingering: Vec<_> = (0..LINGERING).map_while(|_| overload.linger()).collect();
        assert_eq!(lingering.len(), LINGERING);
        assert!(overload.linger().is_none());
        drop(lingering);
        assert!(overload.linger().is_some());
    }
}
