//! `knowledge.subscribe`: a subscriber learns of every change, in order, or learns where to resume.

mod subscriptions;
