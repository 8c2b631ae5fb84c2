//! `knowledge.store`, `store_batch`, `list`, `get`, `stats` and `projects`: what was answered is there, and whole.

mod concurrency;
mod knowledge;
mod large_answers;
mod large_text;
