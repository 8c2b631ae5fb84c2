//! What the crash tests and the power cut test share: a load with every kind of write ([`workload`]), a record
//! of what was asked and answered ([`journal`]), and the comparison of that record with what is there
//! afterwards, through the socket ([`journal`]) and in the table itself ([`rows`]).

pub(crate) mod journal;
pub(crate) mod process;
pub(crate) mod rows;
pub(crate) mod workload;
