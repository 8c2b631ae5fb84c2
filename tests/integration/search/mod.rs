//! `knowledge.search` and `similar`: what fits is found, in one order, and nothing else.

mod paging;
mod ranking;
mod similar;
