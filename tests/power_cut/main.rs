//! What a power cut leaves behind, at every moment of a run.
//!
//! The daemon runs under `strace` while clients make every kind of write. The record becomes a log of file
//! operations and acknowledgements ([`strace`], [`trace`]). From the log alone follows, for each acknowledged
//! write, whether everything it needs was on disk before its answer went out ([`order`]); and a model of a disk
//! that promises no more than POSIX does ([`disk`]) builds what a cut could leave, and the daemon is started on
//! that and asked ([`states`]).
//!
//! Linux only: there is no `strace` on macOS, and the order of the calls is the same.
#![cfg(target_os = "linux")]

#[path = "../support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

#[path = "../support/proof/mod.rs"]
#[allow(dead_code)]
mod proof;

mod disk;
mod order;
mod run;
mod states;
mod strace;
mod trace;
