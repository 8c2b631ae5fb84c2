//! Bad and careless input: it is refused by name or taken as it was meant, and nothing is guessed.

mod bad_input;
mod careless_commands;
mod empty_is_not_all;
mod line_endings;
mod not_guessed;
