//! The wire over real sockets: what clients of every kind send, and what they get.
//!
//! No test here measures time. Waits have a generous end ([`wire::support::within`]) that only turns a hang
//! into a failure.

mod wire {
    mod client;
    mod endpoint;
    mod framing;
    mod fuzz_corpus;
    mod limits;
    mod memory;
    mod operator;
    mod requests;
    mod service;
    mod shutdown;
    mod support;
    mod tree;
}
