//! A lock on a file, for folders that are one process's at a time.

use std::fs::{File, TryLockError};
use std::io;

/// A file's lock, which is nobody else's as long as this lives.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes the lock of a file; none while somebody else has it.
    pub fn take(file: File) -> io::Result<Option<Self>> {
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Gives it up before its time.
    pub fn release(&self) -> io::Result<()> {
        self.0.unlock()
    }
}

impl Drop for Lock {
    /// Closing the file is not enough: a child that is being started at this moment holds it, too, until it is another program.
    fn drop(&mut self) {
        let _ = self.release(); // the process's end does it, too
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_free_once_it_is_dropped_whoever_else_holds_the_file() {
        let path = std::env::temp_dir().join(format!("lock-{}", uuid::Uuid::new_v4().simple()));
        let take = || Lock::take(File::create(&path).expect("a file")).expect("an answer");
        let lock = take().expect("free");
        let inherited = lock.0.try_clone().expect("the same file, as a child has it");
        assert!(take().is_none());
        drop(lock);
        take().expect("free");
        drop(inherited);
        std::fs::remove_file(&path).expect("removed");
    }
}
