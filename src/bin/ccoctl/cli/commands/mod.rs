//! The commands, in the groups of the methods: one file for each group. It declares the arguments, builds the
//! parameters of a method from them and shows its result.
//!
//! A new command is a variant of its group's enum, the struct of its arguments, and a function.

pub(crate) mod admin;
pub(crate) mod daemon;
pub(crate) mod data;
mod filters;
pub(crate) mod items;
pub(crate) mod legacy;
pub(crate) mod life;
mod project;
pub(crate) mod search;
