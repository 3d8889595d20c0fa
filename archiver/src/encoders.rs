//! Threads that encode. The one that was done last goes first, so that what it gave back to the allocator is taken again:
//! among the runtime's threads row groups would go round, and each of these would keep the memory of one.

use std::io;
use std::sync::{Mutex, MutexGuard, mpsc};
use std::thread;

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

static IDLE: Mutex<Vec<mpsc::Sender<Job>>> = Mutex::new(Vec::new());

/// Does a job on such a thread. There are as many of them as there were jobs at the same time.
pub async fn run<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let waiting = idle().pop();
    let encoder = waiting.map_or_else(spawn, Ok)?;
    let (answer, answered) = oneshot::channel();
    let job = move || {
        let _ = answer.send(job()); // nobody waits when its commit was given up
    };
    // Where the thread has gone, the answer fails, too.
    let _ = encoder.send(Box::new(job));
    let done = answered.await.map_err(|_| io::Error::other("encoding panicked"))?;
    idle().push(encoder);
    Ok(done)
}

/// A thread that ends when it is neither waited for nor idle.
fn spawn() -> io::Result<mpsc::Sender<Job>> {
    let (encoder, jobs) = mpsc::channel::<Job>();
    thread::Builder::new().name("encoder".to_owned()).spawn(move || jobs.into_iter().for_each(|job| job()))?;
    Ok(encoder)
}

fn idle() -> MutexGuard<'static, Vec<mpsc::Sender<Job>>> {
    IDLE.lock().expect("no holder panics")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};

    use super::*;

    #[tokio::test]
    async fn a_thread_is_used_again_unless_its_job_panicked() {
        let me = || thread::current().id();
        let first = run(me).await.expect("a thread");
        assert_eq!(run(me).await.expect("a thread"), first);
        let both = Arc::new(Barrier::new(2));
        let meet = || {
            run({
                let both = Arc::clone(&both);
                move || both.wait().is_leader()
            })
        };
        let (one, other) = tokio::join!(meet(), meet());
        assert_ne!(one.expect("a thread"), other.expect("a thread"), "they are at work at the same time");
        let panicked = run(|| panic!("on purpose")).await;
        assert!(panicked.is_err_and(|error| error.to_string().contains("panicked")));
        run(me).await.expect("another thread");
    }
}
