//! What to do when the process has no file descriptors left.
//!
//! A connection cannot even be refused then, because accepting it takes a descriptor. So a few are kept in reserve:
//! one is closed, the connection takes its place, and its client can ask for the daemon's state, or stop it.

use nix::errno::Errno;
use std::fs::File;
use std::io;

/// Descriptors that are kept.
#[derive(Debug)]
pub(crate) struct Reserve {
    kept: Vec<File>,
    most: usize,
}

impl Reserve {
    pub(crate) fn new(most: usize) -> Self {
        let mut reserve = Self {
            kept: Vec::with_capacity(most),
            most,
        };
        reserve.fill();
        reserve
    }

    /// Takes back what was given up, as far as there are descriptors again.
    pub(crate) fn fill(&mut self) {
        while self.kept.len() < self.most {
            match File::open("/dev/null") {
                Ok(file) => self.kept.push(file),
                Err(_) => return,
            }
        }
    }

    /// Closes one. False if none is left.
    pub(crate) fn release(&mut self) -> bool {
        self.kept.pop().is_some()
    }
}

/// Whether an error is that the process or the system has no file descriptor left.
pub(crate) fn lacks_descriptors(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .is_some_and(|code| matches!(Errno::from_raw(code), Errno::EMFILE | Errno::ENFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_taken_back() {
        let mut reserve = Reserve::new(2);
        assert!(reserve.release() && reserve.release() && !reserve.release());
        reserve.fill();
        assert_eq!(reserve.kept.len(), 2);
    }
}
