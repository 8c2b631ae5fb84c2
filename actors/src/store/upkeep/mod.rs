//! The debts of a table (small files, old versions, rows that no index covers), and the steps that pay them.

mod debt;
mod step_size;
mod steps;
mod vectors;

pub(crate) use debt::measure;
pub use debt::{Debt, FragmentRows, Pace, Step, due_steps, next_thorough_step};
pub use steps::Thorough;
pub use vectors::VectorDebt;
