//! One thread that works off what is handed to it, in order.

use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use super::SeenError;

type Job = Box<dyn FnOnce() + Send>;

/// What comes of a job; [`Receiver::recv`] waits for it.
pub type Outcome<T> = Receiver<Result<T, SeenError>>;

/// The thread. It ends, after its last job, when this is dropped.
#[derive(Debug)]
pub struct Background {
    jobs: Sender<Job>,
}

impl Background {
    /// Starts the thread, which keeps `lock` as long as it lives.
    pub fn start(lock: impl Send + 'static) -> std::io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let work = move || {
            let _lock = lock;
            queue.into_iter().for_each(|job| job());
        };
        std::thread::Builder::new().name("seen stores".to_owned()).spawn(work)?;
        Ok(Self { jobs })
    }

    /// Queues a job. An outcome that nobody waits for is dropped.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> Result<T, SeenError> + Send + 'static) -> Outcome<T> {
        let (sender, outcome) = sync_channel(1);
        // The thread lives as long as the sender does; if a job of ours panicked, receivers see it.
        let _ = self.jobs.send(Box::new(move || drop(sender.send(job()))));
        outcome
    }
}
