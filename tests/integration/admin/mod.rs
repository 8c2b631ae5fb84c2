//! `admin.*`, `rpc.*` and the command line itself: the daemon describes itself correctly.

mod command_line;
mod openrpc;
mod self_test;
mod trace;
